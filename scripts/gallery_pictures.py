"""Pictures of methods on scikit-learn's digits. ``python scripts/gallery_pictures.py RUN`` draws those of the guidance
with a run of ``experiment=ddpm_digits`` into docs/pictures/gallery; the others need no network."""

import argparse
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import thaw
from configs import UserError, registry
from configs.cli import stop
from configs.help import find_files
from degradations.base import Degradation, Estimate, State
from degradations.gaussian import Gaussian
from degradations.randomness import Streams
from diffusion.data.pixels import to_float
from diffusion.data.sets.digits import Digits
from diffusion.pictures import save_grid
from models.attention import AttentionHook
from models.context import Context
from samplers.moves import Keep
from samplers.protocol import Step

TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
STATIONS = 8
"""Columns of a way from x_T to the image."""
TINTS = ((1.0, 0.55, 0.2), (0.3, 0.75, 1.0))


class NearestDigits:
    """The restorer that has learned by heart: the mean of the images of a set, each by how likely ``x_t`` is made of
    it. For noise that is ``E[x0 | x_t]`` of the set exactly, weights softmax(-|x_t - alpha x0|^2 / (2 sigma^2)); for
    other degradations the images nearest to ``x_t`` once degraded alike.

    :param images: the set
    :param degradation: what is undone
    """

    def __init__(self, images: Tensor, degradation: Degradation):
        self.images, self.degradation = images, degradation

    def __call__(self, x_t: Tensor, t: Tensor, ctx: Context, *, state: State, step: Step | None,
                 attn: AttentionHook | None = None) -> Estimate:
        time = t[:1].expand(len(self.images))
        if isinstance(self.degradation, Gaussian):
            alpha, sigma = (value.item() for value in self.degradation.schedule(t[:1].double()))
            made, width = alpha * self.images, max(sigma, 1e-3)
        else:
            made, width = self.degradation.forward(self.images, time, State()), 0.1
        distances = torch.cdist(x_t.flatten(1), made.flatten(1)).square() / (2 * width**2)
        x0 = ((-distances).softmax(dim=1) @ self.images.flatten(1)).view_as(x_t)
        return Estimate(x0, self.degradation.infer(x_t, x0, t, state))


@cache
def load_digits(size: int, split: str) -> Tensor:
    """The digits in [-1, 1], (n, 1, size, size)."""
    return to_float(Digits(size).split(split).images)


def find_parent(group: str) -> tuple[str, str]:
    """The group above a nested one, and its method with the fewest choices that has this one: gaussian has
    ``degradation/schedule``."""
    parent, _, key = group.rpartition("/")

    def choices(name: str) -> list[str]:
        node = yaml.safe_load(find_files(parent, name)[0].read_text()) or {}
        return [next(iter(entry)) for entry in node.get("defaults", []) if isinstance(entry, dict)]

    having = {name: len(choices(name)) for name in registry.available(parent) if key in choices(name)}
    return parent, min(having, key=lambda name: having[name])


def draw_degradation(group: str, name: str, path: Path) -> Path:
    """Two digits in colour at rising t, of one state each.

    :raises UserError: if the degradation needs what is not here
    """
    if "/" in group:
        parent, method = find_parent(group)
        operator = registry.build(parent, method, **{group.rpartition("/")[2]: name})
    else:
        operator = registry.build(group, name)
    grey = (load_digits(32, "test")[[2, 13]] + 1) / 2
    x0 = 2 * grey * torch.tensor(TINTS)[:, :, None, None] - 1
    rows = [x0[i:i + 1].expand(len(TIMES), -1, -1, -1) for i in range(len(x0))]
    made = [operator.forward(row, torch.tensor(TIMES), operator.draw(row.shape, Streams(0, (i,) * len(TIMES))))
            for i, row in enumerate(rows)]
    return save_grid(torch.cat(made), path, len(TIMES), heads=[f"t = {t:g}" for t in TIMES])


def draw_sampler(name: str, path: Path) -> Path:
    """What a sampler visits, above what it believes there, of two digits; the restorer has learned them by heart.

    :raises UserError: if the sampler fits neither noise nor blur
    """
    sampler = thaw.samplers.build(name, num_steps=20)
    # One that keeps its state is made for degradations without noise.
    mild = {"kernels.size": 5, "kernels.std": 0.5}
    operator = thaw.degradations.build("blur", **mild) if isinstance(sampler.belief, Keep) else \
        thaw.degradations.build("gaussian")
    streams = Streams(0, (0, 1))
    x0 = load_digits(16, "test")[:2]
    state = operator.draw(x0.shape, streams)
    x_T = operator.forward(x0, torch.ones(2), state)
    frames = list(sampler.steps(NearestDigits(load_digits(16, "train"), operator), operator, x_T, state, Context(),
                                streams))
    visited = [x_T, *(frame.x_s for frame in frames if frame.x_s is not None)]
    believed = [frame.estimate.x0 for frame in frames if frame.estimate is not None]
    believed.append(believed[-1])
    rows = [torch.stack([line[round(k * (len(line) - 1) / (STATIONS - 1))] for k in range(STATIONS)], dim=1)
            for line in (visited, believed)]
    grid = torch.stack(rows, dim=1).flatten(0, 2)
    return save_grid(grid, path, STATIONS, rows=["x_t", "x0_hat"] * 2)


def draw_guidance(model: Any, name: str, path: Path) -> Path:
    """Samples without guidance above the same ones with it.

    :raises UserError: if the run has not what the guidance needs
    """
    indices = range(10)
    base = model.sample(indices, recipe=model.recipe(["guidance=none"]))
    guided = model.sample(indices, recipe=model.recipe([f"guidance={name}"]))
    if not math.isfinite(guided.sum().item()):
        raise UserError(f"guidance={name} of {model.name} is not finite", "another run", "a run that is trained longer")
    return save_grid(torch.cat([base, guided]), path, len(indices), rows=["none", name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a run of experiment=ddpm_digits")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/gallery"), help="the folder of the PNG files")
    arguments = parser.parse_args()
    model = thaw.load(arguments.run)
    for name in registry.available("guidance"):
        try:
            print(draw_guidance(model, name, arguments.out / "guidance" / f"{name}.png"))
        except UserError as error:
            print(f"{name}: no picture: {error.got}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        stop(str(error), 2)
