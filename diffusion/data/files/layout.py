"""Which images are for training, which for testing, and of which class each one is: a function of the file names."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from configs.errors import UserError

Labels = bool | str
"""True, False or "auto"; see ``layout``."""

_PART = r"(?:[-_ ]?(?:\d*|set|split|images?|imgs?|data))"
_SPLITS = {"train": re.compile(f"(?:train|training){_PART}", re.IGNORECASE),
           "test": re.compile(f"(?:test|testing){_PART}", re.IGNORECASE),
           "val": re.compile(f"(?:val|valid|validation|dev){_PART}", re.IGNORECASE)}
_DOMAIN = re.compile("(?:train|test|val)[-_]?[AB]", re.IGNORECASE)
_BESIDE = re.compile("images?|imgs?|pictures|masks?|annotations?|labels?|segmentations?|edges|depths?", re.IGNORECASE)

_USES = {"train": "to train on", "test": "held out", "unused": "not used"}
NAMES_SHOWN = 12


@dataclass(frozen=True)
class Layout:
    """How a list of images is divided.

    :ivar train: positions in the list of the images to train on, ascending
    :ivar test: those held out
    :ivar labels: the class of each image of the list, or None
    :ivar names: the class names, sorted, or None
    :ivar splits: the folders that are splits, by what they are for (``train``, ``test``, ``unused``); empty where the
        split is a share of the images
    """

    train: Int[np.ndarray, " n_train"]
    test: Int[np.ndarray, " n_test"]
    labels: Int[np.ndarray, " n"] | None
    names: list[str] | None
    splits: dict[str, list[str]] = field(default_factory=dict)

    def describe(self) -> str:
        """Where classes and splits come from, in words; empty where neither is read from folders."""
        lines = [f"{', '.join(folders)}: {_USES[use]}" for use, folders in self.splits.items()]
        if self.names is not None:
            shown = ", ".join(self.names[:NAMES_SHOWN]) + (", ..." if len(self.names) > NAMES_SHOWN else "")
            place = "the folder inside them" if self.splits else "the first folder"
            lines.append(f"{place} is the class, {len(self.names)} classes: {shown}")
        return "; ".join(lines)


def check_layout(labels: Labels, held_out: float) -> None:
    """Refuse settings of a set of files that mean nothing.

    :raises UserError: naming the first
    """
    if not 0 <= held_out < 1:
        raise UserError(f"data.held_out={held_out}", "a share from 0 to below 1", "data.held_out=0.1")
    if labels != "auto" and not isinstance(labels, bool):
        raise UserError(f"data.labels={labels}", "auto, true or false", "data.labels=auto")


def layout(files: Sequence[str], labels: Labels, held_out: float) -> Layout:
    """Divides sorted paths (with ``/``) into splits and classes.

    Folders that all images have in common are looked through. If the first folders then bear the names of splits
    (see ``name_split``), they are the splits: ``train``, and held out is ``test``, or ``val`` where there is no
    ``test``; a ``val`` beside a ``test`` is not used. The same where each class has such folders inside. Else the last
    ``held_out`` share of each class is for testing, at least one image and never all (a class with a single image only
    trains), so that a class keeps its split when another one grows.

    The class is the first folder that is no split, if there are at least two. Without classes the whole list counts as
    one class for the held-out rule.

    :param files: sorted relative paths
    :param labels: "auto" reads classes where there are any, True insists, False ignores the folders
    :param held_out: share of each class, in [0, 1)
    :raises UserError: ``labels`` is True and there are no two folders, or images lie beside the class folders; the
        folders cannot be the classes by their names (``test`` and ``val`` alone, ``images`` and ``masks``) and
        ``labels`` is "auto"
    """
    paths = _inside([file.split("/") for file in files])
    uses, paths = _find_splits(paths)
    if labels == "auto":
        _refuse_doubtful(sorted({path[0] for path in paths if len(path) > 1}))
    owners = _owners(paths, labels)
    names = None if owners is None else sorted(set(owners))
    classes = None
    if owners is not None and names is not None:
        rank = {name: label for label, name in enumerate(names)}
        classes = np.array([rank[owner] for owner in owners], np.int64)
    if uses:
        places = np.array([use for use, _ in uses])
        splits = {use: sorted({folder for other, folder in uses if other == use}) for use in _USES}
        return Layout(np.flatnonzero(places == "train"), np.flatnonzero(places == "test"), classes, names,
                      {use: folders for use, folders in splits.items() if folders})
    test = _last_share(np.zeros(len(paths), np.int64) if classes is None else classes, held_out)
    return Layout(np.flatnonzero(~test), np.flatnonzero(test), classes, names)


def name_split(folder: str) -> str | None:
    """``train``, ``test`` or ``val``, if the folder bears a usual name of one, whatever its case: ``training``,
    ``testing``, ``valid``, ``validation``, ``dev``, and these with a number or a word such as ``set`` or ``images``
    behind (``val2017``). None for another name."""
    return next((split for split, pattern in _SPLITS.items() if pattern.fullmatch(folder)), None)


def choose_splits(folders: Iterable[str]) -> dict[str, str] | None:
    """What each of these folders is for, ``train``, ``test`` or ``unused``; None unless all are splits and there are
    both images to train on and others."""
    named = {folder: name_split(folder) for folder in folders}
    kinds = set(named.values())
    if None in kinds or "train" not in kinds or len(kinds) < 2:
        return None
    held_out = "test" if "test" in kinds else "val"
    return {folder: {"train": "train", held_out: "test"}.get(str(split), "unused") for folder, split in named.items()}


def _find_splits(paths: list[list[str]]) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """The use and the folder of each path, and the paths without that folder; no uses where folders are no splits."""
    if paths and min(map(len, paths)) > 1:
        uses = choose_splits({path[0] for path in paths})
        if uses is not None:
            return [(uses[path[0]], path[0]) for path in paths], [path[1:] for path in paths]
        if min(map(len, paths)) > 2:
            uses = choose_splits({path[1] for path in paths})
            if uses is not None:
                return [(uses[path[1]], path[1]) for path in paths], [[path[0], *path[2:]] for path in paths]
    return [], paths


def _refuse_doubtful(folders: list[str]) -> None:
    if len(folders) < 2:
        return
    kinds = {name_split(folder) for folder in folders}
    shown = ", ".join(folders[:NAMES_SHOWN])
    ignore = "or data.labels=false to take all images as one set"
    if any(_DOMAIN.fullmatch(folder) for folder in folders):
        raise UserError(f"the folders {shown}, which are splits of two sets of images", "the folders train and test, "
                        "with the two sets inside, or one set alone", f"data.root=ONE_OF_THEM, {ignore}")
    if {"train", "test"} <= kinds or {"train", "val"} <= kinds or kinds <= {"test", "val"}:
        raise UserError(f"the folders {shown}, of which some are splits by their names",
                        "train with test or val, and nothing else",
                        f"data.root=ONE_OF_THEM, {ignore}; data.labels=true if they are classes")
    if all(_BESIDE.fullmatch(folder) for folder in folders):
        raise UserError(f"the folders {shown}, which are no classes by their names",
                        "a folder of images, or one folder for each class",
                        f"data.root=ONE_OF_THEM, {ignore}; data.labels=true if they are classes")


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
