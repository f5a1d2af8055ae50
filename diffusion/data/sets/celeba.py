"""CelebA: aligned portraits."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from configs.errors import UserError
from diffusion.data.base import Split
from diffusion.data.files.archive import open_archive
from diffusion.data.files.attributes import ATTRIBUTES, AttributeList, read_attributes
from diffusion.data.files.decode import read_upright
from diffusion.data.files.landmarks import LandmarkList, check_frame, move_points, read_landmarks
from diffusion.data.files.layout import Layout
from diffusion.data.sets.folder import Folder

logger = logging.getLogger(__name__)

PHOTOS, PARTITION = "img_align_celeba", "list_eval_partition.txt"
SPLIT_OF = {"0": "train", "1": "validation", "2": "test"}


class CelebA(Folder):
    """The aligned photos of CelebA (Liu et al. 2015, "Deep Learning Face Attributes in the Wild").

    Read from a folder or zip of the photos at any scale; then the last ``held_out`` by name is for testing. Or from
    torchvision's layout, ``celeba/img_align_celeba`` (or ``.zip``) with ``celeba/list_eval_partition.txt`` beside it:
    then the splits are the official ones, and the photos for validation are in neither.

    ``signals=[attributes]`` adds the signal ``attributes`` (n, 40), 1 for what is true of a photo and 0 for what is
    not, from ``list_attr_celeba.txt`` or ``attributes.npz`` in ``root`` or beside it; see
    :func:`diffusion.data.files.attributes.read_attributes`.

    ``signals=[landmarks]`` adds the signal ``landmarks`` (n, 5, 2), places (x, y) of eyes, nose and mouth in pixels of
    the images, from ``list_landmarks_align_celeba.txt`` or ``landmarks_estimated.npz``; see
    :func:`diffusion.data.files.landmarks.read_landmarks`. Photos whose estimated landmarks are doubtful are in neither
    split then. All photos are taken to be of the scale of the first.

    :param root: the folder or zip of photos, or in torchvision's layout the folder ``celeba`` or the one that holds it
    :param size: height and width, in pixels
    :param channels: 1 (grey) or 3 (RGB)
    :param crop: side of the central square as a share of the width, so that copies at all scales agree; 140 of the 178
        pixels is the usual one
    :param held_out: share for the test split where there is no official partition
    :param resample: Pillow's filter for the resizing
    :param cache: for decoded images, see :class:`diffusion.data.sets.folder.Folder`
    :param flip: whether training may mirror the images
    :param signals: what else than the pixels is read: ``attributes`` and ``landmarks``
    :raises UserError: as ``Folder``, or an unknown signal; at the first use of the content, the partition or the list
        of attributes or landmarks cannot be read or lacks a photo, or the photos are not the aligned ones
    """

    KNOWN = ("attributes", "landmarks")

    def __init__(self, root: str | Path, size: int = 128, channels: int = 3, crop: float = 0.7865,
                 held_out: float = 0.1, resample: str = "bilinear", cache: str | Path | Literal[False] | None = None,
                 flip: bool = True, signals: Sequence[str] = ()):
        root = Path(root).expanduser()
        home = next((home for home in (root / "celeba", root) if (home / PARTITION).is_file()), None)
        self.partition = home and home / PARTITION
        if home:
            root = home / PHOTOS if (home / PHOTOS).is_dir() else home / f"{PHOTOS}.zip"
        super().__init__(root, size, channels, crop, held_out, resample, False, cache, flip, signals)

    @cached_property
    def attributes(self) -> AttributeList:
        """The list of attributes of the photos, where ``signals`` asks for it."""
        return read_attributes(self.root, self.root.parent)

    @cached_property
    def landmarks(self) -> LandmarkList:
        """The list of landmarks of the photos, where ``signals`` asks for it."""
        return read_landmarks(self.root, self.root.parent)

    def _check_signals(self) -> None:
        with open_archive(self.root) as photos:
            names = [entry.name for entry in photos.entries()]
        if "attributes" in self.signals:
            self.attributes.choose(names)
        if "landmarks" in self.signals:
            self.landmarks.find_rows(names)
            check_frame(*self._scale)

    def _describe_signals(self) -> dict[str, dict[str, Any]]:
        said: dict[str, dict[str, Any]] = {"attributes": {"words": list(ATTRIBUTES)}, "landmarks": {"side": self.size}}
        return {name: said[name] for name in self.signals}

    def _take_signals(self, name: Split) -> dict[str, Tensor]:
        taken = {}
        if "attributes" in self.signals:
            taken["attributes"] = torch.from_numpy(self.attributes.choose(self.files(name)).astype(np.float32))
        if "landmarks" in self.signals:
            points = self.landmarks.points[self.landmarks.find_rows(self.files(name))]
            taken["landmarks"] = torch.from_numpy(move_points(points, self.decoder, *self._scale[:2]))
        return taken

    @cached_property
    def _scale(self) -> tuple[int, int, str]:
        """Width and height of the first photo that can be read, and its name."""
        with open_archive(self.root) as photos:
            for entry in photos.entries():
                # Broken files fail in many ways, which the one who decodes them tells.
                with suppress(Exception), read_upright(photos.read(entry.name)) as image:
                    return *image.size, entry.name
        return 0, 0, ""

    @cached_property
    def layout(self) -> Layout:
        if "landmarks" not in self.signals:
            return self._split()
        whole = self._split()
        sure = self.landmarks.sure[self.landmarks.find_rows(self.index.names)]
        train, test = whole.train[sure[whole.train]], whole.test[sure[whole.test]]
        lost = len(whole.train) + len(whole.test) - len(train) - len(test)
        if lost:
            logger.info("%s: left out %d photos whose landmarks are doubtful", self.root, lost)
        return replace(whole, train=train, test=test)

    def _split(self) -> Layout:
        if self.partition is None:
            return super().layout
        splits = _read(self.partition)
        names = [name.rpartition("/")[2] for name in self.index.names]
        strangers = [name for name in names if name not in splits]
        if strangers:
            raise UserError(f"{len(strangers)} photos such as {strangers[0]} that {self.partition} does not name",
                            "a line for each photo", "the whole list, or without it: the last tenth is held out then")
        if len(splits) > len(names):
            logger.warning("%s names %d photos, of which %d are there", self.partition, len(splits), len(names))
        split = np.array([splits[name] for name in names])
        return Layout(np.flatnonzero(split == "train"), np.flatnonzero(split == "test"), None, None)


def _read(partition: Path) -> dict[str, str]:
    """The split of each photo, by name."""
    try:
        lines = [line.split() for line in partition.read_text().splitlines() if line.strip()]
        return {name: SPLIT_OF[number] for name, number in lines}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{partition} cannot be read ({type(error).__name__}: {error})",
                        "lines such as '000001.jpg 0', with 0 train, 1 validation, 2 test",
                        "copy or download it again") from error
