"""Build everything that a config names and train it."""

import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from signal import SIGUSR1
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from omegaconf import DictConfig, ListConfig

from configs import UserError, construct, registry
from configs.cli import job
from configs.cluster import find_job, requeue
from configs.overrides import drop_condition_guidance, reserved_names
from configs.registry import locate
from configs.values import to_plain
from diffusion.begin import begin, select_trainable
from diffusion.data.base import Data
from diffusion.model import Model
from diffusion.objectives.base import Rule
from diffusion.objectives.regression import describe_vector
from diffusion.precision import settle_precision
from diffusion.runs import checkpoint
from diffusion.runs.identity import AUTO, extract_identity, hash_identity
from diffusion.runs.origins import fix_steps
from diffusion.runs.run import Run
from diffusion.sampling.inputs import Inputs
from diffusion.sampling.selection import derive_signals
from diffusion.spaces.cache import add_moments
from diffusion.spaces.latent import Latent
from diffusion.training.callbacks.checkpoint import Checkpoint
from diffusion.training.module import Training
from models.blocks import recompute
from models.conditioning import Signal

log = logging.getLogger(__name__)

NEEDS = {"label": ("classes", "a folder of images for each class, or data=digits"),
         "attributes": ("attributes", "data=celeba data.signals=[attributes]"),
         "answers": ("answers", "data=scenes")}
"""What a classifier that predicts a signal wants of the images, and what gives it."""


def fit(cfg: DictConfig, run: Run, content: dict[str, Any] | None, origins: Mapping[str, Any] | None = None) -> None:
    """Train from scratch, or from the content of a checkpoint, up to ``max_steps``.

    Ends the process with 128 + the signal's number when a signal stopped the training.

    :param origins: the checkpoints that the run begins with
    """
    data: Data = construct(cfg.data)
    images = data.split("train")
    held_out = data.split("test") if data.holds_out else None
    described = data.described
    log.info("data: %d training and %d held-out images of %d px%s", len(images), len(held_out or ()), data.size,
             "".join(f", {words['num_classes']} classes" if name == "label" else f", {name}"
                     for name, words in described.items()))
    precision = choose_precision(cfg, content)
    plain = {**to_plain(cfg), "precision": precision, "origin": dict(origins or {})}
    config = fix_steps(plain, origins or {})
    training = build_training(fill_signals(config, describe_vector(config, data)), data, run, content)
    model = training.model
    condition = derive_signals(model, Inputs(images), [0])
    if data.flip:  # refused before the work, not after a while
        model.weights.encoder.mirror(dict(images.choose(torch.tensor([0])).signals), data.size)
    model.try_out(condition)
    if cfg.trainer.gradient_checkpointing:
        recompute(model.weights.net)
    if cfg.trainer.compile:
        model.weights.net.compile()
    # A file such as debug=fast may speak of callbacks that this run does not have: those are no objects.
    made = (construct(cfg.get("callbacks")) or {}).values()
    callbacks: list[Any] = [callback for callback in made if isinstance(callback, L.Callback)]
    if not any(isinstance(callback, Checkpoint) for callback in callbacks):
        raise UserError("callbacks without one that saves checkpoints: the training would be lost",
                        "diffusion.training.callbacks.checkpoint.Checkpoint among them",
                        "callbacks=default; callbacks.checkpoint.every=0 saves at the end only")
    for callback in callbacks:
        if held_out is None and getattr(callback, "needs_held_out", False):
            held_out = data.split("test")  # says what to do
        callback.run, callback.held_out = run, images if held_out is None else held_out
    if held_out is None:
        log.info("no images are held out: the pictures show images of the training")
    trainer = lightning_trainer(cfg, run, training, callbacks)
    if trainer.is_global_zero:
        run.record(model.config)
    cache_latents(training, data, trainer.strategy.root_device)
    try:
        trainer.fit(training)
    except SystemExit as end:  # Lightning's answer to a KeyboardInterrupt, once it has ended its other processes
        raise KeyboardInterrupt from end
    asked = next((c.asked for c in callbacks if isinstance(c, Checkpoint) and c.asked is not None), None)
    if asked == SIGUSR1:  # SLURM announces the time limit or a preemption
        requeue()
    if asked is not None:
        sys.exit(128 + asked)
    if training.step >= cfg.max_steps:
        hint = registry.build("kind", model.evaluator.task).hint
        log.info("done: step %d\n%s", training.step, hint.format(run=shlex.quote(str(run.folder))))


def choose_device(accelerator: str) -> str:
    """The type of the device that Lightning takes for an accelerator."""
    if accelerator in ("auto", "gpu", "cuda"):
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return accelerator


def choose_precision(cfg: DictConfig, content: Mapping[str, Any] | None) -> str:
    """The precision of a training: that with which it was begun, else that of the config, ``auto`` settled on this
    machine.

    :param content: of the checkpoint from which it goes on, if any
    """
    asked = str(cfg.precision)
    if content is not None and asked == AUTO:
        asked = str(content["config"]["precision"])
    precision = settle_precision(asked, choose_device(cfg.trainer.accelerator))
    if asked == AUTO:
        log.info("precision: %s, the fastest of this machine, from now on that of this run", precision)
    return precision


