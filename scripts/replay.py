"""Repeat a step of a training and find what is not finite in it: ``python scripts/replay.py run=RUN step=12``.

The steps from the last checkpoint before it are repeated, too; nothing is written. On the same device, with the same
versions and one process, they are the same to the last bit. Without ``step=`` it is the first of ``RUN/skipped``.
"""

import json
import logging

from omegaconf import DictConfig, OmegaConf

from configs import UserError, registry
from configs.cli import command
from configs.values import require_ints, require_kinds, require_values, settle_paths
from diffusion.runs.run import Run

log = logging.getLogger(__name__)


def replay(cfg: DictConfig, experiment: str | None = None) -> str | None:
    """Repeat the step; gives what is not finite in it, in words, None if nothing is.

    :param cfg: the composed ``replay`` config
    :raises UserError: for a run or a step that cannot be repeated
    """
    require_values(cfg)
    settle_paths(cfg)
    require_kinds(cfg, run=str, step=int | None, device=str | None, data=dict, data__root=str | None, allow=list[str])
    run = Run.open(cfg.run)
    config = run.config
    if not run.folder.is_dir():
        raise UserError(f"{run.folder}, which holds no training", "the folder that train.py wrote", "run=FOLDER")
    at = find_step(run) if cfg.step is None else cfg.step
    require_ints(OmegaConf.create({"step": at}), step=1)
    if not isinstance(config.get("max_steps"), int) or at > config["max_steps"]:
        raise UserError(f"step={at} of a run of {config.get('max_steps')} steps", "one of its steps",
                        f"step={config.get('max_steps')}")

    import torch

    from diffusion.loading import build_data, require_config
    from diffusion.runs import checkpoint
    from diffusion.training.callbacks.replay import Replay
    from diffusion.training.fit import build_training, cache_latents, lightning_trainer

    require_config(config, str(run.place))
    packages = (*registry.trusted(), *cfg.allow)
    before = [path for step, path in checkpoint.list_checkpoints(run.checkpoints).items() if step < at]
    content = checkpoint.read(before[-1]) if before else None
    trainer = {**config["trainer"], "devices": 1, "strategy": "auto"}
    if cfg.device:
        trainer["accelerator"] = "gpu" if cfg.device.startswith("cuda") else cfg.device
    if trainer.get("threads"):
        torch.set_num_threads(trainer["threads"])
    data = build_data(config, cfg.data, packages)
    training = build_training(config, data, run, content, packages)
    watcher = Replay(at)
    settings = OmegaConf.create({"trainer": trainer, "accumulate": config["accumulate"], "max_steps": at})
    made = lightning_trainer(settings, run, training, [watcher])
    cache_latents(training, data, made.strategy.root_device)
    made.fit(training)
    log.info("step %d: %s", at, watcher.found or "everything is finite here; another device, other versions or several "
             "processes give other last bits")
    return watcher.found


def find_step(run: Run) -> int:
    """The first step of a run that changed nothing and whose batch was kept.

    :raises UserError: if there is none
    """
    for path in sorted(run.folder.glob("skipped/step-*.json")):
        return int(json.loads(path.read_text())["step"])
    raise UserError(f"no step of {run.folder} has been left out", "a step", "step=1, or any other")


if __name__ == "__main__":
    command("replay", replay)
