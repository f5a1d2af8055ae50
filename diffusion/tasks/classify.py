"""Classifiers: nothing is drawn with them, and their accuracy is measured."""

from typing import TYPE_CHECKING

from diffusion.tasks.base import Task

if TYPE_CHECKING:
    from diffusion.evaluation.bench import EvaluationContext
    from diffusion.evaluation.subjects import Subject


class Classify(Task):
    """A :class:`diffusion.objectives.classification.NetworkClassifier`."""

    def choose_subject(self, context: "EvaluationContext") -> "Subject":
        from diffusion.evaluation.subjects import ClassifierSubject

        return ClassifierSubject(context)
