"""Thaw from one import: diffusion models, hot and cold.

>>> import thaw
>>> model = thaw.load("runs/ddpm_digits/first")
>>> images = model.sample(range(16), label=3)
>>> thaw.samplers.available()
"""

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING


def refuse_shadows() -> None:
    """Say so where a file of the user's stands before one of our packages: a script beside a ``models.py`` of its own
    would fail somewhere else, without a reason.

    :raises ImportError: naming both
    """
    for name in ("configs", "degradations", "models", "samplers", "diffusion"):
        spec = importlib.util.find_spec(name)
        ours, found = Path(__file__).parents[1] / name / "__init__.py", spec.origin if spec else None
        if found is None or Path(found).resolve() != ours.resolve():
            raise ImportError(f"thaw needs its own package {name!r} ({ours}), and {found or 'nothing'} stands in its "
                              f"place. Rename that file, or run from another folder.")


refuse_shadows()

import degradations  # noqa: E402
import diffusion  # noqa: E402
import models  # noqa: E402
import samplers  # noqa: E402

if TYPE_CHECKING:
    from diffusion.loading import load

try:
    __version__ = version("thaw")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0"

__all__ = ["__version__", "degradations", "diffusion", "load", "models", "samplers"]


def __getattr__(name: str) -> object:
    if name == "load":
        return diffusion.load
    raise AttributeError(f"module 'thaw' has no attribute {name!r}")
