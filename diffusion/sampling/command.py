"""``sample.py``: pictures from a run."""

import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from configs import UserError, registry
from configs.values import require_ints, to_plain
from diffusion.data.files.decode import open_image
from diffusion.data.pixels import to_float
from diffusion.loading import load
from diffusion.pictures import arrange_by_condition, save_each, save_grid
from diffusion.runs.environment import describe_environment
from diffusion.runs.files import make_folder
from diffusion.runs.memory import peak
from diffusion.runs.run import Run
from diffusion.sampling.inputs import find_root, log_changes
from diffusion.sampling.job import Job
from diffusion.sampling.manifest import Manifest, Sample, folder_name
from diffusion.sampling.trajectory import Trajectory
from diffusion.sampling.watchers import Bar
from models.readers import ClassReader

log = logging.getLogger(__name__)

ROW = 16
"""Restorations that the grid shows, side by side."""
GRID = 256
"""Samples that the grid shows at most."""


def sample(cfg: DictConfig) -> Path:
    """Draw or restore the samples that the config asks for, as far as they are not there yet; gives their folder."""
    check(cfg)
    run = Run.open(cfg.run)
    steps = run.steps
    model = load(cfg.run, weights=cfg.weights, step=cfg.step, device=cfg.device, allow=cfg.allow)
    steps |= run.steps  # a training that goes on writes and removes some
    job = registry.build("task", model.evaluator.task).plan(cfg, model)
    settings: dict[str, Any] = {**to_plain(cfg), "step": model.step}
    stamp = {"step": model.step, "checksum": steps[model.step]}
    record = {"run": str(cfg.run), "checkpoint": stamp, **job.describe(), "settings": settings,
              "environment": describe_environment()}
    words = {name: reader.words for name, reader in model.readers().items()
             if isinstance(reader, ClassReader) and reader.words}
    if words:
        record["words"] = words
    folder = Path(str(cfg.out)) if cfg.out else run.folder / "samples" / folder_name(job.title, settings, stamp)
    make_folder(folder)
    try:
        draw(job, Manifest(folder, record, cfg.overwrite))
    finally:
        with contextlib.suppress(OSError):  # there is something in it
            folder.rmdir()
            folder.parent.rmdir()
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


def draw(job: Job, manifest: Manifest) -> None:
    """Draw what the folder of the manifest lacks, and the pictures about it. Each batch is saved as it comes: little is
    in memory, and whatever ends the command, what is done stays done."""
    cfg, asked, names = job.cfg, job.asked, [entry["file"] for entry in job.asked]
    if cfg.animate and not job.steps:
        raise UserError("animate=true of images that are made in one step", "a sampler with steps", "animate=false")
    film = Trajectory(job.model.space.decode, cfg.animation.frames, cfg.animation.count) if cfg.animate else None
    shown: dict[str, Any] = {"grid.png": names[:ROW if job.inputs else GRID]}
    if film:
        shown["trajectory.webp"] = {"samples": names[:film.count], **to_plain(cfg.animation)}
    todo = {i for i, entry in enumerate(asked) if cfg.overwrite or not manifest.has(entry)}
    log.info("samples to draw: %d of %d%s%s", len(todo), len(asked), _list_captions(job),
             "; overwrite=true draws the others again" if len(todo) < len(asked) else "")
    if not todo and manifest.shows(shown):
        return
    # The pictures show more of the first samples than is kept in the files.
    todo |= set(range(min(len(asked), max(ROW if job.inputs else 0, film.count if film else 0))))
    twins, size = cfg.twins, max(cfg.twins, cfg.batch // cfg.twins * cfg.twins)  # a batch has all twins of a sample
    todo = {i // twins * twins + k for i in todo for k in range(twins)}
    order = [asked[i] for i in sorted(todo)]
    if job.inputs and cfg.input.root:
        log_changes(find_root(cfg), [entry["source"] for entry in order], job.model.image_shape[1])

    bar, rows = Bar(job.steps * -(-len(order) // size)), {}
    begin = time.monotonic()
    try:
        with job.count() as counts, peak(job.model.device) as memory:
            for first in range(0, len(order), size):
                some = order[first:first + size]
                images = job.batch(some, [bar, film] if film else [bar])
                require_finite(images[job.title], some)
                save_each(images[job.title], manifest.folder, [entry["file"] for entry in some])
                manifest.add(some)
                if job.inputs and first < ROW:
                    for caption, row in images.items():
                        rows.setdefault(caption, []).append(row[:ROW - first].clone())
        if counts:
            manifest.record["evaluations_per_sample"] = round(counts["own"] / len(order), 2)
            manifest.record["evaluations_of_other_runs"] = round(counts["others"] / len(order), 2)
        if order:
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
        columns, heads = arrange_by_condition(job.caption(asked[:GRID]))
        images = torch.stack([_load(manifest.folder / name) for name in names[:GRID]])
    save_grid(images, manifest.folder / "grid.png", columns, rows=list(rows) if job.inputs else (), heads=heads)
    if film:
        film.save(manifest.folder / "trajectory.webp", cfg.animation.fps)
    manifest.pictures |= shown
    manifest.write()


def _list_captions(job: Job) -> str:
    """The conditions of the samples, for the log: the classes by their names, whatever was typed."""
    captions = list(dict.fromkeys(job.caption(job.asked[:GRID])))
    if not captions:
        return ""
    return f" ({'; '.join(captions[:12])}{'; ...' if len(captions) > 12 else ''})"


def require_finite(images: Tensor, some: Sequence[Sample]) -> None:
    """Refuse images that are not numbers: as a file, they would be black.

    :raises UserError: naming the first
    """
    bad = (~images.isfinite()).flatten(1).any(dim=1).nonzero()
    if len(bad):
        raise UserError(f"sample {some[int(bad[0])]['index']} has values that are not finite numbers", "a finite image",
                        "a smaller guidance scale, guidance=clip, or another checkpoint: step=...")


def _load(path: Path) -> Tensor:
    with open_image(path) as image:
        pixels = torch.from_numpy(np.array(image))
    return to_float(pixels.movedim(-1, 0) if pixels.ndim == 3 else pixels[None])
