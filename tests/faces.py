"""Small photos with attributes, in CelebA's layouts."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.data.files.attributes import ATTRIBUTES

COUNT = 40


def draw_values(count: int = COUNT, seed: int = 0) -> np.ndarray:
    """Attributes (count, 40) at random, each true of half of the photos, but the last of none."""
    values = np.random.default_rng(seed).random((count, len(ATTRIBUTES))) < 0.5
    values[:, -1] = False
    return values


def save_photos(folder: Path, values: np.ndarray, side: int = 12) -> Path:
    """``000001.png`` and so on: bright above where the first attribute is true, below for the second."""
    folder.mkdir(parents=True)
    for number, row in enumerate(values, start=1):
        noise = np.random.default_rng(number).integers(0, 40, (side, side, 3))
        noise[:side // 2] += 120 * int(row[0])
        noise[side // 2:] += 120 * int(row[1])
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number:06d}.png")
    return folder


def write_list(path: Path, values: np.ndarray, no: int = -1, names: tuple[str, ...] = ATTRIBUTES) -> Path:
    """``list_attr_celeba.txt`` as its authors wrote it, with several blanks between the columns."""
    rows = ["  ".join([f"{number:06d}.jpg", *(f"{1 if value else no:2d}" for value in row)])
            for number, row in enumerate(values, start=1)]
    path.write_text("\n".join([str(len(values)), " ".join(names) + " ", *rows]) + "\n")
    return path


def write_archive(path: Path, values: np.ndarray) -> Path:
    np.savez(path, names=np.array(ATTRIBUTES), values=values)
    return path
