"""Small images with known content, written as files of every kind."""

import io
import tarfile
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


def png(seed: int, width: int = 12, height: int = 12) -> bytes:
    """``picture(seed)`` as a PNG file."""
    file = io.BytesIO()
    picture(seed, width, height).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes] | list[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    """A tar file by Python's own module."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in files.items() if isinstance(files, dict) else files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def samples(first: int, last: int, **more) -> dict[str, bytes]:
    """Images named by their seeds, and files beside them, made of these seeds."""
    return {f"{seed:04d}.{ending}": make(seed) for seed in range(first, last)
            for ending, make in {"png": png, **more}.items()}