def build_training(config: dict[str, Any], data: Data, run: Run, content: Mapping[str, Any] | None,
                   packages: Sequence[str] | None = None) -> Training:
    """A training at its first step, or at that of a checkpoint.

    :param config: the resolved config of a run
    :param packages: packages whose classes the config may name; None trusts it
    :raises UserError: for other images than the checkpoint's or a source's, and a run that was made without training
    """
    images, model = data.split("train"), Model(config, packages)
    config = model.config
    model.arrange(choose_device(config["trainer"]["accelerator"]))
    if config["trainer"]["strategy"] == "fsdp":  # which shards contiguous weights only
        model.weights.net.to(memory_format=torch.contiguous_format)
    model.weights.encoder.check_sources(data.described)
    model.objective.check_data(data.described)
    if content is None:
        begin(model, config.get("begin") or {}, config["origin"])
    select_trainable(model.weights, config.get("trainable"))
    training = Training(model, images, data.flip, construct(config["optimizer"], packages=packages, role=Rule),
                        fingerprint=data.fingerprint() + model.degradation.fingerprint(), batch=config["batch"],
                        accumulate=config["accumulate"], max_steps=config["max_steps"], seed=config["seed"],
                        decay=config["ema"])
    count = sum(p.numel() for p in model.weights.parameters())
    log.info("model: %.2f million parameters", count / 1e6)
    if content is not None:
        if "optimizers" not in content:
            raise UserError(f"{run.folder} was made of another run without training", "a run that train.py has begun",
                            "run.name=ANOTHER_NAME, which may begin with this one: begin=base")
        require_same_images(content, training.fingerprint, run)
        training.restore(dict(content))
        log.info("resuming at step %d", training.step)
    if content is None and model.space.count:
        log.info("space: fitted to %d images", min(model.space.count, len(images)))
        model.fit_space(images)
    if not model.prior.fitted:
        log.info("prior: fitted to %d images", min(model.prior.count, len(images)))
        model.fit_prior(images)
    return training


def cache_latents(training: Training, data: Data, device: torch.device) -> None:
    """Have a first stage encode the training images once, or find what it has made of them before."""
    space = training.model.space
    if isinstance(space, Latent):
        space.to(device)
        training.images = add_moments(space, training.images, data.fingerprint(), data.flip,
                                      training.model.augment is not None)


def require_same_images(content: Mapping[str, Any], fingerprint: str, run: Run) -> None:
    """Refuse to go on with other images than those of a checkpoint.

    :param fingerprint: of the data and the degradation, see ``diffusion.data.base.Data.fingerprint``
    :raises UserError: if they differ
    """
    if content["data"] != fingerprint:
        raise UserError(f"the images are not those with which {run.folder} was begun", "the same data sets",
                        "data.root=WHERE_THEY_WERE, or run.name=ANOTHER_NAME to begin anew")


def compare_images(cfg: DictConfig, run: Run) -> None:
    """Compare the images that the config names with those of a run that is complete.

    :raises UserError: if they differ, or are not there
    """
    content = checkpoint.read_latest(run.checkpoints)
    assert content is not None
    require_same_images(content, construct(cfg.data).fingerprint() + construct(cfg.degradation).fingerprint(), run)


def lightning_trainer(cfg: DictConfig, run: Run, training: Training, callbacks: list[Any]) -> L.Trainer:
    """Lightning for loops, devices and processes; what we do ourselves is switched off.

    :raises UserError: if the machine has not what ``trainer`` asks for, or for several processes in a sweep
    """
    quiet()
    try:
        trainer = L.Trainer(
            accelerator=cfg.trainer.accelerator, devices=cfg.trainer.devices, num_nodes=cfg.trainer.num_nodes,
            strategy=choose_strategy(cfg, training), plugins=environment(), max_epochs=-1,
            max_steps=cfg.max_steps - training.step, callbacks=callbacks,
            accumulate_grad_batches=cfg.accumulate, logger=loggers(cfg, run, training),
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, num_sanity_val_steps=0, default_root_dir=run.folder)
    except (ValueError, TypeError, ImportError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"trainer={to_plain(cfg.trainer)}: {error}", "devices that this machine has",
                        "trainer=auto trainer.devices=1") from error
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > (os.cpu_count() or 1):
        raise UserError(f"trainer.devices={cfg.trainer.devices} on {os.cpu_count()} cores",
                        "at most one process for each core", f"trainer.devices={os.cpu_count()}")
    if trainer.world_size > 1 and job() is not None and find_job() is None:
        # Lightning's further processes repeat the command, which is the whole sweep.
        raise UserError(f"a sweep of runs on {trainer.world_size} devices each", "one device for each run",
                        "trainer.devices=1, or one command for each run")
    return trainer


