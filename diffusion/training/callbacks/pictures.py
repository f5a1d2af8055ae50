"""Pictures at intervals, always of the same samples."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from degradations.randomness import Streams
from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_float
from diffusion.pictures import arrange_by_condition, save_grid
from diffusion.sampling.inputs import Inputs
from diffusion.sampling.selection import caption_conditions, derive_signals, write_condition
from diffusion.training.callbacks.base import StepCallback, due

if TYPE_CHECKING:
    from lightning import Trainer

    from diffusion.model import Model
    from diffusion.training.module import Training


class Pictures(StepCallback):
    """Every ``every`` steps: a grid of samples (or of restorations), and rows of ``x_t`` above ``x0_hat`` for held-out
    images at rising t. Averaged weights, seed 0, the run's own sampler. Of a classifier there are none.

    :param every: steps between two sets of pictures, None for the end only
    :param count: how many samples
    :param times: the times of the rows
    :param sampling: overrides on top of the run's own ``sampling``
    """

    held_out: ImageSet

    def __init__(self, every: int | None = 1000, count: int = 16, times: list[float] | None = None,
                 sampling: list[str] | None = None):
        self.sampling = list(sampling or [])
        self.every, self.count, self.times = every, count, list(times or [0.2, 0.4, 0.6, 0.8, 1.0])

    def step(self, trainer: "Trainer", training: "Training") -> None:
        if not due(training.step, self.every, training.max_steps) or not trainer.is_global_zero or not self.count:
            return
        if training.model.restores:
            with training.averaged() as model:
                self._draw(model, training.step)

    def _draw(self, model: "Model", step: int) -> None:
        indices = range(min(self.count, len(self.held_out)))
        recipe, readers = model.recipe(self.sampling), model.readers()
        own: dict[str, Any] = {name: raw for name, raw in derive_signals(model, Inputs(self.held_out), indices).items()
               if name in readers}
        x0 = to_float(self.held_out.batch(torch.tensor(indices))[0]).to(model.device)
        rows = self._rows(model, x0[:8], {name: raw[:8] for name, raw in own.items()})
        save_grid(torch.cat(list(rows.values())), self.run.pictures / f"estimates-{step:08d}.png", len(x0[:8]),
                  rows=list(rows))
        restores = (recipe.prior or model.prior).needs_images
        asked: dict[str, Any] = {name: own.get(name) for name, reader in readers.items()
                 if restores or reader.usual(indices) is None}
        samples = model.sample(indices, recipe=recipe, images=x0 if restores else None, **asked)
        written = write_condition(model, recipe, model.condition(indices, {} if restores else asked), len(indices))
        columns, heads = arrange_by_condition([] if restores else caption_conditions(readers, written))
        save_grid(samples, self.run.pictures / f"samples-{step:08d}.png", columns, heads=heads)

    def _rows(self, model: "Model", x0: Tensor, own: dict[str, Any]) -> dict[str, Tensor]:
        indices = range(len(x0))
        clean = model.space.encode(x0)
        state = model.degradation.draw(clean.shape, Streams(0, tuple(indices), model.device))
        rows = {"original": x0.cpu()}
        for time in self.times:
            t = torch.full((len(x0),), time, device=model.device)
            x_t = model.degradation.forward(clean, t, state)
            x0_hat = model.direct(x_t, time, indices=indices, state=state, **own)
            rows[f"t = {time:g}: x_t"] = model.space.decode(x_t).cpu()
            rows[f"t = {time:g}: x0_hat"] = model.space.decode(x0_hat).cpu()
        return rows
