"""What the commands do. Heavy imports come after the config has been checked."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from diffusion.run import Run, missing, sampling, suited, whole

log = logging.getLogger(__name__)


def train(cfg: DictConfig, experiment: str | None) -> Run:
    """Train, or go on training, the run that the config describes.

    :param cfg: the composed ``train`` config
    :param experiment: name of the experiment, for the folder
    """
    missing(cfg)
    whole(cfg, batch=1, accumulate=1, max_steps=1, seed=0)
    cfg.sampling = suited(sampling(cfg.sampling), cfg.condition)
    run = Run.start(cfg, experiment)
    log.info("run folder: %s", run.folder)

    import torch

    from diffusion import checkpoint
    from diffusion.fit import fit

    if cfg.trainer.threads:
        torch.set_num_threads(cfg.trainer.threads)
    content = checkpoint.latest(run.checkpoints)
    if content is not None and content["step"] >= cfg.max_steps:
        log.info("this run is complete: step %d of %d\nmore: max_steps=%d, or sample: python sample.py run=%s",
                 content["step"], cfg.max_steps, 2 * content["step"], run.folder)
        return run
    fit(cfg, run, content)
    return run


def sample(cfg: DictConfig) -> Path:
    """Draw samples from a run, or restore images with it; gives the folder of the pictures.

    :param cfg: the composed ``sample`` config
    """
    missing(cfg)
    whole(cfg, batch=1, seed=0)
    Run.open(cfg.run)

    from diffusion import sampling

    return sampling.sample(cfg)


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Measure a run; gives the table that it prints.

    :param cfg: the composed ``evaluate`` config
    """
    missing(cfg)
    whole(cfg, count=2, batch=1, seed=0)
    Run.open(cfg.run)

    from diffusion import evaluation

    return evaluation.evaluate(cfg)
