"""Which images are for training, which for testing, and of which class each one is: a function of the file names."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from configs.errors import UserError

Labels = bool | str
"""True, False or "auto"; see ``layout``."""


@dataclass(frozen=True)
class Layout:
    """How a list of images is divided.

    :ivar train: positions in the list of the images to train on, ascending
    :ivar test: those held out
    :ivar labels: the class of each image of the list, or None
    :ivar names: the class names, sorted, or None
    """

    train: Int[np.ndarray, " n_train"]
    test: Int[np.ndarray, " n_test"]
    labels: Int[np.ndarray, " n"] | None
    names: list[str] | None


def layout(files: Sequence[str], labels: Labels, held_out: float) -> Layout:
    """Divides sorted paths (with ``/``) into splits and classes.

    Folders that all images have in common are looked through. If the first folders are then exactly ``train`` and
    ``test``, they are the splits. Else the last ``held_out`` share of each class is for testing, at least one image and
    never all (a class with a single image only trains), so that a class keeps its split when another one grows.

    The class is the first folder (inside ``train`` and ``test``, where they are the splits), if there are at least two.
    Without classes the whole list counts as one class for the held-out rule.

    :param files: sorted relative paths
    :param labels: "auto" reads classes where there are any, True insists, False ignores the folders
    :param held_out: share of each class, in [0, 1)
    :raises UserError: ``labels`` is True and there are no two folders, or images lie beside the class folders
    """
    paths = _inside([file.split("/") for file in files])
    official = {path[0] for path in paths if len(path) > 1} == {"train", "test"} and min(map(len, paths)) > 1
    owners = _owners([path[1:] for path in paths] if official else paths, labels)
    names = None if owners is None else sorted(set(owners))
    classes = None
    if owners is not None and names is not None:
        rank = {name: label for label, name in enumerate(names)}
        classes = np.array([rank[owner] for owner in owners], np.int64)
    if official:
        test = np.array([path[0] == "test" for path in paths])
    else:
        test = _last_share(np.zeros(len(paths), np.int64) if classes is None else classes, held_out)
    return Layout(np.flatnonzero(~test), np.flatnonzero(test), classes, names)


def _inside(paths: list[list[str]]) -> list[list[str]]:
    """The paths without the folders that all of them start with."""
    while paths and len({path[0] for path in paths}) == 1 and min(map(len, paths)) > 1:
        paths = [path[1:] for path in paths]
    return paths


def _owners(paths: list[list[str]], labels: Labels) -> list[str] | None:
    """The class folder of each path, or None for no classes."""
    folders = {path[0] for path in paths if len(path) > 1}
    if labels is False or (labels == "auto" and len(folders) < 2):
        return None
    if len(folders) < 2:
        raise UserError("no class folders", "at least two folders of images, one for each class", "data.labels=false")
    loose = [path[0] for path in paths if len(path) == 1]
    if loose:
        raise UserError(f"{len(loose)} images beside the class folders, such as {loose[0]}",
                        "every image inside the folder of its class",
                        "move them, or data.labels=false to ignore the folders")
    return [path[0] for path in paths]


def _last_share(classes: Int[np.ndarray, " n"], held_out: float) -> np.ndarray:
    chosen = np.zeros(len(classes), bool)
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        count = min(max(round(held_out * len(rows)), 1), len(rows) - 1) if held_out > 0 else 0
        chosen[rows[len(rows) - count :]] = True
    return chosen
