"""What a classifier of attributes gets right."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from configs import UserError
from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_float
from diffusion.evaluation.bench import EvaluationContext
from diffusion.evaluation.report import Numbers, Report
from diffusion.evaluation.subjects import Subject
from diffusion.metrics.intervals import balanced_share, mean, share
from diffusion.objectives.attributes import AttributeClassifier

MAJORITY = "the training's majority"


class AttributesSubject(Subject):
    """The held-out images of a run that classifies attributes. Beside it stands the answer that needs no network: of
    each attribute, what is true of most images of the training.

    :raises UserError: for images without attributes, or with others than the run's
    """

    def __init__(self, bench: EvaluationContext):
        self.bench = bench
        images, stated = bench.reference()
        if not isinstance(images, ImageSet):
            raise UserError("images without attributes for a classifier of them", "the run's own data",
                            "reference=data")
        self.images, self.words = images, bench.model.use(AttributeClassifier).words
        if bench.data.described.get("attributes", {}).get("words") != self.words:
            raise UserError("images with other attributes than those of the training", f"{', '.join(self.words)}",
                            "data.root=WHERE_THEY_WERE")
        self.protocol = {"what": "classification", "count": len(self.images), "reference": stated,
                         "run": str(bench.cfg.run), "checkpoint": bench.checkpoint, "weights": bench.cfg.weights}

    def measure(self, folder: Path) -> Report:
        logits = torch.cat([self.bench.model.classify(to_float(self.images.batch(rows)[0])).logits
                            for rows in torch.arange(len(self.images)).split(self.bench.cfg.batch)])
        truth = self.images.signals["attributes"]
        majority = self.bench.data.split("train").signals["attributes"].mean(0) > 0.5
        name, positive = f"{self.bench.cfg.split} split", truth > 0
        report = Report(self.protocol, [name])
        loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
        report.sets[name] = {**measure_accuracy((logits > 0) == positive, positive, self.words),
                             "cross-entropy": mean(loss)}
        report.sets[MAJORITY] = measure_accuracy(majority == positive, positive, self.words)
        report.skipped = {f"balanced accuracy {word}": "images with and without it"
                          for word in self.words if f"balanced accuracy {word}" not in report.sets[name]}
        return report


def measure_accuracy(right: Bool[Tensor, "n a"], positive: Bool[Tensor, "n a"], words: Sequence[str]) -> Numbers:
    """The accuracy over all attributes and of each: the share of right answers, and balanced, the mean of this share
    among the images with the attribute and among those without. Of attributes that all images have or lack there is no
    balanced one.

    :param right: which answers are right
    :param positive: which attributes the images have
    :param words: names of the attributes
    """
    both = {word: balanced_share(right[:, place], positive[:, place]) for place, word in enumerate(words)
            if 0 < int(positive[:, place].sum()) < len(positive)}
    found: Numbers = {"accuracy": mean(right.double().mean(1))}
    if both:
        found["balanced accuracy"] = mean(torch.stack([number.pseudo_values for number in both.values()]).mean(0))
    for place, word in enumerate(words):
        found[f"accuracy {word}"] = share(right[:, place])
        if word in both:
            found[f"balanced accuracy {word}"] = both[word]
    return found
