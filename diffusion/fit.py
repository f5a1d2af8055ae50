"""Build everything that a config names and train it."""

import logging
import sys
import warnings
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from configs import UserError, construct
from diffusion.callbacks.checkpoint import Checkpoint
from diffusion.data.base import Data
from diffusion.model import Model
from diffusion.module import Training
from diffusion.run import Run, digest, identity, plain

log = logging.getLogger(__name__)


def fit(cfg: DictConfig, run: Run, content: dict[str, Any] | None) -> None:
    """Train from scratch, or from the content of a checkpoint, up to ``max_steps``.

    Ends the process with 128 + the signal's number when a signal stopped the training.
    """
    data: Data = construct(cfg.data)
    images, held_out = data.split("train"), data.split("test")
    log.info("data: %d training and %d held-out images of %d px%s", len(images), len(held_out), data.size,
             f", {data.classes} classes" if data.classes else "")
    model = Model(with_classes(plain(cfg), data.classes))
    training = Training(model, images, data.flip, construct(cfg.optimizer), fingerprint=data.fingerprint(),
                        batch=cfg.batch, accumulate=cfg.accumulate, max_steps=cfg.max_steps, seed=cfg.seed,
                        decay=cfg.ema)
    count = sum(p.numel() for p in model.weights.parameters())
    log.info("model: %.2f million parameters", count / 1e6)
    model.try_out()
    if content is not None:
        if content["data"] != training.fingerprint:
            raise UserError(f"the images are not those with which {run.folder} was begun", "the same data set",
                            "data.root=WHERE_THEY_WERE, or run.name=ANOTHER_NAME to begin anew")
        training.restore(content)
        log.info("resuming at step %d", training.step)
    if cfg.trainer.compile:
        model.weights.net.compile()
    callbacks = list(construct(cfg.callbacks).values())
    for callback in callbacks:
        callback.run, callback.held_out = run, held_out
    lightning_trainer(cfg, run, training, callbacks).fit(training)
    asked = next((c.asked for c in callbacks if isinstance(c, Checkpoint) and c.asked is not None), None)
    if asked is not None:
        sys.exit(128 + asked)
    if training.step >= cfg.max_steps:
        log.info("done: step %d\nsample: python sample.py run=%s", training.step, run.folder)


def lightning_trainer(cfg: DictConfig, run: Run, training: Training, callbacks: list[Any]) -> L.Trainer:
    """Lightning for loops, devices and processes; what we do ourselves is switched off.

    :raises UserError: if the machine has not what ``trainer`` asks for
    """
    quiet()
    try:
        return L.Trainer(
            accelerator=cfg.trainer.accelerator, devices=cfg.trainer.devices, strategy=cfg.trainer.strategy,
            plugins=environment(), max_epochs=-1, max_steps=cfg.max_steps - training.step,
            accumulate_grad_batches=cfg.accumulate, gradient_clip_val=training.recipe.clip, callbacks=callbacks,
            logger=loggers(cfg, run), enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
            default_root_dir=run.folder)
    except (ValueError, MisconfigurationException) as error:
        raise UserError(f"trainer={plain(cfg.trainer)}: {error}", "devices that this machine has",
                        "trainer.accelerator=auto trainer.devices=1") from error


def with_classes(config: dict[str, Any], classes: int | None) -> dict[str, Any]:
    """The config with the number of classes of the data filled in where it was left open."""
    label = config["condition"].get("signals", {}).get("label")
    if label and label["num_classes"] is None:
        if classes is None:
            raise UserError("condition=label for images without classes", "a folder of folders, one per class",
                            "condition=none")
        label["num_classes"] = classes
    return config


def loggers(cfg: DictConfig, run: Run) -> list[Any]:
    """Lightning's loggers beside the CSV file; they write into the run folder and keep one identity over restarts."""
    made, config = {}, run.config
    for name, node in (cfg.logger or {}).items():
        place = {"save_dir": str(run.folder), "name": "/".join(run.folder.parts[-2:])}
        if name == "wandb":
            place |= {"id": f"{run.folder.name}-{digest(identity(config), config['data'])}", "resume": "allow"}
        made[name] = construct({**plain(node), **place})
        made[name].log_hyperparams(plain(cfg))
    return list(made.values())


def environment() -> list[Any]:
    """Under SLURM, Lightning's view of the job without its own requeueing: our signal handlers save and stop."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def quiet() -> None:
    """Lightning's advertisements and its worries about loaders that we do not use."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
