"""Loggers that need more than a line of YAML."""

import netrc
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs import UserError


def wandb(project: str = "thaw", **arguments: Any):
    """Weights & Biases, offline where nobody is logged in.

    :param project: where the run appears
    :param arguments: of ``lightning.pytorch.loggers.WandbLogger``
    """
    from lightning.pytorch.loggers import WandbLogger

    class Wandb(WandbLogger):
        def finalize(self, status: str) -> None:
            super().finalize(status)
            self.experiment.finish()  # left open, the next job of a sweep would write into it

    return Wandb(project=project, offline=not logged_in(), **arguments)


def tensorboard(**arguments: Any):
    """TensorBoard's event files.

    :param arguments: of ``lightning.pytorch.loggers.TensorBoardLogger``
    :raises UserError: if the package is not installed
    """
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(default_hp_metric=False, **arguments)
    except ModuleNotFoundError as error:
        raise UserError("logger=tensorboard, but TensorBoard is not installed", "the package tensorboard",
                        "pip install tensorboard") from error


def log_picture(logger: Any, name: str, path: Path, step: int) -> None:
    """A picture to a logger, as ``pictures/NAME``; to one that takes none, nothing.

    :param logger: one of Lightning's
    :param path: of the file
    """
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

    if isinstance(logger, WandbLogger):
        logger.log_image(f"pictures/{name}", [str(path)], step)
    elif isinstance(logger, TensorBoardLogger):
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        logger.experiment.add_image(f"pictures/{name}", pixels, step, dataformats="HWC")


def logged_in() -> bool:
    """Whether this machine has an account to write to."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(Path.home() / ".netrc").authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
