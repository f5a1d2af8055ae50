"""The lists of CelebA's landmarks: where eyes, nose and mouth are in each aligned photo."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32

from configs.errors import UserError
from diffusion.data.files.attributes import find_rows
from diffusion.data.files.decode import Decoder, central_square

LIST, ARCHIVE = "list_landmarks_align_celeba.txt", "landmarks_estimated.npz"
NAMES = tuple(f"{point}_{axis}" for point in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
              for axis in "xy")
"""CelebA's names, in its order (Liu et al. 2015, arXiv 1411.7766)."""
FRAME = (178, 218)
"""Width and height of the aligned photos, in whose pixels the places are."""
SURE = 0.9
"""Confidence from which on estimated places are taken."""


@dataclass(frozen=True)
class LandmarkList:
    """What a list of landmarks says.

    :ivar path: of the file
    :ivar points: five places (x, y) for each photo of the list, in pixels of ``FRAME``
    :ivar sure: which rows are to be trusted
    :ivar places: the row of each photo, by its name without folder and ending
    """

    path: Path
    points: Float32[np.ndarray, "m 5 2"]
    sure: Bool[np.ndarray, " m"]
    places: Mapping[str, int]

    def find_rows(self, photos: Sequence[str]) -> np.ndarray:
        """The rows of these photos.

        :param photos: their paths
        :raises UserError: if the list lacks one
        """
        return find_rows(self.path, self.places, photos)


def read_landmarks(*folders: Path) -> LandmarkList:
    """The list in the first of these folders that has one: ``list_landmarks_align_celeba.txt``, a line with the number
    of photos, one with the names of the ten columns, then the name of a photo and its numbers in each; or
    ``landmarks_estimated.npz`` with ``points`` (n, 5, 2) and ``confidence`` (n,), where row ``i - 1`` belongs to the
    photo of number i. Places are in pixels of the photos of 178x218.

    :raises UserError: if there is none, or it is something else
    """
    path = next((folder / name for folder in folders for name in (LIST, ARCHIVE) if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"data.signals=[landmarks] without {LIST} or {ARCHIVE} in {' or '.join(map(str, folders))}",
                        "one of the two beside the photos", "put it there, or data.signals=[]")
    try:
        points, sure, photos = _read_archive(path) if path.name == ARCHIVE else _read_list(path)
        if not np.isfinite(points).all():
            raise ValueError("numbers that are not finite")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})",
                        f"{len(NAMES)} numbers for each photo, {NAMES[0]} to {NAMES[-1]}",
                        "copy or download it again") from error
    places = {photo: row for row, photo in enumerate(photos)}
    if len(places) < len(photos):
        raise UserError(f"{path} with {len(photos) - len(places)} photos that it names twice", "one row for each photo",
                        "copy or download it again")
    return LandmarkList(path, points, sure, places)


def move_points(points: Float32[np.ndarray, "n 5 2"], decoder: Decoder, width: int,
                height: int) -> Float32[np.ndarray, "n 5 2"]:
    """Places in the frame of 178x218 as pixels of the decoded images, 0 being the edge: the photo is the frame at some
    scale, cropped and resized as ``decoder`` does it.

    :param width: of the photos, in pixels
    :param height: of the photos, in pixels
    """
    left, upper, right, _ = central_square(width, height, decoder.crop)
    scaled = points.astype(np.float64) * (np.array([width, height]) / FRAME) - (left, upper)
    return (scaled * decoder.size / (right - left)).astype(np.float32)


def check_frame(width: int, height: int, photo: str) -> None:
    """Refuse photos that are not the aligned ones at some scale.

    :raises UserError: if the sides have another ratio than 178:218
    """
    if abs(height - width * FRAME[1] / FRAME[0]) > 1:
        raise UserError(f"data.signals=[landmarks] with the photo {photo} of {width}x{height}", "the aligned photos of "
                        f"{FRAME[0]}x{FRAME[1]}, at any scale: the places are in their pixels", "data.signals=[]")


def _read_list(path: Path) -> tuple[Float32[np.ndarray, "m 5 2"], Bool[np.ndarray, " m"], list[str]]:
    _, head, *lines = (line.split() for line in path.read_text().splitlines() if line.strip())
    if tuple(head) != NAMES:
        raise ValueError(f"the columns {' '.join(head)[:200]}")
    odd = next((line for line in lines if len(line) != len(NAMES) + 1), None)
    if odd is not None:
        raise ValueError(f"{len(odd) - 1} numbers of {odd[0]}")
    points = np.array([line[1:] for line in lines], dtype=str).reshape(-1, 5, 2).astype(np.float32)
    return points, np.ones(len(lines), bool), [Path(line[0]).stem for line in lines]


def _read_archive(path: Path) -> tuple[Float32[np.ndarray, "m 5 2"], Bool[np.ndarray, " m"], list[str]]:
    with np.load(path, allow_pickle=False) as found:
        points, confidence = found["points"], found["confidence"]
    if points.shape[1:] != (5, 2) or confidence.shape != points.shape[:1] or "f" not in (
            points.dtype.kind, confidence.dtype.kind):
        raise ValueError(f"points {points.shape} of {points.dtype} and confidence {confidence.shape}")
    sure: Float[np.ndarray, " m"] = confidence.astype(np.float32)
    return points.astype(np.float32), sure >= SURE, [f"{number:06d}" for number in range(1, len(points) + 1)]
