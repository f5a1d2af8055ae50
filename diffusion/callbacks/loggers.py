"""Loggers that need more than a line of YAML."""

import netrc
import os
from pathlib import Path
from typing import Any


def wandb(project: str = "thaw", **arguments: Any):
    """Weights & Biases, offline where nobody is logged in.

    :param project: where the run appears
    :param arguments: of ``lightning.pytorch.loggers.WandbLogger``
    """
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(project=project, offline=not logged_in(), **arguments)


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
