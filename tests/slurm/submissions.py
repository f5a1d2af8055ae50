"""Commands for SLURM, and what it says of their jobs."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from helpers import ROOT
from lightning.pytorch.callbacks import Callback

from diffusion.runs import checkpoint

TINY = ["experiment=ddpm_digits", "batch=16", "model.base=16", "model.head_dim=16", "callbacks.pictures.count=0",
        "trainer.threads=1"]
"""A training of which a step takes a few hundredths of a second."""


class Slow(Callback):
    """A second for each batch of a job's first start, however fast the machine is; later starts are fast."""

    def on_train_batch_end(self, *_: object) -> None:
        if "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(1)


class Death(Callback):
    """Kills its process at the first batch."""

    def on_train_batch_end(self, *_: object) -> None:
        os.kill(os.getpid(), 9)


def sweep(*overrides: str) -> list[str]:
    """The command of a sweep of small trainings on SLURM."""
    return [sys.executable, "train.py", "-m", *TINY, "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1",
            "hydra.launcher.timeout_min=10", *overrides]


def submit(script: str, *options: str, overrides: list[str]) -> str:
    """Submit a script of ``scripts/slurm``; gives the number of the job."""
    said = subprocess.run(["sbatch", "--parsable", "--time=5", "--cpus-per-task=1", *options,
                           str(ROOT / "scripts" / "slurm" / script), *overrides],
                          capture_output=True, text=True, timeout=60, check=True)
    return said.stdout.strip().split(";")[0]


def states(number: str) -> list[str]:
    """What the accounting says of a job, of all its starts."""
    said = subprocess.run(["sacct", "-D", "-X", "-n", "-P", "-j", number, "--format=State"], capture_output=True,
                          text=True, timeout=60, check=True)
    return [line.split()[0] for line in said.stdout.splitlines() if line.strip()]


def wait_until(true: Callable[[], object], seconds: float = 120) -> None:
    """Wait until something holds.

    :raises TimeoutError: if it does not
    """
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.5)


def read_log(path: Path) -> str:
    """What a job has said so far."""
    return path.read_text(errors="replace") if path.exists() else ""


def over(number: str) -> bool:
    """Whether a job has left the queue."""
    said = subprocess.run(["squeue", "-h", "-j", number], capture_output=True, text=True, timeout=60)
    return not said.stdout.strip()


def start(command: list[str]) -> subprocess.Popen[str]:
    """A command in the background."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_weights(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The newest weights of a run."""
    content = checkpoint.read_latest(run / "checkpoints")
    assert content is not None
    return {key: content[key] for key in ("raw", "ema")}


def require_same(a: Path, b: Path, tolerance: float = 0.0) -> None:
    """The weights of two runs are the same."""
    for key, weights in read_weights(a).items():
        for name, value in read_weights(b)[key].items():
            assert torch.allclose(weights[name].double(), value.double(), rtol=0, atol=tolerance), (key, name)
