"""Fit a prior to a run's training images: ``python scripts/fit_prior.py run=runs/NAME prior=mixture``.

The prior is the run's own, or another one with its settings (``prior=mixture prior.components=10``), which the run has
from then on: it is written into all checkpoints of the run, and into its config.yaml. Training does that for the prior
of its config by itself; this is for a change of mind. ``data.root=`` says where the images lie, if they have moved.
"""

import logging

from omegaconf import DictConfig, OmegaConf

from configs import UserError, construct, registry
from configs.cli import command
from configs.values import require_values, to_plain
from diffusion.runs.files import write_whole
from diffusion.runs.run import Run

log = logging.getLogger(__name__)


def fit_prior(cfg: DictConfig, experiment: str | None = None) -> None:
    """Fit, and write it down.

    :param cfg: the composed ``sample`` config: run, prior, data.root, device, allow
    :raises UserError: for a prior that has nothing to fit, or does not suit the run's degradation
    """
    require_values(cfg)
    run = Run.open(cfg.run)

    from diffusion.loading import load
    from diffusion.priors import Prior
    from diffusion.runs import checkpoint
    from diffusion.sampling.command import build_data

    packages = (*registry.trusted(), *cfg.allow)
    model = load(cfg.run, device=cfg.device, allow=cfg.allow)
    chosen = to_plain(cfg.prior) if cfg.prior else model.config["prior"]
    model.prior = prior = construct(chosen, packages=packages, role=Prior)
    prior.check(model.degradation)
    if not prior.count:
        raise UserError(f"the prior {type(prior).__name__}, which has nothing to fit", "one that learns from images",
                        "prior=mixture or prior=dataset")
    images = build_data(model, cfg.data.root, packages).split("train")
    log.info("prior: fitted to %d images", min(prior.count, len(images)))
    model.fit_prior(images)
    for step, path in checkpoint.list_checkpoints(run.checkpoints).items():
        content = checkpoint.read(path)
        content["config"]["prior"] = chosen
        checkpoint.save(run.checkpoints, step, content | {"prior": prior.state()})
    write_whole(run.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(run.config | {"prior": chosen})))
    log.info("sample: python sample.py run=%s", run.folder)


if __name__ == "__main__":
    command("sample", fit_prior)
