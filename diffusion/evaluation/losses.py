"""Numbers about a model that need no samples: its losses on held-out images."""

import logging
import time

import torch
from jaxtyping import Int64
from torch import Tensor

from diffusion.data.base import ImageSet
from diffusion.evaluation.bench import EvaluationContext
from diffusion.evaluation.report import Report
from diffusion.metrics.base import ModelMetric
from diffusion.sampling.inputs import Inputs
from diffusion.sampling.selection import derive_signals

log = logging.getLogger(__name__)


def add_losses(bench: EvaluationContext, report: Report) -> None:
    """Measure what of the metrics is about the model itself, in columns of their own, on ``count`` held-out images."""
    model, metrics = bench.model, {key: metric for key, metric in bench.metrics.items()
                                   if isinstance(metric, ModelMetric)}
    for key, metric in metrics.items():
        several = bench.data.holds_out and len(bench.data.split("test")) > 1
        reason = metric.lacks(model) or (None if several else "two held-out images")
        if reason is not None:
            report.skipped[key] = reason
            continue
        images, begin = choose_evenly(bench.data.split("test"), bench.cfg.count), time.monotonic()
        log.info("%s of %d held-out images ...", key, len(images))
        condition = derive_signals(model, Inputs(images), range(len(images)))
        columns = metric(model, images, condition, seed=bench.cfg.seed, batch=bench.cfg.batch)
        if time.monotonic() - begin > 5:
            log.info("%s: %.0f s", key, time.monotonic() - begin)
        for name, numbers in columns.items():
            report.sets[name] = report.sets.get(name, {}) | dict(numbers)
            report.losses.append(name)


def choose_evenly(images: ImageSet, count: int) -> ImageSet:
    """``count`` images of a set, evenly spread over it."""
    return images.choose(spread_indices(len(images), count))


def spread_indices(n: int, count: int) -> Int64[Tensor, " m"]:
    """``count`` of n indices (all, if there are fewer), evenly spread: sets are often sorted by class."""
    count = min(n, count)
    return torch.arange(count) * n // count
