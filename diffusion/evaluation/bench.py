"""What is at hand for an evaluation: model, data, metrics, and the networks that look at images."""

import contextlib
import logging
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from omegaconf import DictConfig
from torch import Tensor

from configs import UserError, construct, registry
from configs.values import to_plain
from degradations.randomness import bits
from diffusion.data.base import Data, ImageSet
from diffusion.data.files.arrays import name_rows
from diffusion.data.files.images import Files, size
from diffusion.evaluation.report import Numbers
from diffusion.evaluation.together import Together
from diffusion.loading import build_data, load
from diffusion.metrics.base import Features, Images, Metric, MetricInput, PairMetric
from diffusion.metrics.extractors import classifier
from diffusion.metrics.extractors.base import Extractor
from diffusion.metrics.features import features, fingerprint
from diffusion.metrics.intervals import assign_groups
from diffusion.model import Model
from diffusion.recipe import Recipe
from diffusion.runs.run import Run
from diffusion.sampling.manifest import read_manifest
from models.attributes import AttributeReader

log = logging.getLogger(__name__)

JUDGED = ("attributes", "answers")
"""Signals of several things at once, of which there are judges."""


class EvaluationContext:
    """The parts that the ``evaluate`` config names, built.

    :param gpu: that of this process, where several share a machine
    :ivar metrics: by their keys in the config
    :ivar files: the images that are measured, for ``images=FOLDER``
    :ivar manifest: that of ``files``, if ``sample.py`` has made them
    :ivar run: the run, if one is known
    :ivar together: the features of the samples, where several processes have extracted them
    :raises UserError: for settings that mean nothing, or parts that are not there
    """

    def __init__(self, cfg: DictConfig, gpu: str | None = None):
        check(cfg)
        self.cfg, self.packages = cfg, (*registry.trusted(), *cfg.allow)
        self.device: str = cfg.device or gpu or ("cuda" if torch.cuda.is_available() else "cpu")
        self.metrics: dict[str, Metric | PairMetric] = {
            key: construct(node, role=(Metric, PairMetric)) for key, node in to_plain(cfg.metrics).items() if node}
        self.files, self.manifest = find_images(cfg.images) if cfg.images else (None, {})
        known = cfg.run or self.manifest.get("run")
        self.run = Run.open(known) if known and (cfg.run or Run.at(known).exists) else None
        self._model: Model | None = None
        self._data: Data | None = None
        self.together: Together | None = None
        if self.run is not None:
            self._model = load(self.run.place, weights=cfg.weights, step=cfg.step, device=cfg.device or gpu,
                               allow=cfg.allow)
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
        """The name of the checkpoint that the model is from: its step, and a part of its checksum."""
        assert self.run is not None
        return f"step-{self.model.step:08d}.{self.run.steps[self.model.step]}.pt"

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
            choice = next(filter(None, (classifier.find_classifier(root, data) for root in roots)), None)
            if choice is None:
                log.info("no classifier of these images in %s: nothing judges their classes. train.py makes one, with "
                         "this run's data: experiment=classifier_digits (or _mnist, _cifar10, _celeba64), or "
                         "experiment=judge_scenes_digits (or _mnist) for scenes", " or ".join(map(str, roots)))
                return None
        judge = classifier.ClassifierExtractor(str(choice), self.device)
        log.info("judge: %s", judge.run)
        return judge

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
        networks = {"extractor": self.extractor} | ({"judge": self.judge} if self.judge else {})
        return {"what": what, "count": count, "run": str(self.run.place) if self.run else None, **more,
                "reference": reference,
                **{key: {"name": n.name, "identity": n.identity, "resizing": n.resizing}
                   for key, n in networks.items()},
                "metrics": {key: to_plain(self.cfg.metrics[key]) for key in self.metrics},
                "pixels": "uint8, round((x + 1) 127.5)"}

    def sets(self, images: Images, what: str, reference: Features, like: Images | None = None,
             together: Together | None = None, **more: Any) -> MetricInput:
        """A set of images as metrics see it.

        :param what: the images in words
        :param like: images of which these have the conditions; None takes their own
        :param together: has the features, if several processes have extracted them
        :param more: ``train`` and ``held_out``
        """
        def look(extractor: Extractor) -> Features:
            return features(images, extractor, what) if together is None else together.collect(extractor)

        found = look(self.extractor)
        labels, conditions = (like or images).labels, (like or images).conditions
        predictions = None
        of_classes = self.judge is None or self.judge.signal == "label"
        asked = labels if of_classes else self._find_truth(like or images)
        if self.judge is not None and asked is not None:
            seen = found if self.judge is self.extractor else look(self.judge)
            if of_classes:
                predictions = classifier.take_predictions(seen)
            else:
                assert seen.attributes is not None
                grade, order = self.judge.classifier.grade_each, shuffle(len(asked))
                more |= {"questions": self.judge.classifier.questions, "right": grade(seen.attributes, asked),
                         "right_shuffled": grade(seen.attributes, asked[order])}
        return MetricInput(images, found, reference, assign_groups(len(found), conditions), labels, conditions,
                           predictions, **more)

    def _find_truth(self, images: Images) -> Tensor | None:
        """What the judge should say about a split of the run's data, or about samples that were asked for; None unless
        it is asked about what it knows."""
        assert self.judge is not None
        if self.run is None:
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

    def numbers(self, sets: MetricInput, what: str, skipped: dict[str, str], restorations: bool = False) -> Numbers:
        """All that can be measured of a set.

        :param skipped: gets the reasons for what cannot
        :param restorations: only what says something about restorations
        :raises UserError: if there are too few images for a metric
        """
        found: Numbers = {}
        for key, metric in self.metrics.items():
            if not isinstance(metric, Metric) or (restorations and not metric.of_restorations):
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


