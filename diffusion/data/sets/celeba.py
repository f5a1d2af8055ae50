"""CelebA: aligned portraits."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from configs.errors import UserError
from diffusion.data.files.layout import Layout
from diffusion.data.sets.folder import Folder

logger = logging.getLogger(__name__)

PHOTOS, PARTITION = "img_align_celeba", "list_eval_partition.txt"
SPLIT_OF = {"0": "train", "1": "validation", "2": "test"}


class CelebA(Folder):
    """The aligned photos of CelebA (Liu et al. 2015, "Deep Learning Face Attributes in the Wild"), without attributes.

    Read from a folder or zip of the photos at any scale; then the last ``held_out`` by name is for testing. Or from
    torchvision's layout, ``celeba/img_align_celeba`` (or ``.zip``) with ``celeba/list_eval_partition.txt`` beside it:
    then the splits are the official ones, and the photos for validation are in neither.

    :param root: the folder or zip of photos, or in torchvision's layout the folder ``celeba`` or the one that holds it
    :param size: height and width, in pixels
    :param channels: 1 (grey) or 3 (RGB)
    :param crop: side of the central square as a share of the width, so that copies at all scales agree; 140 of the 178
        pixels is the usual one
    :param held_out: share for the test split where there is no official partition
    :param resample: Pillow's filter for the resizing
    :param cache: for decoded images, see :class:`diffusion.data.sets.folder.Folder`
    :param flip: whether training may mirror the images
    :raises UserError: as ``Folder``; at the first use of the content, the partition cannot be read or lacks a photo
    """

    def __init__(self, root: str | Path, size: int = 128, channels: int = 3, crop: float = 0.7865,
                 held_out: float = 0.1, resample: str = "bilinear", cache: str | Path | Literal[False] | None = None,
                 flip: bool = True):
        root = Path(root).expanduser()
        home = next((home for home in (root / "celeba", root) if (home / PARTITION).is_file()), None)
        self.partition = home and home / PARTITION
        if home:
            root = home / PHOTOS if (home / PHOTOS).is_dir() else home / f"{PHOTOS}.zip"
        super().__init__(root, size, channels, crop, held_out, resample, False, cache, flip)

    @cached_property
    def layout(self) -> Layout:
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
