"""A real SLURM of two nodes on this host, started if it is not up."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT


@pytest.fixture(scope="session", autouse=True)
def cluster() -> None:
    """Fails, not skips, where SLURM does not start."""
    subprocess.run(["bash", str(ROOT / "tests" / "slurm" / "start-slurm.sh")], check=True, timeout=300)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command in an empty folder that all nodes see."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'slurm'}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    for script in ("train.py", "sample.py"):
        (tmp_path / script).symlink_to(ROOT / script)

    def run(*command: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    return run
