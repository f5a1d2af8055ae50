"""What can be evaluated: samples, folders of images, classifiers, and, in files of their own, restorations and
reconstructions. Each states its protocol before any work, and then measures."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig

from configs import UserError, compose
from configs.values import to_plain
from diffusion.data.base import ImageSet
from diffusion.data.files.images import Files
from diffusion.data.pixels import to_float
from diffusion.evaluation.bench import EvaluationContext, Look
from diffusion.evaluation.cost import count_sample_flops
from diffusion.evaluation.evidence import find_asked, gather_evidence, tell_held_out, tell_samples
from diffusion.evaluation.folders import find_images, pair_names, require_equal_sizes
from diffusion.evaluation.illustrate import (
    compare_classes,
    picture_conditions,
    picture_nearest,
    picture_set,
    picture_verdicts,
)
from diffusion.evaluation.losses import add_losses, choose_evenly
from diffusion.evaluation.pair_scores import PairScores
from diffusion.evaluation.report import Report
from diffusion.evaluation.together import PARTS, Together
from diffusion.metrics.base import Features, Images, Metric, MetricInput
from diffusion.metrics.evidence import Evidence
from diffusion.metrics.features import features, fingerprint
from diffusion.metrics.intervals import mean, share
from diffusion.pictures import save_grid
from diffusion.reports.gallery import Gallery
from diffusion.runs.share import ALONE, Share
from diffusion.sampling.command import sample
from diffusion.sampling.manifest import describe_part, order_tables, read_manifest
from diffusion.sampling.selection import caption_conditions

log = logging.getLogger(__name__)

SHARED = ("run", "sampler", "guidance", "prior", "edit", "seed", "condition", "weights", "step", "start", "batch",
          "device", "data", "allow", "pool", "precision", "compile")
"""Settings that ``sample.py`` has too."""
SUSPECTS = 8
"""Samples that are shown beside the nearest image of the training."""


class Subject(ABC):
    """Something to be measured.

    :ivar protocol: all on which the numbers depend
    :cvar divisible: whether several processes can share the work before the measuring, see :meth:`share`
    """

    divisible: ClassVar[bool] = False

    protocol: dict[str, Any]

    def share(self, folder: Path, share: Share) -> bool:
        """Do what is this process's part of the work; whether everything is there to be measured then.

        :param folder: where it may be left
        :param share: which of several processes this one is
        """
        return True

    def illustrate(self) -> Gallery:
        """The pictures of the report, once :meth:`measure` is done."""
        return Gallery()

    @abstractmethod
    def measure(self, folder: Path) -> Report:
        """The numbers.

        :param folder: where pictures may be left
        """


class ImagesSubject(Subject):
    """A folder of images, against the reference."""

    what = "images"

    def __init__(self, bench: EvaluationContext):
        self.bench = bench
        self.reference, stated = bench.reference()
        count, stated_images = self.stated()
        self.protocol = bench.protocol(self.what, count, stated, split=bench.cfg.split, **stated_images)

    def stated(self) -> tuple[int, dict[str, Any]]:
        """How many images there are, and which, for the protocol."""
        images = self.bench.files
        assert images is not None
        require_equal_sizes(images, self.reference, self.what)
        return len(images), {"images": {"what": str(self.bench.cfg.images), "stamp": images.stamp}}

    def measure(self, folder: Path) -> Report:
        bench, (images, cost) = self.bench, self.found()
        require_equal_sizes(images, self.reference, self.what)
        reference = features(self.reference, bench.extractor, "the reference", self.protocol["reference"]["hash"])
        more = self._real(reference) if bench.run is not None else {}
        sets = bench.sets(images, self.what, reference, None, bench.together,
                          lambda look: self.gather(images, look), **more)
        self.measured = sets
        report = Report(self.protocol, [self.what], cost=cost)
        report.sets[self.what] = bench.numbers(sets, self.what, report.skipped)
        if sets.train is not None:
            save_suspects(sets, bench.data.split("train"), folder)
        if bench.run is not None and bench.cfg.baseline and bench.cfg.reference == "data":
            self._baseline(report, reference, images.shape[0])
        self.add(report, reference)
        return report

    def illustrate(self) -> Gallery:
        sets = self.measured
        captions, worded = self.caption(sets.images)
        names = self.bench.data.class_names if self.bench.run is not None else None
        gallery = picture_set(sets, captions, names, worded)
        if sets.train is not None:
            picture_nearest(gallery, sets, self.bench.data.split("train"), SUSPECTS)
        return gallery

    def caption(self, images: Images) -> tuple[Sequence[str], bool]:
        """What each image is, in words, and whether these are to be seen."""
        return getattr(images, "names", ()), False

    def gather(self, images: Images, look: Look) -> Evidence:
        """What the images were asked to show, beside what is seen in them; nothing is known of a folder."""
        return Evidence()

    def add(self, report: Report, reference: Features) -> None:
        """Further columns."""

    def found(self) -> tuple[Images, dict[str, dict[str, Any]]]:
        """The images, and what they have cost, by set."""
        assert self.bench.files is not None
        return self.bench.files, {}

    def _real(self, reference: Features) -> dict[str, Features]:
        """Features of the images of the training and of the held-out ones, for the metrics that look at them."""
        bench = self.bench
        if not any(getattr(metric, "of_train", False) for metric in bench.metrics.values()):
            return {}
        found = {}
        for key, name, what in (("train", "train", "the training images"), ("held_out", "test", "the held-out images")):
            if bench.cfg.reference == "data" and bench.cfg.split == name:
                found[key] = reference
            else:
                images = bench.data.split(name)
                found[key] = features(images, bench.extractor, what, fingerprint(images))
        return found

    def _baseline(self, report: Report, reference: Features, count: int) -> None:
        """As many real images of the other split: what a perfect model would have."""
        name, what = ("train", "training images") if self.bench.cfg.split == "test" else ("test", "held-out images")
        images = choose_evenly(self.bench.data.split(name), count)
        sets = self.bench.sets(images, what, reference)
        report.sets[what] = self.bench.numbers(sets, what, {})


class SamplesSubject(ImagesSubject):
    """Samples of a run, drawn by ``sample.py`` into its folder, where they stay: what is there is not drawn again."""

    what = "samples"
    divisible = True

    def stated(self) -> tuple[int, dict[str, Any]]:
        bench = self.bench
        pool = {} if bench.cfg.pool is None else {"pool": bench.cfg.pool}
        return bench.cfg.count, state_sampling(bench.cfg, bench.cfg.sampler) | {"checkpoint": bench.checkpoint} | pool

    def illustrate(self) -> Gallery:
        gallery = super().illustrate()
        picture_conditions(gallery, self.bench, self.measured.images)
        return gallery

    def caption(self, images: Images) -> tuple[Sequence[str], bool]:
        written = getattr(images, "written", [])
        captions = caption_conditions(self.bench.model.readers(self.bench.recipe), written)
        return captions, bool(captions) and {*written[0]} != {"label"}

    @property
    def of_conditions(self) -> bool:
        """Whether one of the metrics is about what was asked for, and something may have been."""
        bench = self.bench
        return bool(bench.model.readers()) and any(isinstance(metric, Metric) and metric.of_conditions
                                                   for metric in bench.metrics.values())

    def gather(self, images: Images, look: Look) -> Evidence:
        if not self.of_conditions:
            return Evidence()
        return gather_evidence(self.bench, find_asked(self.bench, images, tell_samples(self.bench)), look)

    def add(self, report: Report, reference: Features) -> None:
        """What held-out images themselves would have of the metrics of conditions: what a perfect model would. And the
        losses."""
        bench = self.bench
        if self.of_conditions and bench.cfg.baseline and bench.data.holds_out:
            images, what = choose_evenly(bench.data.split("test"), bench.cfg.count), "held-out images"
            asked = find_asked(bench, images, tell_held_out(bench, images))
            if asked.known and len(images) > 1:
                sets = bench.sets(images, what, reference, gather=lambda look: gather_evidence(bench, asked, look))
                report.sets[what] = report.sets.get(what, {}) | bench.numbers(sets, what, {}, conditions=True)
        add_losses(bench, report)

    def share(self, folder: Path, share: Share) -> bool:
        bench = self.bench
        samples = self._draw(share)
        bench.together = Together(folder / PARTS, samples, [f"{i:06d}.png" for i in range(bench.cfg.count)])
        looking = dict.fromkeys(filter(None, (bench.extractor, bench.judge, bench.embedding)))
        there = bench.together.extract(looking, share)
        manifest = read_manifest(samples, "overwrite=true") or {"samples": []}
        return there and {*bench.together.names} <= {entry["file"] for entry in manifest["samples"]}

    def _draw(self, share: Share = ALONE) -> Path:
        """Draw the samples, or this process's part of them; gives their folder."""
        wanted: Any = compose("sample", ["run=none"])
        for key in SHARED:
            wanted[key] = self.bench.cfg[key]
        wanted.samples = f"0-{self.bench.cfg.count - 1}"
        return sample(wanted, share)

    def found(self) -> tuple[Files, dict[str, dict[str, Any]]]:
        bench = self.bench
        folder = self._draw()
        _, manifest = find_images(str(folder))
        entries = [s for s in manifest["samples"] if s["index"] < bench.cfg.count]
        count = len(manifest["samples"])
        each = manifest.get("evaluations_per_sample")
        others = manifest.get("evaluations_of_other_runs") or None
        cost = {"evaluations/sample": each, "of other runs": others,
                "seconds/sample": round(manifest["seconds"] / count, 3),
                "GB at the peak": manifest.get("peak_memory_gb"), "device": str(bench.model.device)}
        if each is not None:
            cost["GFLOP/sample"] = round(count_sample_flops(bench.model, each) / 1e9, 3)
        return (Files(folder, [s["file"] for s in entries], [s["condition"] for s in entries]),
                {self.what: {key: value for key, value in cost.items() if value is not None}})


