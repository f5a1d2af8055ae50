"""What the commands do. Heavy imports come after the config has been checked."""

import contextlib
import logging
import os
import shlex
from glob import glob
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, ListConfig

from configs import UserError
from configs.cli import job
from configs.overrides import check_recipe, quote, refuse_unknown
from configs.registry import closest
from configs.values import (
    list_places,
    require_ints,
    require_kinds,
    require_parts,
    require_values,
    settle_paths,
    to_plain,
)
from diffusion.runs.origins import find_origins
from diffusion.runs.run import Run
from diffusion.runs.share import Share, find_share

log = logging.getLogger(__name__)

MOST_THREADS = 1024
MOST_SAMPLES = 10**7
MOST_DEVICES = 16
"""GPUs of one machine."""


def train(cfg: DictConfig, experiment: str | None) -> Run:
    """Train, or go on training, the run that the config describes. One that has all its steps is left as it is; torch
    is loaded for it only if its images are files, which are compared with those of the training.

    :param cfg: the composed ``train`` config
    :param experiment: name of the experiment, for the folder
    """
    origins = settle_training(cfg)
    with Run.start(cfg, experiment, job(), origins) as run:
        log.info("run folder: %s", run.folder)
        step = run.complete(cfg.max_steps)
        if step is not None:
            if list_places(to_plain(cfg.data)) or list_places(to_plain(cfg.degradation)):
                from diffusion.training.fit import compare_images

                compare_images(cfg, run)
            place = shlex.quote(str(run.folder))
            sample = f", or sample: python sample.py run={place}" if cfg.sampling else ""
            log.info("this run is complete: step %d of %d\nmore: max_steps=%d%s", step, cfg.max_steps, 2 * step, sample)
            return run

        import torch

        from diffusion.runs import checkpoint
        from diffusion.training.fit import fit

        if cfg.trainer.threads:
            torch.set_num_threads(cfg.trainer.threads)
        fit(cfg, run, checkpoint.read_latest(run.checkpoints), origins)
        return run


def settle_training(cfg: DictConfig) -> dict[str, Any]:
    """Check the composed ``train`` config, and make its paths those of any folder.

    :returns: the checkpoints that the run begins with, see :func:`diffusion.runs.origins.find_origins`
    :raises UserError: naming the first setting that means nothing
    """
    require_values(cfg)
    if not isinstance(cfg.run, DictConfig):
        raise UserError(f"run={cfg.run} for train.py", "run.root and run.name, the folder of the run: the command that "
                        "began it resumes it, a file of scripts/export.py cannot be resumed",
                        f"begin=base begin.base.run={quote(str(cfg.run))}, to begin a run with its weights")
    settle_paths(cfg, ["data", "degradation"])
    check_training(cfg)
    check_recipe(cfg.sampling, Path(cfg.run.root))
    return find_origins(to_plain(cfg))


def check_training(cfg: DictConfig) -> None:
    """Refuse settings of ``train.py`` that mean nothing, before any work.

    :raises UserError: naming the first
    """
    require_parts(cfg, "data", "space", "degradation", "prior", "condition", "model", "objective", "optimizer")
    require_ints(cfg, batch=1, accumulate=1, max_steps=1, seed=0)
    require_kinds(cfg, ema=float, precision=str | int, score=str | None, run__root=str,
                  run__name=str | int | float | bool | None, trainer__accelerator=str,
                  trainer__devices=int | str | list[int], trainer__num_nodes=int, trainer__strategy=str,
                  trainer__threads=int | None, trainer__compile=bool, trainer__gradient_checkpointing=bool,
                  allow=list[str], trainable=list[str] | str | None, callbacks=dict | None, logger=dict | None,
                  begin=dict | None, sampling=list | str)
    known = ("accelerator", "devices", "num_nodes", "strategy", "threads", "compile", "gradient_checkpointing")
    for key in cfg.trainer:
        if key not in known:
            raise UserError(f"+trainer.{key}: a setting that there is not", f"one of {', '.join(known)}",
                            f"trainer.{closest(str(key), known)}=...")
    if not 0 <= cfg.ema <= 1:
        raise UserError(f"ema={cfg.ema:g}", "a decay in [0, 1]", "ema=0.9999")
    cores = os.cpu_count() or 1
    threads, devices = cfg.trainer.threads, cfg.trainer.devices
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UserError(f"trainer.threads={threads}", f"1 to {MOST_THREADS}, or null",
                        f"trainer.threads={min(cores, MOST_THREADS)}")
    if cfg.trainer.num_nodes < 1:
        raise UserError(f"trainer.num_nodes={cfg.trainer.num_nodes}", "1 or more machines", "trainer.num_nodes=1")
    count = len(devices) if isinstance(devices, ListConfig) else devices
    if isinstance(count, int) and count != -1 and not 1 <= count <= max(cores, MOST_DEVICES):
        raise UserError(f"trainer.devices={devices}", "at least one device, and no more than there are; -1 is all",
                        "trainer.devices=1")


