"""Fit a prior to a run's training images: ``python scripts/fit_prior.py run=runs/NAME prior=mixture``.

The prior is the run's own, or another one with its settings (``prior=mixture prior.components=10``). The result is a
run of its own with the newest checkpoint of the first, beside it unless ``out=FOLDER`` says where; ``overwrite=true``
replaces it. Training fits the prior of its config by itself; this is for a change of mind. ``data.root=`` says where
the images lie, if they have moved.
"""

import logging
import shlex
from pathlib import Path

from omegaconf import DictConfig

from configs import UserError, construct, registry
from configs.cli import command
from configs.values import require_values, settle_paths, to_plain
from diffusion.runs.run import Run

log = logging.getLogger(__name__)


def fit_prior(cfg: DictConfig, experiment: str | None = None) -> Run:
    """Fit, and write it down; gives the new run.

    :param cfg: the composed ``sample`` config: run, step, weights, prior, data.root, device, allow, out, overwrite
    :raises UserError: for a prior that has nothing to fit, or does not suit the run's degradation
    """
    require_values(cfg)
    settle_paths(cfg)
    run = Run.open(cfg.run)

    from diffusion.derive import derive
    from diffusion.loading import build_data, load
    from diffusion.priors import Prior

    packages = (*registry.trusted(), *cfg.allow)
    model = load(cfg.run, weights=cfg.weights, step=cfg.step, device=cfg.device, allow=cfg.allow)
    chosen = to_plain(cfg.prior) if cfg.prior else model.config["prior"]
    model.weights.prior = prior = construct(chosen, packages=packages, role=Prior)
    prior.check(model.degradation)
    name = type(prior).__name__.removesuffix("Prior").lower()
    if not prior.count:
        raise UserError(f"the prior {type(prior).__name__}, which has nothing to fit", "one that learns from images",
                        "prior=mixture or prior=dataset")
    images = build_data(model.config, cfg.data, packages).split("train")
    log.info("prior: fitted to %d images", min(prior.count, len(images)))
    model.fit_prior(images)
    model.config = {**model.config, "prior": chosen}
    folder = Path(str(cfg.out)) if cfg.out else run.folder.with_name(f"{run.folder.name},prior={name}")
    made = derive(run, model, folder, {"prior": chosen}, cfg.overwrite)
    log.info("sample: python sample.py run=%s", shlex.quote(str(made.folder)))
    return made


if __name__ == "__main__":
    command("sample", fit_prior)
