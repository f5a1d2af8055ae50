"""``sample.py``: pictures from a run."""

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from configs import UserError, construct, registry
from configs.values import drop_keys, require_ints, to_plain
from diffusion.data.base import Data
from diffusion.data.pixels import to_float
from diffusion.loading import load
from diffusion.model import Model
from diffusion.pictures import arrange_by_condition, save_each, save_grid
from diffusion.recipe import Recipe
from diffusion.runs import checkpoint
from diffusion.runs.environment import describe_environment
from diffusion.runs.memory import peak
from diffusion.runs.run import Run
from diffusion.sampling.inputs import Inputs, log_changes, read_photos, take_held_out
from diffusion.sampling.manifest import Manifest, Sample, describe_part, folder_name
from diffusion.sampling.selection import (
    caption_conditions,
    choose_indices,
    list_samples,
    read_condition,
    spread_over_twins,
    write_condition,
)
from diffusion.sampling.trajectory import Trajectory
from diffusion.sampling.watchers import Bar, First, evaluations
from models.context import Condition
from models.readers import ask_again
from samplers.protocol import Callback

log = logging.getLogger(__name__)

ROW = 16
"""Restorations that the grid shows, side by side."""
GRID = 256
"""Samples that the grid shows at most."""


@dataclass(frozen=True)
class Job:
    """What one command draws with.

    :ivar inputs: the images to restore; None for generation
    :ivar condition: the raw signals of all samples, by their names
    :ivar rows: the row of the condition of each file
    """

    cfg: DictConfig
    model: Model
    recipe: Recipe
    inputs: Inputs | None
    condition: Condition
    rows: dict[str, int]

    @property
    def title(self) -> str:
        """The sampler in words: ``Algorithm 2``."""
        return re.sub(r"(?<=[a-z])(?=[A-Z0-9])", " ", type(self.recipe.sampler).__name__)

    def batch(self, some: Sequence[Sample], callbacks: Sequence[Callback]) -> dict[str, Tensor]:
        """The images of these samples under ``title``, and what the grid shows with them, by caption."""
        cfg, model, indices = self.cfg, self.model, [entry["index"] for entry in some]
        rows = [self.rows[entry["file"]] for entry in some]
        asked = ask_again(model.readers(self.recipe), self.condition, rows)
        if self.inputs is None:
            return {self.title: model.sample(indices, seed=cfg.seed, recipe=self.recipe, batch=len(some),
                                             callbacks=callbacks, **asked)}
        x0 = to_float(self.inputs.images.batch(torch.tensor(indices))[0])
        x_t, direct, restored = restore(model, self.recipe, x0, indices, seed=cfg.seed, batch=len(some),
                                        degraded=cfg.input.degraded, callbacks=callbacks, **asked)
        shown = {"degraded": x_t, "direct estimate": direct, self.title: restored}
        return shown if cfg.input.degraded else shown | {"original": x0}


def sample(cfg: DictConfig) -> Path:
    """Draw or restore the samples that the config asks for, as far as they are not there yet; gives their folder."""
    check(cfg)
    packages = (*registry.trusted(), *cfg.allow)
    run = Run.open(cfg.run)
    files = checkpoint.list_checkpoints(run.checkpoints)
    model = load(cfg.run, weights=cfg.weights, step=cfg.step, device=cfg.device, allow=cfg.allow)
    _ = model.restorer  # refuses a classifier
    files |= checkpoint.list_checkpoints(run.checkpoints)  # a training that goes on writes and removes some
    recipe, inputs = Recipe.build(cfg, packages), None
    if cfg.input.root or (recipe.prior or model.prior).needs_images:
        recipe, inputs = adapt_recipe(model, recipe, cfg), find_inputs(model, cfg, packages)
    recipe.sampler.times(model.degradation, recipe.start)
    model.start(recipe)
    indices = choose_indices(cfg, inputs)
    known = spread_over_twins(to_plain(cfg.condition), cfg.twins, len(indices))
    condition = read_condition(model, recipe, indices, known, inputs,
                               lambda: build_data(model, cfg.data.root, packages))
    asked = list_samples(indices, cfg, inputs, write_condition(model, recipe, condition, len(indices)))
    job = Job(cfg, model, recipe, inputs, condition, {entry["file"]: row for row, entry in enumerate(asked)})

    settings: dict[str, Any] = {**to_plain(cfg), "step": model.step}
    stamp = {"step": model.step, "checksum": files[model.step].name.split(".")[1]}
    record = {"run": str(cfg.run), "checkpoint": stamp, "sampler": describe_part(settings["sampler"]),
              "guidance": describe_part(settings["guidance"]), "settings": settings,
              "environment": describe_environment()}
    folder = Path(str(cfg.out)) if cfg.out else run.folder / "samples" / folder_name(settings, stamp)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}", "a folder that can be written",
                        "out=FOLDER") from error
    draw(job, asked, Manifest(folder, record, cfg.overwrite))
    log.info("pictures: %s", folder)
    return folder


def check(cfg: DictConfig) -> None:
    """Refuse settings that mean nothing, before any work."""
    for name, value in (("overwrite", cfg.overwrite), ("animate", cfg.animate), ("input.degraded", cfg.input.degraded)):
        if not isinstance(value, bool):
            raise UserError(f"{name}={value}", "true or false", f"{name}=true")
    require_ints(cfg, twins=1)
    numbers = DictConfig({f"animation.{key}": value for key, value in cfg.animation.items()})
    require_ints(numbers, **{"animation.frames": 2, "animation.count": 1, "animation.fps": 1})
    if cfg.input.degraded and not cfg.input.root:
        raise UserError("input.degraded=true without images", "the degraded images", "input=FOLDER")


