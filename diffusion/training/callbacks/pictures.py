"""Pictures at intervals, always of the same samples."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from degradations.randomness import Streams
from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_float
from diffusion.pictures import by_class, save_grid
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
        images, labels = self.held_out.batch(torch.tensor(indices))
        x0 = to_float(images).to(model.device)
        label = labels.tolist() if labels is not None and model.num_classes is not None else None
        rows = self._rows(model, x0[:8], label[:8] if label else None)
        save_grid(torch.cat(list(rows.values())), self.run.pictures / f"estimates-{step:08d}.png", len(x0[:8]),
                  rows=list(rows))
        recipe = model.recipe(self.sampling)
        restores = (recipe.prior or model.prior).restores
        samples = model.sample(indices, recipe=recipe, **({"images": x0, "label": label} if restores else {}))
        through = None if restores or model.num_classes is None else model.labels(indices, None)
        columns, heads = by_class(through, self.held_out.names)
        save_grid(samples, self.run.pictures / f"samples-{step:08d}.png", columns, heads=heads)

    def _rows(self, model: "Model", x0: Tensor, label: list[int] | None) -> dict[str, Tensor]:
        indices = range(len(x0))
        clean = model.space.encode(x0)
        state = model.degradation.draw(clean.shape, Streams(0, tuple(indices), model.device))
        rows = {"original": x0.cpu()}
        for time in self.times:
            t = torch.full((len(x0),), time, device=model.device)
            x_t = model.degradation.forward(clean, t, state)
            x0_hat = model.direct(x_t, time, indices=indices, label=label, state=state)
            rows[f"t = {time:g}: x_t"] = model.space.decode(x_t).cpu()
            rows[f"t = {time:g}: x0_hat"] = model.space.decode(x0_hat).cpu()
        return rows
