"""Pictures at intervals, always of the same samples."""

from typing import TYPE_CHECKING

import torch

from configs import UserError, registry
from configs.values import require_at_least
from diffusion.training.callbacks.base import StepCallback, due
from diffusion.training.callbacks.loggers import log_picture

if TYPE_CHECKING:
    from lightning import Trainer

    from diffusion.training.module import Training


class Pictures(StepCallback):
    """Every ``every`` steps what the task of the model shows, with averaged weights: of a restorer a grid of samples
    and rows of estimates (:class:`diffusion.tasks.restore.Restore`), of a classifier nothing. The loggers
    get them, too.

    :param every: steps between two sets of pictures, None for the end only
    :param count: how many samples
    :param times: the times of the rows
    :param sampling: overrides on top of the run's own ``sampling``
    :raises UserError: for numbers out of these ranges
    """

    def __init__(self, every: int | None = 1000, count: int = 16, times: list[float] | None = None,
                 sampling: list[str] | None = None):
        require_at_least(0, "callbacks.pictures", count=count)
        if every is not None:
            require_at_least(1, "callbacks.pictures", every=every)
        if times is not None and (not times or not all(0 < time <= 1 for time in times)):
            raise UserError(f"callbacks.pictures.times={times}", "times in (0, 1]", "callbacks.pictures.times=[0.5,1]")
        self.sampling = list(sampling or [])
        self.every, self.count, self.times = every, count, list(times or [0.2, 0.4, 0.6, 0.8, 1.0])

    def step(self, trainer: "Trainer", training: "Training") -> None:
        wanted = self.count and due(training.step, self.every, training.max_steps)
        if not wanted or not (trainer.is_global_zero or training.sharding):
            return
        task = registry.build("kind", training.model.evaluator.task)
        with training.averaged() as model, torch.no_grad():
            if not trainer.is_global_zero:
                return
            for name, picture in task.show(model, self.held_out, self.count, self.times, self.sampling).items():
                path = picture.save(self.run.pictures / f"{name}-{training.step:08d}.png")
                for logger in trainer.loggers:
                    log_picture(logger, name, path, training.step)
