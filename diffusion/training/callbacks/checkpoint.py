"""Saving at intervals, at the end, and when a signal asks for it."""

import logging
import signal
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from configs import UserError
from diffusion.runs import checkpoint
from diffusion.training.callbacks.base import StepCallback, due

if TYPE_CHECKING:
    from lightning import Trainer

    from diffusion.training.module import Training

log = logging.getLogger(__name__)


class Checkpoint(StepCallback):
    """A checkpoint every ``every`` steps, of which the newest ``keep`` and the milestones stay.

    Ctrl-C, SIGTERM and SIGUSR1 set a flag: the next optimizer step is saved, then the run stops. A second Ctrl-C
    stops at once.

    :param every: steps between two checkpoints; 0 saves at the end only
    :param keep: how many of the newest stay; 0 keeps all
    :param milestones: steps whose checkpoints are saved and stay for good
    :raises UserError: for numbers below 0; during the training, instead of saving weights that are not finite, so that
        the good checkpoints stay, or in a run that another process has taken over
    """

    def __init__(self, every: int = 1000, keep: int = 2, milestones: list[int] | None = None):
        for name, value, meaning in (("every", every, "saves at the end only"), ("keep", keep, "keeps all")):
            if value < 0:
                raise UserError(f"callbacks.checkpoint.{name}={value}", "0 or more",
                                f"callbacks.checkpoint.{name}=0, which {meaning}")
        self.every, self.keep, self.milestones = every, keep, list(milestones or [])
        self.asked: int | None = None
        self._handlers: dict[int, Any] = {}

    def start(self, trainer: "Trainer", training: "Training") -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._handlers[number] = signal.signal(number, self._ask)

    def step(self, trainer: "Trainer", training: "Training") -> None:
        wanted = due(training.step, self.every, training.max_steps) or training.step in self.milestones
        # A signal reaches the ranks at different steps, or one of them only: they decide together.
        asked = trainer.strategy.reduce_boolean_decision(self.asked is not None, all=False)
        if wanted or asked:
            training.review()
            require_finite(training)
            content = training.state()  # on all ranks: each may have a shard of it
            if trainer.is_global_zero:
                self.run.lock.check()
                checkpoint.save(self.run.checkpoints, training.step, content)
                checkpoint.prune(self.run.checkpoints, self.keep, self.milestones)
            trainer.strategy.barrier()
        if asked:
            log.info("saved step %d; the same command goes on from here", training.step)
            trainer.should_stop = True

    def end(self, trainer: "Trainer", training: "Training") -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number
        log.info("%s: saving after this step, then stopping", signal.Signals(number).name)


def require_finite(training: "Training") -> None:
    """Refuse weights that are not finite numbers.

    :raises UserError: naming the first
    """
    for name, value in training.weights.named_parameters():
        if value.requires_grad and not torch.isfinite(value).all():
            raise UserError(f"weights that are not finite at step {training.step}, such as {name}",
                            "a training that does not diverge: its last good checkpoint stays",
                            "optimizer.lr=1e-4 or precision=32, under another run.name")
