"""What is at hand for an evaluation: model, data, metrics, and the networks that look at images."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from configs import UserError, construct, registry
from configs.values import to_plain
from diffusion.data.base import Data, ImageSet
from diffusion.evaluation.folders import find_images
from diffusion.evaluation.report import Numbers
from diffusion.evaluation.together import Together
from diffusion.loading import build_data, load
from diffusion.metrics.base import Features, Images, Metric, MetricInput, ModelMetric, PairMetric
from diffusion.metrics.evidence import Evidence, shuffle
from diffusion.metrics.extractors import classifier
from diffusion.metrics.extractors.base import Extractor
from diffusion.metrics.extractors.embedding import EmbeddingExtractor, choose_embedding
from diffusion.metrics.features import features, fingerprint
from diffusion.metrics.intervals import assign_groups
from diffusion.model import Model
from diffusion.objectives.regression import VectorRegressor
from diffusion.recipe import Recipe
from diffusion.runs.run import Run
from models.attributes import AttributeReader
from models.embedder import Embedding

log = logging.getLogger(__name__)

JUDGED = ("attributes", "answers", "landmarks", "box")
"""Signals of several things at once, of which there are judges."""

Look = Callable[[Extractor], Features]
"""What an extractor sees in a set of images."""


class EvaluationContext:
    """The parts that the ``evaluate`` config names, built.

    :param gpu: that of this process, where several share a machine
    :param model: that of the run, if it is still trained; None loads it
    :ivar metrics: by their keys in the config
    :ivar files: the images that are measured, for ``images=FOLDER``
    :ivar manifest: that of ``files``, if ``sample.py`` has made them
    :ivar run: the run, if one is known
    :ivar live: whether the model is still trained
    :ivar together: the features of the samples, where several processes have extracted them
    :raises UserError: for settings that mean nothing, or parts that are not there
    """

    def __init__(self, cfg: DictConfig, gpu: str | None = None, model: Model | None = None):
        check(cfg)
        self.cfg, self.packages = cfg, (*registry.trusted(), *cfg.allow)
        self.device: str = cfg.device or gpu or ("cuda" if torch.cuda.is_available() else "cpu")
        self.metrics: dict[str, Metric | PairMetric | ModelMetric] = {
            key: construct(node, role=(Metric, PairMetric, ModelMetric))
            for key, node in to_plain(cfg.metrics).items() if node}
        self.files, self.manifest = find_images(cfg.images) if cfg.images else (None, {})
        known = cfg.run or self.manifest.get("run")
        self.run = Run.open(known) if known and (cfg.run or Run.at(known).exists) else None
        self.live, self._model = model is not None, model
        self._data: Data | None = None
        self.together: Together | None = None
        if self.run is not None:
            self._model = model or load(self.run.place, weights=cfg.weights, step=cfg.step, device=cfg.device or gpu,
                                        allow=cfg.allow, precision=cfg.precision, compile=cfg.compile)
            self._data = build_data(self._model.config, cfg.data, self.packages)
        elif cfg.reference == "data":
            raise UserError("reference=data without a run, whose data it would be", "a run, or a folder of images",
                            "run=RUN, or reference=FOLDER")
        self.recipe = Recipe.build(cfg, self.packages)

    @property
    def model(self) -> Model:
        """The model of the run; only where there is one."""
        assert self._model is not None
        return self._model

    @property
    def data(self) -> Data:
        """The data of the run; only where there is one."""
        assert self._data is not None
        return self._data

    @property
    def checkpoint(self) -> str:
        """The name of the checkpoint that the model is from: its step, and a part of its checksum; its step alone while
        it is trained."""
        assert self.run is not None
        name = f"step-{self.model.step:08d}"
        return name if self.live else f"{name}.{self.run.steps[self.model.step]}.pt"

    @cached_property
    def judge(self) -> classifier.ClassifierExtractor | None:
        """The classifier that judges classes, if there is one."""
        choice = self.cfg.judge
        if choice == "none":
            return None
        if choice is None:
            if self.run is None or self._data is None or not {"label", *JUDGED} & {*self._data.described}:
                return None
            roots, data = self.run.roots, self._data
            choice = next(classifier.ClassifierExtractor.find_runs(roots, data), None)
            if choice is None:
                log.info("no classifier of these images in %s: nothing judges their classes. train.py makes one, with "
                         "this run's data: experiment=classifier_digits (or _mnist, _cifar10, _celeba64), or "
                         "experiment=judge_scenes_digits (or _mnist) for scenes", " or ".join(map(str, roots)))
                return None
        judge = classifier.ClassifierExtractor(str(choice), self.device)
        log.info("judge: %s", judge.run)
        return judge

    @cached_property
    def identities(self) -> list[str]:
        """Names of the signals of the run by which it is told whom to draw: embeddings of pictures of the data."""
        sources = self.model.weights.encoder.sources if self._model is not None else {}
        return [name for name, source in sources.items() if isinstance(source, Embedding) and source.takes]

    @cached_property
    def embedding(self) -> EmbeddingExtractor | None:
        """The embedding that judges identities, if the run is told some and there is one."""
        if not self.identities or self.cfg.embedding == "none":
            return None
        sources = self.model.weights.encoder.sources
        taught = [source.network for source in sources.values() if isinstance(source, Embedding)]
        assert self.run is not None
        return choose_embedding(self.cfg.embedding, self.run.roots, self.data, taught, self.device)

    @cached_property
    def extractor(self) -> Extractor:
        """What the features are of."""
        node = self.cfg.extractor
        if node is None:
            return self.judge or construct(registry.node("extractor", "random"), device=self.device)
        node = to_plain(node)
        if node.get("run", "") is None:
            if self.judge is None:
                raise UserError("extractor=classifier, and no classifier of these images is known",
                                "the run of one", "extractor.run=runs/classifier_mnist/1a2b3c4d")
            return self.judge
        return construct(node, role=Extractor, device=self.device)

    def reference(self) -> tuple[Images, dict[str, Any]]:
        """The images that others should be like, and what they are, for the protocol.

        :raises UserError: if there are none
        """
        if self.cfg.reference == "data":
            images: Images = self.data.split(self.cfg.split)
            what = f"{self.cfg.split} split of {type(self.data).__name__}"
        else:
            images, _ = find_images(self.cfg.reference, "reference")
            what = str(self.cfg.reference)
        shape = list(images.shape)
        return images, {"what": what, "count": shape[0], "shape": shape[1:], "hash": fingerprint(images)}

    def protocol(self, what: str, count: int, reference: dict[str, Any], **more: Any) -> dict[str, Any]:
        """All on which the numbers depend, as plain data."""
        networks = {"extractor": self.extractor} | ({"judge": self.judge} if self.judge else {}) | \
            ({"embedding": self.embedding} if self.embedding else {})
        return {"what": what, "count": count, "run": str(self.run.place) if self.run else None, **more,
                "reference": reference,
                **{key: {"name": n.name, "identity": n.identity, "resizing": n.resizing}
                   for key, n in networks.items()},
                "metrics": {key: to_plain(self.cfg.metrics[key]) for key in self.metrics},
                "pixels": "uint8, round((x + 1) 127.5)"}

    def sets(self, images: Images, what: str, reference: Features, like: Images | None = None,
             together: Together | None = None, gather: Callable[[Look], Evidence] | None = None,
             **more: Any) -> MetricInput:
        """A set of images as metrics see it.

        :param what: the images in words
        :param like: images of which these have the conditions; None takes their own
        :param together: has the features, if several processes have extracted them
        :param gather: gives the evidence of what they were asked to show, by what an extractor sees in them
        :param more: ``train`` and ``held_out``
        """
        @cache
        def look(extractor: Extractor) -> Features:
            return features(images, extractor, what) if together is None else together.collect(extractor)

        found = look(self.extractor)
        if gather is not None:
            more["evidence"] = gather(look)
        labels, conditions = (like or images).labels, (like or images).conditions
        predictions = None
        of_classes = self.judge is None or self.judge.signal == "label"
        asked = labels if of_classes else self._find_truth(like or images)
        if self.judge is not None and asked is not None:
            seen = look(self.judge)
            if of_classes:
                predictions = classifier.take_predictions(seen)
                more["likelihood"] = classifier.take_likelihood(seen, asked)
            else:
                assert seen.attributes is not None
                grade, order = self.judge.classifier.grade_each, shuffle(len(asked))
                right = grade(seen.attributes, asked)
                more |= {"questions": self.judge.classifier.questions, "right": right, "likelihood": right.nanmean(1),
                         "right_shuffled": grade(seen.attributes, asked[order])}
        elif of_classes and self.judge is self.extractor:
            more["likelihood"] = classifier.take_likelihood(found, None)
        return MetricInput(images, found, reference, assign_groups(len(found), conditions), labels, conditions,
                           predictions, **more)

    def _find_truth(self, images: Images) -> Tensor | None:
        """What the judge should say about a split of the run's data, or about samples that were asked for; None unless
        it is asked about what it knows."""
        assert self.judge is not None
        if self.run is None:
            return None
        if isinstance(self.judge.classifier, VectorRegressor):  # whose numbers are no right or wrong answers
            return None
        known = self.data.described.get(self.judge.signal, {}).get("words") == self.judge.words
        if isinstance(images, ImageSet):
            return images.signals.get(self.judge.signal) if known else None
        written = getattr(images, "written", ())
        if self.judge.signal == "answers":
            return self.data.find_answers(written) if known and written else None
        reader = self.model.readers().get("attributes")
        if not isinstance(reader, AttributeReader) or reader.words != self.judge.words or not written or \
                not all("attributes" in one for one in written):
            return None
        return reader.read([one["attributes"] for one in written])

    def numbers(self, sets: MetricInput, what: str, skipped: dict[str, str], restorations: bool = False,
                conditions: bool = False) -> Numbers:
        """All that can be measured of a set.

        :param skipped: gets the reasons for what cannot
        :param restorations: only what says something about restorations
        :param conditions: only what is about conditions
        :raises UserError: if there are too few images for a metric
        """
        found: Numbers = {}
        for key, metric in self.metrics.items():
            if not isinstance(metric, Metric) or (restorations and not metric.of_restorations) or \
                    (conditions and not metric.of_conditions):
                continue
            reason = metric.lacks(sets)
            if reason is not None:
                skipped.setdefault(key, reason)
                continue
            for n, least, kind in ((len(sets.samples), metric.min_samples, what),
                                   (len(sets.reference), metric.min_reference, "reference images")):
                if n < least:
                    raise UserError(f"{n} {kind}, too few for metrics.{key}", f"at least {least}",
                                    f"count={least}, more images, or ~metrics.{key}")
            begin = time.monotonic()
            for name, number in metric(sets).items():
                found[self._named(name, len(sets.samples)) if metric.of_features else name] = number
            if time.monotonic() - begin > 5:
                log.info("%s of %s: %.0f s", key, what, time.monotonic() - begin)
        return found

    def pair_metrics(self, image: Sequence[int], skipped: dict[str, str]) -> dict[str, PairMetric]:
        """The metrics of pairs of images of this shape that can be measured, by the names of their numbers.

        :param skipped: gets the reasons for the others
        """
        found: dict[str, PairMetric] = {}
        for key, metric in self.metrics.items():
            if isinstance(metric, PairMetric):
                small = min(image[-2:]) < metric.min_size
                reason = f"images of at least {metric.min_size} px" if small else metric.lacks()
                if reason is None:
                    found[metric.name] = metric
                else:
                    skipped[key] = reason
        return found

    def _named(self, name: str, count: int) -> str:
        """A number with its extractor: ``FID@10k`` or ``fd/classifier@200``."""
        short = f"{count // 1000}k" if count % 1000 == 0 else str(count)
        if name in self.extractor.official:
            return f"{self.extractor.official[name]}@{short}"
        return f"{name}/{self.extractor.name}" + (f"@{short}" if name == "fd" else "")


def check(cfg: DictConfig) -> None:
    """Refuse settings that mean nothing, before any work."""
    for name in ("pairs", "baseline", "overwrite", "report"):
        if not isinstance(cfg[name], bool):
            raise UserError(f"{name}={cfg[name]}", "true or false", f"{name}=true")
    for name, choices in (("split", ("test", "train")), ("rounding", ("uint8", "none"))):
        if cfg[name] not in choices:
            raise UserError(f"{name}={cfg[name]}", " or ".join(choices), f"{name}={choices[0]}")
    if not cfg.run and not cfg.images:
        raise UserError("neither run nor images", "what is to be measured", "run=runs/ddpm_digits/first")
    if not cfg.get("metrics"):
        raise UserError("no metrics", "at least one", "metrics=all, or metrics=quick")
    if cfg.pairs and (not cfg.images or cfg.reference == "data"):
        raise UserError("pairs=true without two folders", "restorations and originals of the same names",
                        "images=FOLDER reference=FOLDER pairs=true")
