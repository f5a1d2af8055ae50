"""``sample.py``: pictures from a run."""

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from configs import UserError, registry
from configs.values import require_ints, to_plain
from diffusion.loading import load
from diffusion.pictures import save_each
from diffusion.runs.environment import describe_environment
from diffusion.runs.files import make_folder
from diffusion.runs.memory import peak
from diffusion.runs.run import Run
from diffusion.runs.share import ALONE, Share
from diffusion.sampling.archives import ARCHIVES
from diffusion.sampling.inputs import find_root, log_changes
from diffusion.sampling.job import Job, require_finite
from diffusion.sampling.manifest import Manifest, folder_name, order_tables
from diffusion.sampling.parts import FOLDER as PARTS
from diffusion.sampling.parts import draw_parts
from diffusion.sampling.showing import Shown, describe_captions
from diffusion.sampling.watchers import Bar
from models.readers import ClassReader

log = logging.getLogger(__name__)


def sample(cfg: DictConfig, share: Share = ALONE) -> Path:
    """Draw or restore the samples that the config asks for, as far as they are not there yet; gives their folder.

    :param share: which of several processes this one is, each of which draws a part of them
    """
    check(cfg)
    run = Run.open(cfg.run)
    steps = run.steps
    model = load(cfg.run, weights=cfg.weights, step=cfg.step, device=cfg.device or choose_gpu(share), allow=cfg.allow,
                 precision=cfg.precision, compile=cfg.compile)
    steps |= run.steps  # a training that goes on writes and removes some
    job = registry.build("kind", model.evaluator.task).plan(cfg, model)
    # What does not depend on how the work is divided, and of PNGs what has always been said.
    left_out = ["shard"] if cfg.format in ARCHIVES else ["shard", "format"]
    left_out += [] if cfg.to else ["from", "to"]
    left_out += [] if cfg.precision else ["precision"]
    left_out += [] if cfg.compile else ["compile"]
    settings: dict[str, Any] = {key: value for key, value in to_plain(cfg).items() if key not in left_out}
    settings |= {"precision": model.evaluator.precision} if cfg.precision else {}
    settings |= {"step": model.step, "guidance": order_tables(settings["guidance"])}
    stamp = {"step": model.step, "checksum": steps[model.step]}
    record = {"run": str(cfg.run), "checkpoint": stamp, **job.describe(), "settings": settings,
              "environment": describe_environment()}
    if cfg.format in ARCHIVES:
        record["archive"] = ARCHIVES[cfg.format].file
    words = {name: reader.words for name, reader in model.readers().items()
             if isinstance(reader, ClassReader) and reader.words}
    if words:
        record["words"] = words
    folder = Path(str(cfg.out)) if cfg.out else run.folder / "samples" / folder_name(job.title, settings, stamp)
    make_folder(folder)
    try:
        manifest = Manifest(folder, record, cfg.overwrite)
        if cfg.format == "png" and share.count == 1 and not (folder / PARTS).exists():
            draw(job, manifest)
        else:
            draw_parts(job, manifest, share)
    finally:
        with contextlib.suppress(OSError):  # there is something in it
            folder.rmdir()
            folder.parent.rmdir()
    log.info("pictures: %s", folder)
    return folder


def choose_gpu(share: Share) -> str | None:
    """The GPU of one of several processes on this machine; None if there are not several of either."""
    gpus = torch.cuda.device_count() if share.count > 1 else 0
    return f"cuda:{share.local % gpus}" if gpus > 1 else None


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
    cfg, asked, shown = job.cfg, job.asked, Shown(job, job.asked)
    todo = {i for i, entry in enumerate(asked) if cfg.overwrite or not manifest.has(entry)}
    log.info("samples to draw: %d of %d%s%s", len(todo), len(asked), describe_captions(job),
             "; overwrite=true draws the others again" if len(todo) < len(asked) else "")
    if not todo and manifest.shows(shown.record):
        return
    # The pictures show more of the first samples than is kept in the files.
    todo |= set(range(shown.first))
    twins, size = cfg.twins, max(cfg.twins, cfg.batch // cfg.twins * cfg.twins)  # a batch has all twins of a sample
    todo = {i // twins * twins + k for i in todo for k in range(twins)}
    order = [asked[i] for i in sorted(todo)]
    if job.inputs and cfg.input.root:
        log_changes(find_root(cfg), [entry["source"] for entry in order], job.inputs.side)

    bar = Bar(job.steps * -(-len(order) // size))
    begin, costs = time.monotonic(), {}
    try:
        with job.count() as counts, peak(job.model.device) as memory:
            for first in range(0, len(order), size):
                some = order[first:first + size]
                images = job.batch(some, [bar, *shown.callbacks])
                require_finite(images[job.title], some)
                save_each(images[job.title], manifest.folder, [entry["file"] for entry in some])
                manifest.add(some)
                shown.add(images)
        costs = {**counts, "bytes": memory.bytes or 0}
    except KeyboardInterrupt:
        log.info("what is done is in %s; the same command goes on", manifest.folder)
        raise
    finally:
        bar.close()
        if costs and order:
            manifest.record_costs(costs, len(order))
        manifest.seconds += time.monotonic() - begin
        manifest.write()
    shown.save(manifest.folder)
    manifest.pictures |= shown.record
    manifest.write()
