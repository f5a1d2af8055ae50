"""How good the samples are while a model is trained, and which weights were the best."""

import logging
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from configs import UserError, compose, registry
from configs.overrides import merge_overrides
from configs.values import require_at_least
from diffusion.reports.numbers import find_direction
from diffusion.runs import checkpoint
from diffusion.runs.files import make_folder
from diffusion.training.callbacks.base import StepCallback, due
from diffusion.training.callbacks.checkpoint import require_finite
from diffusion.training.callbacks.log import append, rewind

if TYPE_CHECKING:
    from lightning import Trainer

    from diffusion.training.module import Training

log = logging.getLogger(__name__)

WARM = 10
"""Steps that are timed, after the first, before the costs are said."""


class Quality(StepCallback):
    """Every ``every`` steps what ``evaluate.py`` would measure of the averaged weights: always the same ``count``
    samples, or held-out images that are restored. A row of ``quality.csv``, the loggers, a line. Samples are drawn
    into memory; the training is the same, bit for bit, with it and without.

    The weights with the best ``score`` are kept as a checkpoint beside the newest ones, ``step=best`` for the commands.
    What all this costs is said after the first steps, when a step and a batch of samples have been timed.

    :param every: steps between two rows
    :param count: samples, or images to restore
    :param score: the beginning of the column of ``quality.csv`` by which weights are the best, such as ``fd``; None
        takes the first one of which it is known which way is better
    :param evaluate: settings of ``evaluate.py``, such as ``metrics=all``, ``extractor=inception``, ``seed=1``
    :raises UserError: for numbers out of range, and settings that ``evaluate.py`` refuses
    """

    def __init__(self, every: int = 1000, count: int = 500, score: str | None = None,
                 evaluate: Sequence[str] = ("metrics=quick",)):
        require_at_least(1, "callbacks.quality", every=every)
        require_at_least(2, "callbacks.quality", count=count)
        self.every, self.count, self.score, self.evaluate = every, count, score, list(evaluate)

    def start(self, trainer: "Trainer", training: "Training") -> None:
        model, self._file = training.model, self.run.folder / "quality.csv"
        self._task = registry.build("kind", model.evaluator.task)
        cfg: Any = compose("evaluate", self._settings(model.config["sampling"]))
        cfg.run, cfg.device, cfg.count, cfg.baseline = str(self.run.place), str(training.device), self.count, False
        self._subject = self._task.choose_subject(self._task.open_context(cfg, model))
        for name, metric in self._subject.bench.metrics.items():
            if getattr(metric, "min_samples", 0) > self.count:
                raise UserError(f"callbacks.quality.count={self.count}, too few for metrics.{name}",
                                f"at least {metric.min_samples}", f"callbacks.quality.count={metric.min_samples}")
        self._first, self._begin = training.step + 1, math.nan
        if trainer.is_global_zero:
            self.run.lock.check()
            rewind(self._file, training.step)
            checkpoint.forget_best(self.run.checkpoints, training.step)

    def step(self, trainer: "Trainer", training: "Training") -> None:
        # The first step is slower than the others.
        if training.step == self._first:
            self._begin = time.perf_counter()
        if training.step == self._first + min(WARM, self.every - 1) > self._first and trainer.is_global_zero:
            self._say_costs(training, (time.perf_counter() - self._begin) / (training.step - self._first))
        if not due(training.step, self.every, training.max_steps):
            return
        best = False
        if trainer.is_global_zero or training.sharding:
            with training.averaged() as model:
                if trainer.is_global_zero:
                    model.step = training.step
                    best = self._measure(trainer, training)
        if trainer.strategy.reduce_boolean_decision(best, all=False) and training.step not in self.run.steps:
            require_finite(training)
            content = training.state()  # on all ranks: each may have a shard of it
            if trainer.is_global_zero:
                checkpoint.save(self.run.checkpoints, training.step, content)

    def _settings(self, own: Sequence[str]) -> list[str]:
        """The overrides of ``evaluate.py``: the run's own way of sampling, and the settings on top."""
        known = {f"method={name}" for name in registry.available("method")}  # what they stand for is there
        mine = [f"samplers=[{each.partition('=')[2]}]" for each in own if each.startswith("sampler=")]
        return [each for each in merge_overrides([*own, *mine[-1:]], self.evaluate) if each not in known]

    def _say_costs(self, training: "Training", step: float) -> None:
        """Time a batch of samples, and say what measuring takes of the training."""
        with training.averaged() as model:
            each = self._task.time_sample(model, self._subject.bench)
        if each is not None:
            cost = each * self.count
            log.info("quality: %d samples every %d steps, about %.2g s each time, %.2g %% of the training", self.count,
                     self.every, cost, 100 * cost / (cost + self.every * step))

    def _measure(self, trainer: "Trainer", training: "Training") -> bool:
        """Measure, and write it down; gives whether it is the best so far."""
        self.run.lock.check()
        folder = self.run.folder / "quality"
        make_folder(folder)
        report = self._subject.measure(folder)
        row = {name: number.value for name, number in report.sets[report.subject[-1]].items()}
        append(self._file, {"step": training.step, **row})
        for logger in trainer.loggers:
            logger.log_metrics({f"quality/{name}": value for name, value in row.items()}, step=training.step)
        log.info("step %d/%d  %s", training.step, training.max_steps,
                 "  ".join(f"{name} {value:.4g}" for name, value in row.items()))
        known = [name for name in row if find_direction(name) and name.startswith(self.score or "")]
        if not known:
            log.warning("callbacks.quality.score=%s is none of %s: no weights are the best", self.score, ", ".join(row))
            return False
        return self._keep(training.step, known[0], row[known[0]])

    def _keep(self, step: int, score: str, value: float) -> bool:
        """Note a score, if it is better than the best so far; gives whether it is."""
        before = checkpoint.read_best(self.run.checkpoints)
        sign = find_direction(score)
        if not math.isfinite(value) or (before is not None and before["score"] == score
                                        and sign * value <= sign * before["value"]):
            return False
        checkpoint.note_best(self.run.checkpoints, {"step": step, "score": score, "value": value})
        return True
