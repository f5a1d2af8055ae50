"""What ``sample.py`` draws with: one job for each kind of model that makes images."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from configs import UserError, construct, registry
from configs.values import to_plain
from degradations.measurement import Measurement
from degradations.randomness import Streams
from diffusion.data.pixels import to_float
from diffusion.loading import build_data
from diffusion.model import Model
from diffusion.problem import InverseProblem
from diffusion.recipe import Recipe
from diffusion.sampling.inputs import Inputs, find_inputs, find_measured
from diffusion.sampling.manifest import Sample, describe_part
from diffusion.sampling.selection import (
    Conditions,
    caption_conditions,
    choose_indices,
    list_samples,
    spread_over_twins,
)
from diffusion.sampling.texts import ask_captions, read_texts
from diffusion.sampling.watchers import First, evaluations
from models.readers import ask_again
from samplers.protocol import Callback


@dataclass(frozen=True)
class Job(ABC):
    """What one command draws, and with what.

    :ivar cfg: the composed ``sample`` config
    :ivar asked: the samples that the folder shall hold
    :ivar inputs: the images that they are made of; None for generation
    """

    cfg: DictConfig
    model: Model
    asked: Sequence[Sample]
    inputs: Inputs | None

    @property
    @abstractmethod
    def title(self) -> str:
        """What is done, in words, as a caption of the grid."""

    @property
    def steps(self) -> int:
        """How often the callbacks of a batch are called; 0 if there is nothing to watch."""
        return 0

    @abstractmethod
    def batch(self, some: Sequence[Sample], callbacks: Sequence[Callback]) -> dict[str, Tensor]:
        """The images of these samples under ``title``, and what the grid shows with them, by caption: in [-1, 1], on
        the CPU."""

    def describe(self) -> dict[str, str]:
        """With what it is done, in words, for the manifest."""
        return {}

    def caption(self, some: Sequence[Sample]) -> list[str]:
        """The condition of each sample in words; none if there is nothing to say."""
        return []

    @property
    def compares(self) -> bool:
        """Whether :meth:`batch` gives images to be seen beside the samples."""
        return self.inputs is not None

    def count(self) -> AbstractContextManager[Counter[str]]:
        """Counts the evaluations, see :func:`diffusion.sampling.watchers.evaluations`."""
        return evaluations(self.model)


@dataclass(frozen=True)
class SamplingJob(Job):
    """Samples or restorations by a sampler.

    :ivar conditions: the raw signals of all samples
    :ivar rows: the row of each file among these
    :ivar problem: what is measured of the inputs, of which the images are then made
    """

    recipe: Recipe
    conditions: Conditions
    rows: dict[str, int] = field(default_factory=dict)
    problem: InverseProblem | None = None

    @classmethod
    def plan(cls, cfg: DictConfig, model: Model) -> "SamplingJob":
        """What the config asks for.

        :raises UserError: for settings that do not fit the model or each other
        """
        packages = (*registry.trusted(), *cfg.allow)
        recipe, inputs = Recipe.build(cfg, packages), None
        problem = construct(cfg.task, packages=packages, role=InverseProblem) if cfg.task else None
        recipe.check_measurement(problem is not None)
        if problem is not None:
            inputs = find_measured(problem, model, cfg, packages)
        elif cfg.input.root or (recipe.prior or model.prior).needs_images:
            recipe, inputs = adapt_recipe(model, recipe, cfg), find_inputs(model, cfg, packages)
        recipe.sampler.times(model.degradation, recipe.start)
        model.start(recipe)
        model.guided(recipe.parts)
        readers = model.readers(recipe)
        known = ask_captions(cfg, readers, read_texts(readers, to_plain(cfg.condition)))
        each = {name: known[name] for name, reader in readers.items() if not reader.is_single(known.get(name))}
        indices = choose_indices(cfg, inputs, each)
        known |= spread_over_twins(each, cfg.twins, len(indices))
        if any(value is not None for value in cfg.data.values()):
            build_data(model.config, cfg.data, packages)  # what was typed is refused; what only is not there is not
        conditions = Conditions(model, recipe, indices, known, inputs,
                                lambda: build_data(model.config, cfg.data, packages), cfg.pool)
        asked = list_samples(indices, cfg, inputs, conditions.write())
        rows = {entry["file"]: row for row, entry in enumerate(asked)}
        for first in range(0, len(indices) if cfg.twins > 1 else 1, cfg.twins):  # an edit may not fit its source
            some = range(first, first + cfg.twins)
            model.check_plan(recipe, [indices[row] for row in some], model.context(conditions.take(some), len(some)))
        return cls(cfg, model, asked, inputs, recipe, conditions, rows, problem)

    @property
    def title(self) -> str:
        """The sampler: ``Algorithm 2``."""
        return re.sub(r"(?<=[a-z])(?=[A-Z0-9])", " ", type(self.recipe.sampler).__name__)

    @property
    def steps(self) -> int:
        return len(self.recipe.sampler.times(self.model.degradation, self.recipe.start)) - 1

    def batch(self, some: Sequence[Sample], callbacks: Sequence[Callback]) -> dict[str, Tensor]:
        cfg, model, indices = self.cfg, self.model, [entry["index"] for entry in some]
        rows = [self.rows[entry["file"]] for entry in some]
        taken = self.conditions.take(rows)
        asked = ask_again(model.readers(self.recipe), taken, slice(None))
        if self.inputs is None:
            made = model.sample(indices, seed=cfg.seed, recipe=self.recipe, batch=len(some), callbacks=callbacks,
                                **asked)
            return {**(self.conditions.show(rows, taken) if self.compares else {}), self.title: made}
        x0 = to_float(self.inputs.images.batch(torch.tensor(indices))[0])
        if self.problem is not None:
            measurement, made = solve(model, self.recipe, self.problem, x0, indices, seed=cfg.seed, batch=len(some),
                                      degraded=cfg.input.degraded, callbacks=callbacks, **asked)
            shown = {"measurement": measurement.show().cpu(), self.title: made}
            return shown if cfg.input.degraded else shown | {"original": x0}
        if cfg.to:
            made = model.sample(indices, seed=cfg.seed, recipe=self.recipe, images=x0, degraded=cfg.input.degraded,
                                batch=len(some), callbacks=callbacks, **asked)
            return {"original": x0, self.title: made}
        x_t, direct, restored = restore(model, self.recipe, x0, indices, seed=cfg.seed, batch=len(some),
                                        degraded=cfg.input.degraded, callbacks=callbacks, **asked)
        shown = {"degraded": x_t, "direct estimate": direct, self.title: restored}
        return shown if cfg.input.degraded else shown | {"original": x0}

    @cached_property
    def compares(self) -> bool:
        return self.inputs is not None or bool(self.conditions.show([0], self.conditions.take([0])))

    def describe(self) -> dict[str, str]:
        return {key: describe_part(to_plain(self.cfg[key])) for key in ("sampler", "guidance")}

    def caption(self, some: Sequence[Sample]) -> list[str]:
        return caption_conditions(self.model.readers(self.recipe), [entry["condition"] for entry in some])

    def count(self) -> AbstractContextManager[Counter[str]]:
        return evaluations(self.model, self.recipe.parts)


def restore(model: Model, recipe: Recipe, x0: Tensor, indices: Sequence[int], *, seed: int = 0,
            degraded: bool = False, batch: int = 64, callbacks: Sequence[Callback] = (),
            **asked: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``(x_T, R(x_T, T), restored)`` of these images in [-1, 1], on the CPU."""
    first = First()
    restored = model.sample(indices, seed=seed, recipe=recipe, images=x0, degraded=degraded, batch=batch,
                            callbacks=[first, *callbacks], **asked)
    x_T, direct = (torch.cat([model.space.decode(x).cpu() for x in part]) for part in (first.x_T, first.x0))
    return x_T, direct, restored