def draw(job: Job, asked: Sequence[Sample], manifest: Manifest) -> None:
    """Draw what the folder of the manifest lacks, and the pictures about it. Each batch is saved as it comes: little is
    in memory, and whatever ends the command, what is done stays done.

    :param asked: the samples that the folder shall hold
    """
    cfg, names = job.cfg, [entry["file"] for entry in asked]
    film = Trajectory(job.model.space.decode, cfg.animation.frames, cfg.animation.count) if cfg.animate else None
    shown: dict[str, Any] = {"grid.png": names[:ROW if job.inputs else GRID]}
    if film:
        shown["trajectory.webp"] = {"samples": names[:film.count], **to_plain(cfg.animation)}
    todo = {i for i, entry in enumerate(asked) if cfg.overwrite or not manifest.has(entry)}
    log.info("samples to draw: %d of %d%s", len(todo), len(asked),
             "; overwrite=true draws the others again" if len(todo) < len(asked) else "")
    if not todo and manifest.shows(shown):
        return
    # The pictures show more of the first samples than is kept in the files.
    todo |= set(range(min(len(asked), max(ROW if job.inputs else 0, film.count if film else 0))))
    twins, size = cfg.twins, max(cfg.twins, cfg.batch // cfg.twins * cfg.twins)  # a batch has all twins of a sample
    todo = {i // twins * twins + k for i in todo for k in range(twins)}
    order = [asked[i] for i in sorted(todo)]
    if job.inputs and cfg.input.root:
        log_changes(_path(cfg), [entry["source"] for entry in order], job.model.image_shape[1])

    bar, rows = Bar(job.model, job.recipe, len(order), size), {}
    begin = time.monotonic()
    try:
        with evaluations(job.model, job.recipe) as counts, peak(job.model.device) as memory:
            for first in range(0, len(order), size):
                some = order[first:first + size]
                images = job.batch(some, [bar, film] if film else [bar])
                require_finite(images[job.title], some)
                save_each(images[job.title], manifest.folder, [entry["file"] for entry in some])
                manifest.add(some)
                if job.inputs and first < ROW:
                    for caption, row in images.items():
                        rows.setdefault(caption, []).append(row[:ROW - first].clone())
        if order:
            manifest.record["evaluations_per_sample"] = round(counts["own"] / len(order), 2)
            manifest.record["evaluations_of_other_runs"] = round(counts["others"] / len(order), 2)
            manifest.record["peak_memory_gb"] = round(memory.bytes / 1e9, 2) if memory.bytes else None
    except KeyboardInterrupt:
        log.info("what is done is in %s; the same command goes on", manifest.folder)
        raise
    finally:
        bar.close()
        manifest.seconds += time.monotonic() - begin
        manifest.write()

    if job.inputs:
        heads = [Path(entry["file"]).stem if job.inputs.files else str(entry["index"]) for entry in asked[:ROW]]
        images, columns = torch.cat([torch.cat(row) for row in rows.values()]), len(heads)
    else:
        columns, heads = arrange_by_condition(caption_conditions(job.model.readers(job.recipe),
                                                         [entry["condition"] for entry in asked[:GRID]]))
        images = torch.stack([_load(manifest.folder / name) for name in names[:GRID]])
    save_grid(images, manifest.folder / "grid.png", columns, rows=list(rows) if job.inputs else (), heads=heads)
    if film:
        film.save(manifest.folder / "trajectory.webp", cfg.animation.fps)
    manifest.pictures |= shown
    manifest.write()


def require_finite(images: Tensor, some: Sequence[Sample]) -> None:
    """Refuse images that are not numbers: as a file, they would be black.

    :raises UserError: naming the first
    """
    bad = (~images.isfinite()).flatten(1).any(dim=1).nonzero()
    if len(bad):
        raise UserError(f"sample {some[int(bad[0])]['index']} has values that are not finite numbers", "a finite image",
                        "a smaller guidance scale, guidance=clip, or another checkpoint: step=...")


def _load(path: Path) -> Tensor:
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image))
    return to_float(pixels.movedim(-1, 0) if pixels.ndim == 3 else pixels[None])


def restore(model: Model, recipe: Recipe, x0: Tensor, indices: Sequence[int], *, seed: int = 0,
            degraded: bool = False, batch: int = 64, callbacks: Sequence[Callback] = (),
            **asked: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``(x_T, R(x_T, T), restored)`` of these images in [-1, 1], on the CPU."""
    first = First()
    restored = model.sample(indices, seed=seed, recipe=recipe, images=x0, degraded=degraded, batch=batch,
                            callbacks=[first, *callbacks], **asked)
    x_T, direct = (torch.cat([model.space.decode(x).cpu() for x in part]) for part in (first.x_T, first.x0))
    return x_T, direct, restored


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


def find_inputs(model: Model, cfg: DictConfig, packages: Sequence[str]) -> Inputs:
    """The images of ``input.root``, else the held-out ones of the run's data."""
    if not cfg.input.root:
        return take_held_out(build_data(model, cfg.data.root, packages))
    channels, size, _ = model.image_shape
    return read_photos(_path(cfg), size, channels)


def _path(cfg: DictConfig) -> Path:
    return Path(str(cfg.input.root)).expanduser()


def build_data(model: Model, root: str | None, packages: Sequence[str]) -> Data:
    """The data set of a run.

    :param root: where it lies now; None is where it lay
    :param packages: whose classes the run's config may name
    """
    # A stranger's config may say what to read, not what to write or to fetch.
    config = drop_keys(model.config["data"], ("cache", "download"))
    return construct(config | ({"root": root} if root else {}), packages=packages, role=Data)
