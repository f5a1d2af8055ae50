"""A page in the run folder that shows how the training goes."""

import logging
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from configs.values import require_at_least
from diffusion.reports.curves import plot_log, read_log
from diffusion.reports.pages import save_page, write_number
from diffusion.reports.sheets import embed
from diffusion.training.callbacks.base import StepCallback

if TYPE_CHECKING:
    from lightning import Trainer

    from diffusion.training.module import Training

log = logging.getLogger(__name__)

SHARE = 0.005
"""Of the time of a training, at most, goes into its page."""


class Page(StepCallback):
    """``RUN/index.html``: how far the training is, curves of all that is logged, the latest pictures, the settings. It
    is one file that loads nothing, so that a browser shows it from a disk, and it reloads itself while the training
    goes on.

    It is written whole or not at all, by the main process alone, and so seldom that it takes less than :data:`SHARE` of
    the time. What is wrong with a page, such as a full disk, is said once; the training goes on.

    :param every: seconds between two versions, at least
    :raises UserError: for a number below 1
    """

    def __init__(self, every: int = 5):
        require_at_least(1, "callbacks.page", every=every)
        self.every = every
        self._begin, self._next, self._begin_step = 0.0, 0.0, math.inf  # what is refused before a step has no page
        self._failed = False

    def start(self, trainer: "Trainer", training: "Training") -> None:
        self._begin, self._begin_step = time.monotonic(), training.step
        self._next = self._begin

    def step(self, trainer: "Trainer", training: "Training") -> None:
        now = time.monotonic()
        if now >= self._next and trainer.is_global_zero:
            self._write(training, "training")
            self._next = now + max(self.every, (time.monotonic() - now) / SHARE)

    def end(self, trainer: "Trainer", training: "Training") -> None:
        if trainer.is_global_zero and training.step > self._begin_step:
            self._write(training, "done" if training.step >= training.max_steps else "stopped")

    def _write(self, training: "Training", status: str) -> None:
        rate = (time.monotonic() - self._begin) / max(1, training.step - self._begin_step)
        left = rate * (training.max_steps - training.step)
        try:
            self.run.lock.check()
            columns = read_log(self.run.metrics)
            save_page(self.run.folder / "index.html", "training.html",
                      title="/".join(self.run.folder.parts[-2:]), status=status, step=training.step,
                      max_steps=training.max_steps, reload=self.every if status == "training" else None,
                      left=write_duration(left) if status == "training" else None,
                      facts=[(name, write_number(values[-1])) for name, values in columns.items() if name != "step"],
                      plots=[plot.draw() for plot in plot_log(self.run.folder)],
                      pictures=list(find_pictures(self.run.pictures)),
                      settings=OmegaConf.to_yaml(training.model.config),
                      environment=(self.run.folder / "environment.json").read_text(),
                      written=time.strftime("%Y-%m-%d %H:%M:%S"))
        except Exception as error:  # whatever it is, the training is worth more than its page
            if not self._failed:
                log.warning("no index.html: %s", error)
            self._failed = True


def find_pictures(folder: Path) -> Iterator[tuple[str, int, str]]:
    """The latest picture of each name in a folder of ``samples-00001000.png``: name, step, and the address that has the
    whole file in it."""
    found = {}
    for path in sorted(folder.glob("*.png")):
        if name := re.fullmatch(r"(.+)-(\d+)\.png", path.name):
            found[name[1]] = (int(name[2]), path)
    for name, (step, path) in found.items():
        yield name, step, embed(path.read_bytes())


def write_duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: ``1:02:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
