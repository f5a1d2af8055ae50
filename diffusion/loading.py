"""Trained models, from their run folders or files."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from configs import UserError, construct, registry
from configs.errors import describe_error
from configs.overrides import check_recipe
from configs.values import require_modest, to_plain
from diffusion.data.base import LARGEST, Data
from diffusion.model import Model
from diffusion.precision import check_precision, multiplies_bf16, settle_precision
from diffusion.runs import checkpoint
from diffusion.runs.exported import PARTS
from diffusion.runs.identity import drop_places
from diffusion.runs.run import Run

log = logging.getLogger(__name__)


def load(run: str | Path, *, weights: str = "ema", step: int | str | None = None, device: str | None = None,
         allow: Sequence[str] = (), precision: str | int | None = None, compile: bool = False) -> Model:
    """A trained model from its run folder, or from the file that scripts/export.py made of it.

    :param run: the folder that train.py wrote, or the file
    :param weights: ``ema`` or ``raw``
    :param step: which checkpoint; ``best`` is that of ``callbacks=quality``, None takes the newest
    :param device: where to put it; None takes the GPU if there is one
    :param allow: packages of other people whose classes the checkpoint may name
    :param precision: of the network: ``auto``, ``32``, ``tf32`` or ``bf16``; None takes that of the training
    :param compile: compile the network when it is called first
    :raises UserError: if there is no such run or checkpoint, or it does not make a model
    """
    folder, asked = Run.open(run), None if precision is None else check_precision(str(precision))
    if weights not in ("ema", "raw"):
        raise UserError(f"weights={weights}", "ema or raw", "weights=ema")
    files = checkpoint.list_checkpoints(folder.checkpoints)
    if step == "best":
        best = checkpoint.read_best(folder.checkpoints)
        if best is None:
            raise UserError(f"step=best of {folder.place}, of which no weights are known to be the best",
                            "a run that was trained with callbacks=quality", "drop step=best for the newest")
        step = best["step"]
    if step is not None and step not in files:
        raise UserError(f"no checkpoint of step {step} in {folder.place}",
                        f"one of {', '.join(map(str, files)) or 'none yet'}", "drop step=... for the newest")
    content = checkpoint.read_latest(folder.checkpoints) if step is None else checkpoint.read(files[int(step)])
    if content is None:
        raise UserError(f"no checkpoint in {folder.place} yet", "a run that has saved once",
                        "wait, or train on: callbacks.checkpoint.every=100")
    check_recipe(content["config"].get("sampling", []), folder.root)
    model = rebuild(content["config"], checkpoint.merge_state(content, weights), str(folder.place),
                    (*registry.trusted(), *allow))
    model.step, model.name = content["step"], str(run)
    model.weights.eval().requires_grad_(False)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        kind = torch.device(place).type
        model.evaluator.precision = settle_precision(asked or model.evaluator.precision, kind)
        model.to(place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={device}: {reason}", "a device that this machine has", "device=cpu") from error
    if kind != "cuda" and model.evaluator.precision == "bf16" and not multiplies_bf16(kind):
        log.info("%s computes in bf16, which this machine has no instructions for: precision=32 is faster here", run)
    if compile:
        model.weights.net.compile()
    return model


def rebuild(config: dict[str, Any], state: Mapping[str, Tensor], what: str, packages: Sequence[str]) -> Model:
    """The model of a config that somebody else may have written, with its weights.

    :param what: is rebuilt, for messages
    :raises UserError: whatever is wrong with it
    """
    require_config(config, what)
    try:
        require_size(config, state, packages)
        model = Model(config, packages=packages)
        fill_weights(model, state, what)
    except UserError:
        raise
    # What the classes make of arguments that mean nothing to them: anything.
    except Exception as error:
        raise UserError(f"{what} cannot be rebuilt: {describe_error(error)}", "a checkpoint of this version",
                        "another checkpoint or run") from error
    return model


def require_config(config: Mapping[str, Any], what: str) -> None:
    """Refuse a config that somebody else may have written and that lacks parts, or has too many or too large ones.

    :param what: has it, for messages
    :raises UserError: naming the first
    """
    missing = [name for name in (*PARTS, "seed", "precision", "sampling") if name not in config]
    if missing or not all(isinstance(config[name], Mapping) for name in PARTS):
        raise UserError(f"the config of {what} lacks {', '.join(missing) or 'a part, or has something else there'}",
                        "the config that train.py wrote", "another checkpoint or run")
    for name in PARTS:
        require_modest(config[name], name)
    size, channels = config["data"].get("size"), config["data"].get("channels")
    if type(size) is not int or not 1 <= size <= LARGEST or channels not in (1, 3):
        raise UserError(f"{what} makes images of {channels} channels and {size} px", f"1 or 3, and 1 to {LARGEST}",
                        "another checkpoint or run")


def require_size(config: Mapping[str, Any], state: Mapping[str, Tensor], packages: Sequence[str]) -> None:
    """Refuse a network or an encoder with more weights than the file has, before memory is taken for it: they are built
    without any, on the device ``meta``.

    :raises UserError: naming both numbers
    """
    there = sum(value.numel() for value in state.values())
    seen = 0

    def count(module: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal seen
        seen += 0 if value is None else max(1, value.numel())
        if seen > there:
            raise UserError(f"a config that describes more than the {there} weights of its file", "the config of these "
                            "weights", "do not use files of people whom you do not trust")

    handle = register_module_parameter_registration_hook(count)
    try:
        for name in ("model", "condition", "space"):
            with torch.device("meta"), SkipNormal():
                construct(config[name], packages=packages, role=nn.Module)
    except UserError:
        raise
    except Exception:
        pass  # a class that computes with its weights when it is made; what is wrong shows when it is really built
    finally:
        handle.remove()


class SkipNormal(TorchFunctionMode):
    """Leaves out the normal numbers with which weights begin: on the device ``meta`` there are none, but torch would
    load its compiler for them, which takes 2 seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "normal_":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def fill_weights(model: Model, state: Mapping[str, Tensor], place: str) -> None:
    """Put weights into a model.

    :param place: where they are from, for messages
    :raises UserError: for tensors of other types than the model's, and numbers that are not finite
    :raises RuntimeError: for other names or shapes
    """
    weights = model.weights
    weights.load_state_dict(state)
    parameters = dict(weights.named_parameters())
    for name, mine in weights.state_dict().items():
        if state[name].dtype != mine.dtype:
            raise UserError(f"{name} in {place} is of type {state[name].dtype}", str(mine.dtype), "another run or file")
        # A buffer may be infinite, such as a mask.
        if not mine.isfinite().all() if name in parameters else mine.isnan().any():
            raise UserError(f"{name} in {place} has numbers that are not finite", "finite weights",
                            "another run or file")


def build_data(config: Mapping[str, Any], changed: Mapping[str, Any] | DictConfig, packages: Sequence[str]) -> Data:
    """The data set of a run.

    :param config: of the run
    :param changed: settings of the data that are others now, such as ``root``, where it lies; None is as it was
    :param packages: whose classes the run's config may name
    :raises UserError: for a setting that the data of the run do not have
    """
    node = drop_places(config["data"], "data")
    plain = to_plain(changed) if isinstance(changed, DictConfig) else changed
    now = {key: value for key, value in plain.items() if value is not None}
    strange = [key for key in now if key not in (*config["data"], "root") or key == "_target_"]
    if strange:
        raise UserError(f"data.{strange[0]}, which the data of this run do not have",
                        f"one of {', '.join(key for key in config['data'] if key != '_target_')}", "data.root=FOLDER")
    return construct(node | now, packages=packages, role=Data)
