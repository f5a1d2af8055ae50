"""What the commands do. Heavy imports come after the config has been checked."""

import logging
import shlex
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from configs import UserError
from configs.cli import job
from configs.overrides import check_recipe, quote, refuse_unknown
from configs.values import list_places, require_ints, require_values, settle_paths, to_plain
from diffusion.runs.origins import find_origins
from diffusion.runs.run import Run

log = logging.getLogger(__name__)


def train(cfg: DictConfig, experiment: str | None) -> Run:
    """Train, or go on training, the run that the config describes. One that has all its steps is left as it is; torch
    is loaded for it only if its images are files, which are compared with those of the training.

    :param cfg: the composed ``train`` config
    :param experiment: name of the experiment, for the folder
    """
    require_values(cfg)
    if not isinstance(cfg.run, DictConfig):
        raise UserError(f"run={cfg.run} for train.py", "run.root and run.name, the folder of the run: the command that "
                        "began it resumes it, a file of scripts/export.py cannot be resumed",
                        f"begin=base begin.base.run={quote(str(cfg.run))}, to begin a run with its weights")
    settle_paths(cfg, ["data", "degradation"])
    require_ints(cfg, batch=1, accumulate=1, max_steps=1, seed=0)
    check_recipe(cfg.sampling, Path(cfg.run.root))
    origins = find_origins(to_plain(cfg))
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


def sample(cfg: DictConfig) -> Path:
    """Draw samples from a run, or restore images with it; gives the folder of the pictures.

    :param cfg: the composed ``sample`` config
    """
    refuse_unknown(cfg, "sample")
    require_values(cfg)
    settle_paths(cfg)
    require_ints(cfg, batch=1, seed=0)
    Run.open(cfg.run)

    from diffusion.sampling import command as sampling

    return sampling.sample(cfg)


def evaluate(cfg: DictConfig, other: DictConfig | None = None) -> dict[str, Any]:
    """Measure a run or a folder of images; gives what it prints.

    :param cfg: the composed ``evaluate`` config
    :param other: that of ``against``, the run or folder that the first is compared with
    """
    refuse_unknown(cfg, "evaluate")
    require_values(cfg)
    settle_paths(cfg)
    require_ints(cfg, count=2, batch=1, seed=0)
    for each in (cfg, other):
        if each is not None:
            settle_paths(each)
        if each is not None and each.run:
            Run.open(each.run)

    from diffusion.evaluation import command as evaluation

    return evaluation.evaluate(cfg, other)
