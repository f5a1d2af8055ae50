"""Where and by what a run was made."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def describe_environment() -> dict[str, Any]:
    """What a run needs to be understood later."""

    def git(*args: str) -> str | None:
        try:
            return subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
                                  timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    # Which part of the work a process has done says nothing about the result.
    typed = [word for word in sys.argv[1:] if not word.startswith("shard=")]
    return {
        "command": " ".join([Path(sys.argv[0]).name, *typed]),
        "git": git("rev-parse", "HEAD"),
        "changed": bool(git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {p: installed(p) for p in ("torch", "torchvision", "lightning", "hydra-core", "numpy")},
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "machine": platform.machine(),
    }
