"""``sample.py``: pictures from a run."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from configs import UserError, construct, registry
from diffusion.data.base import Data, ImageSet
from diffusion.data.pixels import to_float
from diffusion.data.progress import progress
from diffusion.model import Model, Recipe, load
from diffusion.pictures import save_each, save_grid
from diffusion.run import Run, plain, short, write
from samplers.base import Callback, Frame

log = logging.getLogger(__name__)


def sample(cfg: DictConfig) -> Path:
    """Draw or restore the samples that the config asks for; gives the folder of the pictures."""
    model = load(cfg.run, weights=cfg.weights, step=cfg.step, device=cfg.device, allow=cfg.allow)
    packages = (*registry.trusted(), *cfg.allow)
    recipe = Recipe.build(cfg, packages)
    folder = Path(cfg.out) if cfg.out else Run.open(cfg.run).folder / "samples" / name(cfg, model.step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}", "a folder that can be written",
                        "out=FOLDER") from error
    restores = bool(cfg.input.root) or (recipe.prior or model.prior).restores
    if restores:
        _restore(model, recipe, cfg, folder, packages)
    else:
        indices = parse("0-15" if cfg.samples is None else cfg.samples)
        bar = Bar(model, recipe, len(indices), cfg.batch)
        images = model.sample(indices, seed=cfg.seed, label=cfg.label, recipe=recipe, batch=cfg.batch, callbacks=[bar])
        bar.close()
        save_each(images, folder, [f"{i:06d}" for i in indices])
        classes = model.num_classes if cfg.label is None else None
        save_grid(images, folder / "grid.png", columns=classes if len(images) > (classes or 0) else None)
    write(folder / "manifest.json", json.dumps(plain(cfg) | {"step": model.step}, indent=2))
    log.info("pictures: %s", folder)
    return folder


class Bar(Callback):
    """A sign of life for the person who waits, counting steps over all batches."""

    def __init__(self, model: Model, recipe: Recipe, samples: int, batch: int):
        steps = len(recipe.sampler.times(model.degradation, recipe.start)) - 1
        total = steps * -(-samples // batch)
        self._ticks = progress(range(total), total, "sampling")

    def after(self, frame: Frame) -> None:
        next(self._ticks, None)

    def close(self) -> None:
        """Take the bar away."""
        for _ in self._ticks:
            pass


class First(Callback):
    """Notes what the first step of each batch saw and answered.

    :ivar x_T: the degraded images
    :ivar x0: the direct estimates
    """

    def __init__(self):
        self.x_T: list[Tensor] = []
        self.x0: list[Tensor] = []

    def after(self, frame: Frame) -> None:
        if frame.step.i == 0 and frame.estimate is not None:
            self.x_T.append(frame.x_t)
            self.x0.append(frame.estimate.x0)


def _restore(model: Model, recipe: Recipe, cfg: DictConfig, folder: Path, packages: Sequence[str]) -> None:
    images = held_out(model, cfg, packages)
    count = len(images) if cfg.input.root else min(16, len(images))
    indices = range(count) if cfg.samples is None else parse(cfg.samples)
    if max(indices) >= len(images):
        raise UserError(f"samples={cfg.samples} of {len(images)} images", f"indices below {len(images)}",
                        f"samples=0-{len(images) - 1}")
    pixels, labels = images.batch(torch.tensor(indices))
    x0 = to_float(pixels)
    if recipe.prior is None and not model.prior.restores:
        recipe = Recipe(recipe.sampler, recipe.parts, registry.build("prior", "degraded"), recipe.start)
    label: Any = cfg.label
    if label is None and model.num_classes is not None:
        label = "none" if labels is None else labels.tolist()
    bar = Bar(model, recipe, len(indices), cfg.batch)
    x_t, direct, restored = restore(model, recipe, x0, indices, seed=cfg.seed, label=label,
                                    degraded=cfg.input.degraded, batch=cfg.batch, callbacks=[bar])
    bar.close()
    save_each(restored, folder, [f"{i:06d}" for i in indices])
    rows = [x_t, direct, restored] + ([] if cfg.input.degraded else [x0])
    few = [row[:16] for row in rows]
    save_grid(torch.cat(few), folder / "grid.png", columns=len(few[0]))
    log.info("rows of grid.png: degraded, direct estimate, restored%s", "" if cfg.input.degraded else ", original")


def restore(model: Model, recipe: Recipe, x0: Tensor, indices: Sequence[int], *, seed: int = 0, label: Any = None,
            degraded: bool = False, batch: int = 64,
            callbacks: Sequence[Callback] = ()) -> tuple[Tensor, Tensor, Tensor]:
    """``(x_T, R(x_T, T), restored)`` of these images in [-1, 1], on the CPU."""
    first = First()
    restored = model.sample(indices, seed=seed, label=label, recipe=recipe, images=x0, degraded=degraded, batch=batch,
                            callbacks=[first, *callbacks])
    x_T, direct = (torch.cat([model.space.decode(x).cpu() for x in part]) for part in (first.x_T, first.x0))
    return x_T, direct, restored



def held_out(model: Model, cfg: DictConfig, packages: Sequence[str]) -> ImageSet:
    """The images to restore: those of ``input.root``, else the held-out ones of the run's data."""
    if not cfg.input.root:
        return data_of(model, cfg.data.root, packages).split("test")
    config = model.config["data"]
    node = registry.node("data", "folder", root=cfg.input.root, size=config["size"], channels=config["channels"],
                         labels=False, held_out=0.0)
    try:
        folder: Data = construct(node)
        return folder.split("train")
    except UserError as error:
        raise UserError(error.got, error.wanted, error.fix.replace("data.root=", "input=")) from error


def data_of(model: Model, root: str | None, packages: Sequence[str]) -> Data:
    """The data set of a run.

    :param root: where it lies now; None is where it lay
    :param packages: whose classes the run's config may name
    """
    # A stranger's config may say what to read, not what to write or to fetch.
    config = {key: value for key, value in model.config["data"].items() if key not in ("cache", "download")}
    return construct(config | ({"root": root} if root else {}), packages=packages, role=Data, parts=(Data,))


def parse(samples: Any) -> Sequence[int]:
    """``"0-63"``, ``7`` or ``[1, 5]`` as indices.

    :raises UserError: for anything else
    """
    try:
        if isinstance(samples, int):
            return [samples]
        if isinstance(samples, str):
            first, _, last = samples.partition("-")
            indices = range(int(first), int(last or first) + 1)
        else:
            indices = [int(i) for i in samples]
        if not len(indices) or min(indices) < 0:
            raise ValueError
    except (ValueError, TypeError):
        raise UserError(f"samples={samples}", "a range, a number or a list", "samples=0-63") from None
    return indices


def name(cfg: DictConfig, step: int) -> str:
    """Folder name of a set of samples: readable, and different for different settings or checkpoints."""
    outside = ("run", "out", "batch", "device", "data", "samples", "allow")
    asked = {key: value for key, value in plain(cfg).items() if key not in outside} | {"step": step}
    return f"{cfg.sampler._target_.split('.')[-1].lower()}-seed{cfg.seed}-{short(asked, 6)}"