def choose_strategy(cfg: DictConfig, training: Training) -> Any:
    """Lightning's strategy; of ``fsdp`` the object, with a shard for each process.

    :raises UserError: for a training that has more to shard than a network that restores
    """
    if cfg.trainer.strategy != "fsdp":
        return cfg.trainer.strategy
    from lightning.pytorch.strategies import ModelParallelStrategy

    if training.model.evaluator.task != "restore":
        raise UserError("trainer.strategy=fsdp for what is not a restorer", "a model that restores, such as "
                        "experiment=ddpm_cifar10", "trainer=ddp")
    devices = cfg.trainer.devices
    count = len(devices) if isinstance(devices, ListConfig) else devices
    count = count if isinstance(count, int) and count > 0 else torch.cuda.device_count()
    return ModelParallelStrategy(data_parallel_size=max(1, count) * cfg.trainer.num_nodes, tensor_parallel_size=1,
                                 save_distributed_checkpoint=False)


def fill_signals(config: dict[str, Any], described: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The config with what the data say about their signals filled in where it was left open. A signal that neither the
    data nor a source has is left out (it is null then), and the guidance by it: any experiment trains on any images,
    but for a classifier's. What a classifier predicts is the ``signal`` of its criterion, the classes if it has none.

    :param described: see :attr:`diffusion.data.base.Data.described`
    :raises UserError: for a classifier of images without what it predicts, or of less than there is; for a signal that
        cannot be left out, or whose name the commands use for something else
    """
    config, model = {**config, "model": dict(config["model"])}, config["model"]
    if "classes" in model:
        criterion = config["objective"]
        signal = criterion.get("signal") or getattr(locate(criterion["_target_"]), "signal", "label")
        what, fix = NEEDS.get(signal, (signal, f"data that have {signal}"))
        if signal not in described:
            raise UserError(f"a classifier of images without {what}", f"images with {what}", fix)
        said = described[signal]
        words = said.get("words") or ()
        classes = said.get("num_classes") or len(said.get("mean", ())) or \
            (sum(map(len, words.values())) if isinstance(words, Mapping) else len(words))
        config["model"]["classes"] = classes if model["classes"] is None else model["classes"]
        if config["model"]["classes"] < classes:
            raise UserError(f"model.classes={model['classes']} for images of {classes} {what}",
                            "as many as there are", f"model.classes={classes}")
        config["objective"] = {key: said.get(key) if value is None else value
                               for key, value in config["objective"].items()}
    given = config["condition"].get("signals", {})
    sources, signals = config["condition"].get("sources") or {}, {}
    droppable = "signals" not in config["condition"]  # somebody's own encoder
    for name, node in given.items():
        if name in reserved_names():
            raise UserError(f"a signal called {name}, which the commands use for something else", "another name",
                            f"condition.signals.{name}_2")
        role = locate(node["_target_"], role=Signal) if node else Signal
        if node and name not in described and name not in sources and not role.droppable:
            raise UserError(f"images without {name}, which has to be given", f"data that have it: "
                            f"{', '.join(described) or 'these have nothing but images'}",
                            f"condition.sources.{name}, which makes it of the images")
        known = name in described or name in sources
        if node and not known:
            log.info("the images have no %s: the condition is left without it",
                     "classes" if name == "label" else name)
        said = described.get(name, {})
        signals[name] = {key: said.get(key) if value is None else value for key, value in node.items()} \
            if node and known else None
        droppable |= bool(signals[name]) and role.droppable
    if given:
        config["condition"] = {**config["condition"], "signals": signals}
    config["sampling"] = drop_condition_guidance(config["sampling"]) if not droppable else config["sampling"]
    return config


def loggers(cfg: DictConfig, run: Run, training: Training) -> list[Any]:
    """Lightning's loggers beside the CSV file; they write into the run folder and keep one identity over restarts."""
    made, config = [], {**to_plain(cfg), "precision": AUTO}  # what a restart need not repeat
    for name, node in (config.get("logger") or {}).items():
        place: dict[str, Any] = {"save_dir": str(run.folder), "name": "/".join(run.folder.parts[-2:])}
        if name == "wandb":
            word = re.sub(r"[^\w.=-]", "-", run.folder.name)[:100]  # the service allows few signs, 128 in all
            place |= {"id": f"{word}-{hash_identity(extract_identity(config), config['data'])}", "resume": "allow"}
        if name == "tensorboard":
            # What a killed process logged beyond its checkpoint is logged again.
            place |= {"name": "", "version": "tensorboard", "purge_step": training.step + 1}
        made.append(construct({**node, **place}))
        made[-1].log_hyperparams({**config, "precision": training.model.config["precision"]})
    return made


def environment() -> list[Any]:
    """Under SLURM, Lightning's view of the job without its own requeueing: our signal handlers save and stop. Where
    torchrun has started the processes of a job, their ranks are torchrun's."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if slurm else []


def quiet() -> None:
    """Lightning's advertisements and its worries about loaders that we do not use."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