class PairsSubject(Subject):
    """A folder of restorations against a folder of originals, by the photo that the manifest of ``sample.py`` names,
    else by name, of which the ending may differ."""

    def __init__(self, bench: EvaluationContext):
        self.bench = bench
        reference, stated = bench.reference()
        assert isinstance(reference, Files)
        assert bench.files is not None
        self.originals, self.restored = reference, bench.files
        require_equal_sizes(self.restored, self.originals, "images")
        sources = {one["file"]: one.get("source") for one in bench.manifest.get("samples", ())}
        partners = pair_names(self.restored.names, self.originals.names, sources)
        if partners != self.originals.names:
            self.originals = Files(self.originals.root, partners, option="reference")
        self.protocol = bench.protocol("pairs", len(self.restored), stated,
                                       images={"what": str(bench.cfg.images), "stamp": self.restored.stamp})

    def measure(self, folder: Path) -> Report:
        report = Report(self.protocol, ["images"])
        outcome = PairScores(self.bench.pair_metrics(self.restored.shape, report.skipped), self.originals, keep=False)
        for rows in torch.arange(len(self.restored)).split(self.bench.cfg.batch):
            outcome.add(to_float(self.restored.batch(rows)[0]), rows)
        reference = features(self.originals, self.bench.extractor, "the originals")
        sets = self.bench.sets(self.restored, "images", reference, self.originals)
        report.sets["images"] = outcome.numbers() | self.bench.numbers(sets, "images", report.skipped, True)
        return report


