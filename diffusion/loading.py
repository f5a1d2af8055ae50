"""Trained models, from their run folders."""

from collections.abc import Sequence
from pathlib import Path

import torch

from configs import UserError, construct, registry
from configs.overrides import check_recipe
from configs.values import drop_keys
from diffusion.data.base import Data
from diffusion.model import Model
from diffusion.runs import checkpoint
from diffusion.runs.run import Run


def load(run: str | Path, *, weights: str = "ema", step: int | None = None, device: str | None = None,
         allow: Sequence[str] = ()) -> Model:
    """A trained model from its run folder.

    :param run: the folder that train.py wrote
    :param weights: ``ema`` or ``raw``
    :param step: which checkpoint; None takes the newest
    :param device: where to put it; None takes the GPU if there is one
    :param allow: packages of other people whose classes the checkpoint may name
    :raises UserError: if there is no such run or checkpoint
    """
    folder = Run.open(run)
    if weights not in ("ema", "raw"):
        raise UserError(f"weights={weights}", "ema or raw", "weights=ema")
    files = checkpoint.list_checkpoints(folder.checkpoints)
    if step is not None and step not in files:
        raise UserError(f"no checkpoint of step {step} in {folder.folder}",
                        f"one of {', '.join(map(str, files)) or 'none yet'}", "drop step=... for the newest")
    content = checkpoint.read_latest(folder.checkpoints) if step is None else checkpoint.read(files[step])
    if content is None:
        raise UserError(f"no checkpoint in {folder.folder} yet", "a run that has saved once",
                        "wait, or train on: callbacks.checkpoint.every=100")
    check_recipe(content["config"]["sampling"], folder.root)
    model = Model(content["config"], packages=(*registry.trusted(), *allow))
    model.weights.load_state_dict(checkpoint.merge_state(content, weights))
    model.step, model.name = content["step"], str(run)
    model.weights.eval().requires_grad_(False)
    try:
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={device}: {reason}", "a device that this machine has", "device=cpu") from error


def build_data(model: Model, root: str | None, packages: Sequence[str]) -> Data:
    """The data set of a run.

    :param root: where it lies now; None is where it lay
    :param packages: whose classes the run's config may name
    """
    # A stranger's config may say what to read, not what to write or to fetch.
    config = drop_keys(model.config["data"], ("cache", "download"))
    return construct(config | ({"root": root} if root else {}), packages=packages, role=Data)