def check_recipe_settings(cfg: DictConfig) -> None:
    """Refuse settings that ``sample.py`` and ``evaluate.py`` share and that mean nothing.

    :raises UserError: naming the first
    """
    require_parts(cfg, "sampler")
    require_kinds(cfg, start=float, weights=Literal["ema", "raw"], step=int | Literal["best"] | None,
                  device=str | None, allow=list[str], condition=dict, data=dict, data__root=str | list[str] | None,
                  guidance=dict | None, edit=dict | None, prior=dict | None, pool=int | None,
                  precision=str | int | None, compile=bool)
    if cfg.pool is not None:
        require_ints(cfg, pool=1)
    places = cfg.data.root if isinstance(cfg.data.root, ListConfig) else [cfg.data.root]
    if not all(place is None or Path(place).exists() or glob(place, recursive=True) for place in places):
        raise UserError(f"there is nothing at data.root={cfg.data.root}", "where the run's data lies now",
                        "data.root=WHERE, or without it where it lay")
    for name in cfg.allow:
        if not name.isidentifier():
            raise UserError(f"allow=[{name}]", "names of packages", "allow=[PACKAGE]")


def sample(cfg: DictConfig) -> Path:
    """Draw samples from a run, or restore images with it; gives the folder of the pictures.

    :param cfg: the composed ``sample`` config
    """
    refuse_unknown(cfg, "sample")
    require_values(cfg)
    settle_captions(cfg)
    settle_paths(cfg)
    require_ints(cfg, batch=1, seed=0)
    check_recipe_settings(cfg)
    require_kinds(cfg, run=str, out=str | None, overwrite=bool, animate=bool, animation=dict, input=dict,
                  input__root=str | None, input__t=float, format=Literal["png", "zip", "npz"], shard=str)
    share = find_own_share(cfg)
    if not 0 < cfg.input.t <= 1:
        raise UserError(f"input.t={cfg.input.t}", "a time in (0, 1]", "input.t=0.5, or start=0.5")
    Run.open(cfg.run)

    from diffusion.sampling import command as sampling

    return sampling.sample(cfg, share)


def settle_captions(cfg: DictConfig) -> None:
    """Check ``from`` and ``to``, the captions of a source and of its edit, which are twins.

    :raises UserError: for one without the other, or for twins of another number
    """
    require_kinds(cfg, **{"from": str | list[str] | None, "to": str | list[str] | None})
    given = [key for key in ("from", "to") if cfg[key] not in (None, "")]
    if not given and cfg["from"] is None and cfg.to is None:
        return
    if len(given) < 2:
        raise UserError(f"{given[0]}={cfg[given[0]]} alone" if given else "from and to without words",
                        "a caption of the source and one of the edit", 'from="a red seven" to="a green seven"')
    if cfg.twins not in (1, 2):
        raise UserError(f"twins={cfg.twins} with from= and to=", "a source and its edit", "twins=2, or nothing")
    cfg.twins = 2


def find_own_share(cfg: DictConfig) -> Share:
    """Which of several processes this one is, by ``shard`` and the environment.

    :raises UserError: if that cannot be told, or they would throw away each other's work
    """
    share = find_share(cfg.shard, os.environ, sweep=job() is not None)
    if share.count > 1:
        log.info("%s", share)
        if cfg.overwrite:
            raise UserError(f"overwrite=true with {share}, which would throw away what the others draw",
                            "one process that throws something away", "another out=FOLDER, or remove the folder first")
    elif cfg.shard == "none":
        with contextlib.suppress(UserError):
            several = find_share("auto", os.environ, sweep=job() is not None)
            if several.count > 1:
                log.info("%d processes (%s), and this one does all of the work: shard=auto would divide it",
                         several.count, several.source)
    return share


def evaluate(cfg: DictConfig, other: DictConfig | None = None) -> dict[str, Any]:
    """Measure a run or a folder of images; gives what it prints.

    :param cfg: the composed ``evaluate`` config
    :param other: that of ``against``, the run or folder that the first is compared with
    """
    refuse_unknown(cfg, "evaluate")
    require_values(cfg)
    settle_paths(cfg)
    require_ints(cfg, count=2, batch=1, seed=0)
    if cfg.count > MOST_SAMPLES:
        raise UserError(f"count={cfg.count}", f"at most {MOST_SAMPLES} samples", f"count={MOST_SAMPLES}")
    check_recipe_settings(cfg)
    require_kinds(cfg, run=str | None, images=str | None, reference=str, against=str | None, judge=str | None,
                  embedding=str | None, samplers=list | str | None, metrics=dict | None, extractor=dict | None,
                  shard=str)
    share = find_own_share(cfg)
    if share.count > 1 and (cfg.against or cfg.images):
        raise UserError(f"{share} with {'against' if cfg.against else 'images'}=..., where nothing is divided",
                        "samples of one run", "shard=none, when both runs are measured")
    if cfg.against and not Path(str(cfg.against)).exists():
        raise UserError(f"there is nothing at against={cfg.against}", "a run, or a folder of images", "against=RUN")
    for each in (cfg, other):
        if each is not None:
            settle_paths(each)
        if each is not None and each.run:
            Run.open(each.run)

    from diffusion.evaluation import command as evaluation

    return evaluation.evaluate(cfg, other, share)