def solve(model: Model, recipe: Recipe, problem: InverseProblem, images: Tensor, indices: Sequence[int], *,
          seed: int = 0, degraded: bool = False, batch: int = 64, callbacks: Sequence[Callback] = (),
          **asked: Any) -> tuple[Measurement, Tensor]:
    """What was measured of these images, and images that explain it.

    :param images: in [-1, 1]; of which something is measured, or which show what was
    :param degraded: they show what was measured already
    """
    streams, images = Streams(seed, tuple(indices), model.device), images.to(model.device)
    measurement = problem.draw((len(images), *model.image_shape), streams)
    measurement = measurement.accept(images) if degraded else measurement.measure(images, streams)
    starts = (recipe.prior or model.prior).needs_images
    return measurement, model.sample(indices, seed=seed, recipe=recipe, images=images if starts else None,
                                     measurement=measurement, batch=batch, callbacks=callbacks, **asked)


def adapt_recipe(model: Model, recipe: Recipe, cfg: DictConfig) -> Recipe:
    """The recipe with a prior that degrades given images, starting from ``input.t``."""
    if recipe.prior is not None and not recipe.prior.needs_images:
        raise UserError(f"images to restore, and the prior {type(recipe.prior).__name__}, which needs none",
                        "a prior that degrades them", "prior=degraded, or drop input=")
    if type(cfg.input.t) not in (int, float) or not 0 < cfg.input.t <= 1:
        raise UserError(f"input.t={cfg.input.t}", "a time in (0, 1]", "input.t=0.5, or start=0.5")
    if not (recipe.prior or model.prior).needs_images:
        recipe = replace(recipe, prior=registry.build("prior", "degraded"))
    return replace(recipe, start=cfg.input.t)


def require_finite(images: Tensor, some: Sequence[Sample]) -> None:
    """Refuse images that are not numbers: as a file, they would be black.

    :raises UserError: naming the first
    """
    bad = (~images.isfinite()).flatten(1).any(dim=1).nonzero()
    if len(bad):
        raise UserError(f"sample {some[int(bad[0])]['index']} has values that are not finite numbers", "a finite image",
                        "a smaller guidance scale, guidance=clip, or another checkpoint: step=...")
