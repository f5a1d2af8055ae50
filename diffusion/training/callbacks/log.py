"""Metrics to a CSV file, to Lightning's loggers, and to the person who waits."""

import csv
import io
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from configs.values import require_at_least
from diffusion.runs.files import append_whole, write_whole
from diffusion.training.callbacks.base import StepCallback, due
from diffusion.training.module import BINS

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer

    from diffusion.training.module import Training

log = logging.getLogger(__name__)


class Log(StepCallback):
    """Mean loss, learning rate and speed every ``every`` steps: a row of ``metrics.csv``, the loggers, the bar.

    The loss is that of all images since the last row, whether or not the run was restarted in between, and also by
    time: ``loss_t0.0-0.2`` is that of the images with t in (0, 0.2], empty if there were none. After these comes what
    the criterion logs besides. ``skipped`` is the number of steps since the last row that changed nothing, since their
    loss or gradient was not finite; they are in no mean.

    :param every: steps between two rows
    :raises UserError: for a number below 1
    """

    def __init__(self, every: int = 50):
        require_at_least(1, "callbacks.log", every=every)
        self.every = every
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._text = ""

    def start(self, trainer: "Trainer", training: "Training") -> None:
        self._busy, self._from = 0.0, training.step
        self._begin, self._begin_step = time.perf_counter(), training.step
        if not trainer.is_global_zero:
            return
        self.run.lock.check()
        rewind(self.run.metrics, training.step)
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(TextColumn("training"), BarColumn(), MofNCompleteColumn(),
                                 TextColumn("{task.fields[info]}"), TimeRemainingColumn(), console=console)
            self._bar.start()
            self._task = self._bar.add_task("train", total=training.max_steps, completed=training.step, info="")

    def on_train_batch_start(self, trainer: "Trainer", pl_module: "LightningModule", batch: Any,
                             batch_idx: int) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        # Only steps count for the speed, not the pictures and checkpoints between them.
        self._busy += time.perf_counter() - self._started
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def step(self, trainer: "Trainer", training: "Training") -> None:
        if due(training.step, self.every, training.max_steps):
            self._row(trainer, training)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=training.step, info=self._text)

    def end(self, trainer: "Trainer", training: "Training") -> None:
        if self._bar is not None:
            self._bar.stop()

    def _row(self, trainer: "Trainer", training: "Training") -> None:
        sums, counts = training.tally.tolist()
        training.tally = torch.zeros_like(training.tally)
        skipped = training.review()
        training.skips.since[0] = 0
        seen = sum(counts[:BINS])
        loss = sum(sums[:BINS]) / seen if seen else None
        speed = (training.step - self._from) * training.batch / self._busy
        self._busy, self._from = 0.0, training.step
        row = {"step": training.step, "loss": loss, "images_per_s": speed,
               "lr": training.optimization.rate(training.step - 1, training.max_steps), "skipped": skipped}
        for name, total, count in zip(training.logged, sums, counts):
            row[name] = total / count if count else None
        if not trainer.is_global_zero:
            return
        self.run.lock.check()
        append(self.run.metrics, row)
        for logger in trainer.loggers:
            given = {f"train/{name}": value for name, value in row.items() if name != "step" and value is not None}
            logger.log_metrics(given, step=training.step)
        self._text = f"loss {'-' if loss is None else f'{loss:.4f}'}  {speed:.0f} images/s"
        if self._bar is None:
            rate = (time.perf_counter() - self._begin) / (training.step - self._begin_step)
            left = rate * (training.max_steps - training.step)
            log.info("step %d/%d  %s  %d:%02d left", training.step, training.max_steps, self._text, *divmod(left, 60))


def append(path: Path, row: Mapping[str, float | None]) -> None:
    """One more row, with a header if the file is new; a file that was begun with other columns keeps those."""
    header = path.read_text().partition("\n")[0] if path.exists() else ""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, header.split(",") if header else list(row), extrasaction="ignore",
                            lineterminator="\n")
    if not header:
        writer.writeheader()
    writer.writerow(row)
    append_whole(path, text.getvalue())


def rewind(path: Path, step: int) -> None:
    """Drop the rows after ``step``, which a resumed run writes again, and a line that was cut off; without a whole
    header there is no file."""
    if not path.exists():
        return
    lines = [line.rstrip() for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    if not lines or not lines[0]:
        path.unlink()
        return
    kept = [row for row in lines[1:] if row.split(",")[0].isdigit() and int(row.split(",")[0]) <= step]
    write_whole(path, "\n".join([lines[0], *kept]) + "\n")
