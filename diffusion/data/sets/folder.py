"""Anyone's images: a folder or a zip archive of them."""

import logging
import warnings
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from diffusion.data.base import Data, ImageSet, Split
from diffusion.data.files import index as indexing
from diffusion.data.files.decode import Decoder
from diffusion.data.files.layout import Labels, Layout, check_layout, layout

logger = logging.getLogger(__name__)


class Folder(Data):
    """The images of a folder, with all that is inside it, or of a ``.zip`` file, which is read in place.

    Files are taken in the order of their names. Classes and the held-out images follow from the names alone:
    ``diffusion.data.files.layout.layout`` has the rules. Each image is set upright, brought to 8 bits (transparent
    parts over white, 16-bit grey scaled), cropped to its central square and resized. Files that cannot be read are left
    out with a warning. The decoded pixels are kept in a cache until a file changes; the splits are views of that cache,
    so the images need not fit into memory.

    :param root: the folder or zip file
    :param size: height and width, in pixels
    :param channels: 1 (grey) or 3 (RGB)
    :param crop: side of the central square as a share of the image's width, in (0, 1]; never more than the shorter side
    :param held_out: share of each class for the test split, in [0, 1), unless folders are the splits (``train`` and
        ``test`` or ``val``)
    :param resample: Pillow's filter for the resizing
    :param labels: "auto" takes the first folder as the class if there are two or more, True insists on classes, False
        ignores the folders
    :param cache: the folder to keep decoded pixels in; None for ``thaw`` in the user's cache folder, False for no cache
    :param flip: whether training may mirror the images
    :raises UserError: an argument is out of range; at the first use of the content, ``root`` is not there, or no image
        in it can be read
    """

    def __init__(self, root: str | Path, size: int = 64, channels: int = 3, crop: float = 1.0, held_out: float = 0.1,
                 resample: str = "bilinear", labels: Labels = "auto", cache: str | Path | Literal[False] | None = None,
                 flip: bool = False):
        super().__init__(size, channels, flip)
        check_layout(labels, held_out)
        self.root = Path(root).expanduser()
        self.held_out = held_out
        self.labels: Labels = labels
        self.cache = indexing.choose_cache(cache)
        self.decoder = Decoder(size, channels, crop, resample)

    @cached_property
    def index(self) -> indexing.Index:
        """Names and pixels of all readable images, and the files that were left out."""
        return indexing.index(self.root, self.decoder, self.cache)

    @cached_property
    def layout(self) -> Layout:
        """Which images of the index are in which split and class."""
        found = layout(self.index.names, self.labels, self.held_out)
        if found.splits or (found.names is not None and self.labels == "auto"):
            logger.info("%s: %s", self.root, found.describe())
        return found

    @property
    def class_names(self) -> list[str] | None:
        return self.layout.names

    def files(self, name: Split) -> list[str]:
        """The path inside ``root`` of each image of a split, in its order."""
        return [self.index.names[row] for row in self._rows(name)]

    def load(self, name: Split) -> ImageSet:
        rows, labels = self._rows(name), self.layout.labels
        signals = {} if labels is None else {"label": torch.from_numpy(labels[rows])}
        return ImageSet(self._pixels, signals, torch.from_numpy(rows))

    @cached_property
    def _pixels(self) -> UInt8[Tensor, "n c h w"]:
        with warnings.catch_warnings():
            # PyTorch knows no read-only tensors and says so; nothing writes into an image set.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(self.index.pixels)

    def _digests(self, name: Split) -> bytes:
        return self.index.digests[self._rows(name)].tobytes()

    def _rows(self, name: Split) -> np.ndarray:
        return self.layout.train if name == "train" else self.layout.test