class ClassifierSubject(Subject):
    """The held-out images of a run that classifies."""

    pictures: Gallery

    def illustrate(self) -> Gallery:
        return self.pictures

    def __init__(self, bench: EvaluationContext):
        self.bench = bench
        self.images, stated = bench.reference()
        self.protocol = {"what": "classification", "count": len(self.images), "reference": stated,
                         "run": str(bench.cfg.run), "checkpoint": bench.checkpoint, "weights": bench.cfg.weights}

    def measure(self, folder: Path) -> Report:
        if self.images.labels is None:
            raise UserError("images without classes for a classifier", "labelled images", "reference=data")
        answers = [self.bench.model.classify(to_float(self.images.batch(rows)[0])).logits
                   for rows in torch.arange(self.images.shape[0]).split(self.bench.cfg.batch)]
        logits, labels = torch.cat(answers), self.images.labels
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        names = self.bench.data.class_names if self.bench.cfg.reference == "data" else None
        right = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        self.pictures = picture_verdicts(self.images, right, compare_classes(labels, logits.argmax(1), right, names))
        name = f"{self.bench.cfg.split} split"
        report = Report(self.protocol, [name])
        report.sets[name] = {"accuracy": share(logits.argmax(dim=1) == labels),
                             "cross-entropy": mean(loss)}
        return report


def state_sampling(cfg: DictConfig, sampler: DictConfig | None) -> dict[str, Any]:
    """How images are made, for the protocol: in words, and ``composed``, as the config has it."""
    plain = to_plain(cfg)
    nodes = {key: plain[key] or None for key in ("guidance", "prior", "edit", "task")}
    nodes |= {"sampler": to_plain(sampler)} if sampler is not None else {}
    words = {key: describe_part(node) for key, node in nodes.items() if node or key not in ("edit", "task")}
    return words | {"weights": cfg.weights, "start": cfg.start, "seed": cfg.seed, "condition": plain["condition"],
                    "composed": {key: order_tables(node) for key, node in nodes.items() if node}}


def save_suspects(sets: MetricInput, train: ImageSet, folder: Path) -> None:
    """``nearest.png``: the samples that are nearest to an image of the training, above that image."""
    distances, indices = sets.nearest_train
    rows = distances.argsort()[:SUSPECTS]
    images = torch.cat([to_float(sets.images.batch(rows)[0]), to_float(train.batch(indices[rows])[0])])
    save_grid(images, folder / "nearest.png", len(rows), rows=["sample", "nearest of the training"])
