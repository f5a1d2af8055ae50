"""An end to a training that has diverged."""

import json
import logging
import math
import shlex
from typing import TYPE_CHECKING

from configs import UserError
from configs.values import require_at_least
from diffusion.runs.files import make_folder, write_whole
from diffusion.training.callbacks.base import StepCallback

if TYPE_CHECKING:
    from lightning import Trainer

    from diffusion.training.module import Training

log = logging.getLogger(__name__)

MOST = 20
"""Batches that are kept; later ones are only counted."""


class Guard(StepCallback):
    """Steps whose loss or gradient is not a finite number, which change nothing
    (:class:`diffusion.training.module.Training`): more than ``bad`` of them in a row end the run.

    They are noticed where the log or a checkpoint is due. The batch of the first is kept as
    ``RUN/skipped/step-00000012.json``: the positions of its images in the order of training, their times t and their
    losses. ``scripts/replay.py`` repeats the step and names the module.

    :param bad: how many in a row are put up with
    :raises UserError: for a number below 0
    """

    def __init__(self, bad: int = 10):
        require_at_least(0, "callbacks.guard", bad=bad)
        self.bad = bad

    def start(self, trainer: "Trainer", training: "Training") -> None:
        def watch(first: int, longest: int) -> None:
            self._report(trainer, training, first, longest)

        training.watch = watch

    def _report(self, trainer: "Trainer", training: "Training", first: int, longest: int) -> None:
        times, losses = training.gather_batch().tolist()
        place = shlex.quote(str(self.run.folder))
        again = f"python scripts/replay.py run={place} step={first}"
        folder = self.run.folder / "skipped"
        if trainer.is_global_zero and len(list(folder.glob("*.json"))) < MOST:
            start = (first - 1) * training.batch
            content = {"step": first, "positions": list(range(start, start + training.batch)), "t": times,
                       "loss": [loss if math.isfinite(loss) else str(loss) for loss in losses]}
            make_folder(folder)
            write_whole(folder / f"step-{first:08d}.json", json.dumps(content))
        if longest > self.bad:
            raise UserError(f"steps that changed nothing, such as step {first}, since their loss or gradient is not "
                            f"finite: {longest} in a row", "a training that does not diverge",
                            f"{again} names the module; optimizer.lr=1e-4 or precision=32, under another run.name")
        log.warning("step %d changed nothing: its loss or gradient is not finite. %s names the module", first, again)
