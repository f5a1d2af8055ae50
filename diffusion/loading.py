"""Trained models, from their run folders or files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from configs import UserError, construct, registry
from configs.overrides import check_recipe
from configs.values import drop_keys
from diffusion.data.base import Data
from diffusion.model import Model
from diffusion.runs import checkpoint
from diffusion.runs.run import Run


def load(run: str | Path, *, weights: str = "ema", step: int | None = None, device: str | None = None,
         allow: Sequence[str] = ()) -> Model:
    """A trained model from its run folder, or from the file that scripts/export.py made of it.

    :param run: the folder that train.py wrote, or the file
    :param weights: ``ema`` or ``raw``
    :param step: which checkpoint; None takes the newest
    :param device: where to put it; None takes the GPU if there is one
    :param allow: packages of other people whose classes the checkpoint may name
    :raises UserError: if there is no such run or checkpoint, or it does not make a model
    """
    folder = Run.open(run)
    if weights not in ("ema", "raw"):
        raise UserError(f"weights={weights}", "ema or raw", "weights=ema")
    files = checkpoint.list_checkpoints(folder.checkpoints)
    if step is not None and step not in files:
        raise UserError(f"no checkpoint of step {step} in {folder.place}",
                        f"one of {', '.join(map(str, files)) or 'none yet'}", "drop step=... for the newest")
    content = checkpoint.read_latest(folder.checkpoints) if step is None else checkpoint.read(files[step])
    if content is None:
        raise UserError(f"no checkpoint in {folder.place} yet", "a run that has saved once",
                        "wait, or train on: callbacks.checkpoint.every=100")
    check_recipe(content["config"]["sampling"], folder.root)
    try:
        model = Model(content["config"], packages=(*registry.trusted(), *allow))
        fill_weights(model, checkpoint.merge_state(content, weights), folder.place)
    except UserError:
        raise
    except Exception as error:  # what a stranger may write fails in many ways
        reason = " ".join(map(str.strip, str(error).splitlines()[:3])) or type(error).__name__
        raise UserError(f"{folder.place} makes no model: {reason}", "a config and weights that belong together",
                        "the version and the plug-ins with which it was trained, or another run") from error
    model.step, model.name = content["step"], str(run)
    model.weights.eval().requires_grad_(False)
    try:
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={device}: {reason}", "a device that this machine has", "device=cpu") from error


def fill_weights(model: Model, state: Mapping[str, Tensor], place: Path) -> None:
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


def build_data(model: Model, root: str | None, packages: Sequence[str]) -> Data:
    """The data set of a run.

    :param root: where it lies now; None is where it lay
    :param packages: whose classes the run's config may name
    """
    # A stranger's config may say what to read, not what to write or to fetch.
    config = drop_keys(model.config["data"], ("cache", "download"))
    return construct(config | ({"root": root} if root else {}), packages=packages, role=Data)