def shuffle(n: int) -> Int64[Tensor, " n"]:
    """An order of n rows that has nothing to do with them, always the same."""
    return torch.from_numpy(bits(np.arange(n), "shuffle").argsort())


def check(cfg: DictConfig) -> None:
    """Refuse settings that mean nothing, before any work."""
    for name in ("pairs", "baseline", "overwrite"):
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


def find_images(root: str, option: str = "images") -> tuple[Files, dict[str, Any]]:
    """The images of a folder or archive, and the manifest if ``sample.py`` has made them; then they are those that it
    names, in its order, with their classes.

    :param option: the override that names ``root``, for messages
    :raises UserError: if there are none
    """
    place = Path(str(root)).expanduser()
    manifest = read_manifest_of(place, f"{option}=ANOTHER_FOLDER, or remove manifest.json to measure all images there")
    if manifest is None:
        return Files(place, option=option), {}
    samples = manifest["samples"]
    if "archive" in manifest:
        place = place if place.is_file() else place / manifest["archive"]
    if place.suffix == ".npz":  # whose images have no names
        samples = [{**s, "file": row} for s, row in zip(samples, name_rows(len(samples)), strict=True)]
        manifest = manifest | {"samples": samples}
    return Files(place, [s["file"] for s in samples], [s["condition"] for s in samples], option), manifest


def read_manifest_of(place: Path, fix: str) -> dict[str, Any] | None:
    """The manifest of a folder of samples, or of the archive of one; None if there is none.

    :param fix: for messages
    :raises UserError: if that of a folder is not as ``sample.py`` writes it
    """
    if not place.is_file():
        return read_manifest(place, fix)
    with contextlib.suppress(UserError):  # a file of somebody else, which says nothing of the archive
        manifest = read_manifest(place.parent, fix) or {}
        return manifest if manifest.get("archive") == place.name else None
    return None


def require_equal_sizes(images: Images, reference: Images, what: str) -> None:
    """Refuse a reference of another size or mode.

    :raises UserError: saying what both are
    """
    if images.shape[1:] != reference.shape[1:]:
        raise UserError(f"{what} of {size(images.shape)}, and a reference of {size(reference.shape)}",
                        "images of one size and mode", "reference=FOLDER with such images, or the run that made them")
