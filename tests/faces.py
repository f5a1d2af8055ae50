"""Small photos with attributes and landmarks, in CelebA's layouts."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.data.files.attributes import ATTRIBUTES
from diffusion.data.files.landmarks import NAMES

COUNT = 40


def draw_values(count: int = COUNT, seed: int = 0) -> np.ndarray:
    """Attributes (count, 40) at random, each true of half of the photos, but the last of none."""
    values = np.random.default_rng(seed).random((count, len(ATTRIBUTES))) < 0.5
    values[:, -1] = False
    return values


def save_photos(folder: Path, values: np.ndarray, side: int = 12, height: int | None = None) -> Path:
    """``000001.png`` and so on: bright above where the first attribute is true, below for the second."""
    height = height or side
    folder.mkdir(parents=True)
    for number, row in enumerate(values, start=1):
        noise = np.random.default_rng(number).integers(0, 40, (height, side, 3))
        noise[:height // 2] += 120 * int(row[0])
        noise[height // 2:] += 120 * int(row[1])
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


FACE = np.array([[69, 109], [107, 112], [84, 138], [72, 152], [108, 154]], np.float32)
"""Landmarks of a face, in the frame of 178x218."""
DOTS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)], np.float64)
"""The colour of the dot at each."""


def draw_points(count: int = COUNT, seed: int = 0) -> np.ndarray:
    """Landmarks (count, 5, 2), whole numbers around those of a face."""
    return FACE + np.random.default_rng(seed).integers(-3, 4, (count, 5, 2))


def save_faces(folder: Path, points: np.ndarray, scale: float = 1.0) -> Path:
    """``000001.png`` and so on: aligned photos with a soft dot at each landmark."""
    folder.mkdir(parents=True)
    width, height = round(178 * scale), round(218 * scale)
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    for number, face in enumerate(points * scale, start=1):
        bumps = np.exp(-((x - face[:, 0, None, None]) ** 2 + (y[:, None] - face[:, 1, None, None]) ** 2)
                       / (2 * (3 * scale) ** 2))
        image = np.einsum("phw,pc->hwc", bumps, DOTS).clip(0, 255)
        Image.fromarray(image.round().astype(np.uint8)).save(folder / f"{number:06d}.png")
    return folder


def write_points(path: Path, points: np.ndarray, names: tuple[str, ...] = NAMES) -> Path:
    """``list_landmarks_align_celeba.txt`` as its authors wrote it."""
    rows = ["  ".join([f"{number:06d}.jpg", *(f"{value:3.0f}" for value in face.flatten())])
            for number, face in enumerate(points, start=1)]
    path.write_text("\n".join([str(len(points)), " ".join(names), *rows]) + "\n")
    return path


def write_estimates(path: Path, points: np.ndarray, confidence: np.ndarray) -> Path:
    np.savez(path, points=points.astype(np.float16), confidence=confidence)
    return path
