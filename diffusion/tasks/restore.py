"""Restorers: samples and restorations."""

from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from degradations.randomness import Streams
from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_float
from diffusion.model import Model
from diffusion.pictures import Picture, arrange_by_condition
from diffusion.sampling.inputs import Inputs
from diffusion.sampling.job import Job, SamplingJob
from diffusion.sampling.selection import caption_conditions, derive_signals, write_condition
from diffusion.tasks.base import Task

if TYPE_CHECKING:
    from diffusion.evaluation.bench import EvaluationContext
    from diffusion.evaluation.subjects import Subject

SHOWN = 8
"""Held-out images in the rows of estimates."""


class Restore(Task):
    """A :class:`diffusion.objectives.evaluator.NetworkRestorer`, of any degradation."""

    hint = "sample: python sample.py run={run}"

    def plan(self, cfg: DictConfig, model: Model) -> Job:
        return SamplingJob.plan(cfg, model)

    def choose_subject(self, context: "EvaluationContext") -> "Subject":
        from diffusion.evaluation.drawn import DrawnSubject
        from diffusion.evaluation.restorations import RestorationsSubject
        from diffusion.evaluation.solutions import SolutionsSubject
        from diffusion.evaluation.subjects import SamplesSubject

        if context.cfg.task:
            return SolutionsSubject(context)
        prior = context.recipe.prior or context.model.prior
        if prior.needs_images:
            return RestorationsSubject(context)
        return DrawnSubject(context) if context.live else SamplesSubject(context)

    def time_sample(self, model: Model, context: "EvaluationContext") -> float | None:
        images, count = context.data.split(context.cfg.split), min(context.cfg.batch, context.cfg.count)
        chosen = images.choose(torch.arange(count) % len(images))
        derived = derive_signals(model, Inputs(chosen), range(count))
        asked: dict[str, Any] = {name: raw for name, raw in derived.items() if name in model.readers()}
        x0 = to_float(chosen.batch(torch.arange(count))[0])
        begin = perf_counter()
        model.sample(range(count), recipe=context.recipe, images=x0 if model.prior.needs_images else None, batch=count,
                     **asked)
        return (perf_counter() - begin) / count

    def show(self, model: Model, held_out: ImageSet, count: int, times: list[float],
             sampling: list[str]) -> dict[str, Picture]:
        """A grid of samples (or of restorations), and rows of ``x_t`` above ``x0_hat`` for held-out images at rising t.
        Seed 0, the run's own sampler."""
        indices = range(min(count, len(held_out)))
        recipe, readers = model.recipe(sampling), model.readers()
        own: dict[str, Any] = {name: raw for name, raw in derive_signals(model, Inputs(held_out), indices).items()
                               if name in readers}
        x0 = to_float(held_out.batch(torch.tensor(indices))[0]).to(model.device)
        rows = estimate_rows(model, x0[:SHOWN], times, {name: raw[:SHOWN] for name, raw in own.items()})
        estimates = Picture(torch.cat(list(rows.values())), len(x0[:SHOWN]), rows=list(rows))
        restores = (recipe.prior or model.prior).needs_images
        asked: dict[str, Any] = {name: own.get(name) for name, reader in readers.items()
                                 if restores or reader.usual(indices) is None}
        samples = model.sample(indices, recipe=recipe, images=x0 if restores else None, **asked)
        written = write_condition(model, recipe, model.condition(indices, {} if restores else asked), len(indices))
        columns, heads = arrange_by_condition([] if restores else caption_conditions(readers, written))
        return {"estimates": estimates, "samples": Picture(samples, columns, heads=heads)}


def estimate_rows(model: Model, x0: Tensor, times: list[float], own: dict[str, Any]) -> dict[str, Tensor]:
    """``x_t`` and ``x0_hat`` of these images at these times, by caption.

    :param own: the raw signals of the images
    """
    indices = range(len(x0))
    clean = model.space.encode(x0)
    state = model.degradation.draw(clean.shape, Streams(0, tuple(indices), model.device))
    rows = {"original": x0.cpu()}
    for time in times:
        t = torch.full((len(x0),), time, device=model.device)
        x_t = model.degradation.forward(clean, t, state)
        x0_hat = model.direct(x_t, time, indices=indices, state=state, **own)
        rows[f"t = {time:g}: x_t"] = model.space.decode(x_t).cpu()
        rows[f"t = {time:g}: x0_hat"] = model.space.decode(x0_hat).cpu()
    return rows
