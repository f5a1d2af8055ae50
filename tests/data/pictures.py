"""Small images with known content, written as files of every kind."""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 12, height: int = 12) -> Image.Image:
    """A smooth random photo in RGB."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def fill(root: Path, files: dict[str, int]) -> Path:
    """Writes ``picture(seed)`` as a PNG for each name."""
    for name, seed in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(root / name, format="PNG")
    return root


def zipped(folder: Path, target: Path) -> Path:
    """An archive of everything below ``folder``."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*"), reverse=True):
            file.write(path, path.relative_to(folder))
    return target
