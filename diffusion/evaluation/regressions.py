"""What a run reads in images of a vector, such as landmarks."""

from pathlib import Path

import torch

from configs import UserError
from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_float
from diffusion.evaluation.bench import EvaluationContext
from diffusion.evaluation.report import Report
from diffusion.evaluation.subjects import Subject
from diffusion.metrics.conditions import explain_each
from diffusion.metrics.evidence import VectorPair
from diffusion.objectives.regression import VectorRegressor


class RegressionSubject(Subject):
    """The held-out images of a run that reads numbers in them: ``R2`` of each, against the mean of the training.

    :raises UserError: for images without these numbers
    """

    def __init__(self, bench: EvaluationContext):
        self.bench = bench
        images, stated = bench.reference()
        self.regressor = bench.model.use(VectorRegressor)
        if not isinstance(images, ImageSet) or self.regressor.signal not in images.signals:
            raise UserError(f"images without {self.regressor.signal}", "the run's own data", "reference=data")
        self.images = images
        self.protocol = {"what": "regression", "count": len(images), "reference": stated, "run": str(bench.cfg.run),
                         "checkpoint": bench.checkpoint, "weights": bench.cfg.weights}

    def measure(self, folder: Path) -> Report:
        seen = torch.cat([self.bench.model.classify(to_float(self.images.batch(rows)[0])).logits
                          for rows in torch.arange(len(self.images)).split(self.bench.cfg.batch)])
        told = self.images.signals[self.regressor.signal].flatten(1).float()
        name = f"{self.bench.cfg.split} split"
        report = Report(self.protocol, [name])
        report.sets[name] = explain_each(VectorPair(told, seen, self.regressor.mean, self.regressor.words))
        return report
