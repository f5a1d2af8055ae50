"""Classifiers: nothing is drawn with them, and their accuracy is measured."""

from typing import TYPE_CHECKING

from diffusion.tasks.base import Task

if TYPE_CHECKING:
    from diffusion.evaluation.bench import EvaluationContext
    from diffusion.evaluation.subjects import Subject


class Classify(Task):
    """A :class:`diffusion.objectives.classification.NetworkClassifier`, of classes, attributes or answers, or of the
    numbers of a vector."""

    def choose_subject(self, context: "EvaluationContext") -> "Subject":
        from diffusion.evaluation.answers import AnswersSubject
        from diffusion.evaluation.attributes import AttributesSubject
        from diffusion.evaluation.regressions import RegressionSubject
        from diffusion.evaluation.subjects import ClassifierSubject
        from diffusion.objectives.regression import VectorRegressor

        if isinstance(context.model.evaluator, VectorRegressor):
            return RegressionSubject(context)
        subjects = {"label": ClassifierSubject, "attributes": AttributesSubject, "answers": AnswersSubject}
        return subjects[context.model.classifier.signal](context)
