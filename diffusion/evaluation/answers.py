"""What a judge of several questions gets right."""

from pathlib import Path

import torch

from configs import UserError
from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_float
from diffusion.evaluation.bench import EvaluationContext
from diffusion.evaluation.report import Report
from diffusion.evaluation.subjects import Subject
from diffusion.metrics.intervals import mean, share
from diffusion.objectives.answers import AnswerClassifier

MOST_FREQUENT = "the training's most frequent answers"


class AnswersSubject(Subject):
    """The held-out images of a run that answers questions about them. Beside it stands what needs no network: the most
    frequent answer of the training to each.

    :raises UserError: for images without answers, or with other questions than the run's
    """

    def __init__(self, bench: EvaluationContext):
        self.bench = bench
        images, stated = bench.reference()
        self.classifier = bench.model.use(AnswerClassifier)
        if not isinstance(images, ImageSet) or \
                bench.data.described.get("answers", {}).get("words") != self.classifier.words:
            raise UserError("images without answers to what the run was asked in its training",
                            ", ".join(self.classifier.questions), "reference=data")
        self.images = images
        self.protocol = {"what": "classification", "count": len(images), "reference": stated,
                         "run": str(bench.cfg.run), "checkpoint": bench.checkpoint, "weights": bench.cfg.weights}

    def measure(self, folder: Path) -> Report:
        logits = torch.cat([self.bench.model.classify(to_float(self.images.batch(rows)[0])).logits
                            for rows in torch.arange(len(self.images)).split(self.bench.cfg.batch)])
        truth = self.images.signals["answers"]
        guess = self.bench.data.split("train").signals["answers"].mode(0).values
        right = {f"{self.bench.cfg.split} split": self.classifier.grade_each(logits, truth),
                 MOST_FREQUENT: (truth == guess).double().masked_fill(truth < 0, torch.nan)}
        report = Report(self.protocol, [f"{self.bench.cfg.split} split"])
        for name, each in right.items():
            numbers = {f"accuracy {question}": share(column[~column.isnan()] > 0)
                       for question, column in zip(self.classifier.questions, each.T, strict=True)
                       if not column.isnan().all()}
            report.sets[name] = {"accuracy": mean(each.nanmean(1)), **numbers}
        return report
