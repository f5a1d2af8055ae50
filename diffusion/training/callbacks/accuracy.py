"""How much of held-out images a classifier gets right."""

import logging
from typing import TYPE_CHECKING

from configs.values import require_at_least
from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_float
from diffusion.training.callbacks.base import StepCallback, due
from diffusion.training.callbacks.log import append, rewind

if TYPE_CHECKING:
    from lightning import Trainer

    from diffusion.model import Model
    from diffusion.training.module import Training

log = logging.getLogger(__name__)


class Accuracy(StepCallback):
    """Every ``every`` steps: the share of the held-out images, clean, that the averaged weights put into their class,
    or the share of their attributes that these weights get right, or of the variance of their numbers that they
    explain; a row of ``accuracy.csv``, the loggers, a line.

    :param every: steps between two rows, None for the end only
    """

    needs_held_out = True

    def __init__(self, every: int | None = 1000):
        if every is not None:
            require_at_least(1, "callbacks.accuracy", every=every)
        self.every = every

    def start(self, trainer: "Trainer", training: "Training") -> None:
        _ = training.model.classifier  # refuses a restorer
        self._file = self.run.folder / "accuracy.csv"
        if trainer.is_global_zero:
            self.run.lock.check()
            rewind(self._file, training.step)

    def step(self, trainer: "Trainer", training: "Training") -> None:
        if not due(training.step, self.every, training.max_steps) or not trainer.is_global_zero:
            return
        with training.averaged() as model:
            share = accuracy(model, self.held_out)
        self.run.lock.check()
        append(self._file, {"step": training.step, "accuracy": share})
        for logger in trainer.loggers:
            logger.log_metrics({"test/accuracy": share}, step=training.step)
        log.info("step %d/%d  %.2f%% of %s%d held-out images %s", training.step, training.max_steps, 100 * share,
                 "" if model.classifier.signal == "label" else f"the {model.classifier.signal} of ", len(self.held_out),
                 model.classifier.scored)


def accuracy(model: "Model", images: ImageSet) -> float:
    """The share of the images that the model puts into their class, or the mean share of their attributes, or of the
    variance of their numbers."""
    classifier, right = model.classifier, 0.0
    for pixels, signals in images.chunks():
        logits = model.classify(to_float(pixels)).logits
        right += classifier.grade_logits(logits, signals[classifier.signal].cpu()).sum().item()
    return right / len(images)
