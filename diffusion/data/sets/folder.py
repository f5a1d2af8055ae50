"""Anyone's images: a folder or a zip archive of them."""

import logging
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from configs.errors import UserError
from diffusion.data.base import SPLITS, Data, ImageSet, Split
from diffusion.data.files import index as indexing
from diffusion.data.files.beside import SIGNALS, Beside, read_beside
from diffusion.data.files.captions import Encoded, check_captions, encode_captions
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

    What lies beside the images is read where ``signals`` asks for it (see :mod:`diffusion.data.files.beside`): ``text``
    (n, L) of int64, the words of the captions by their numbers (see
    :func:`diffusion.data.files.captions.encode_captions`); ``attributes`` (n, A), 1 for what is true of an image and 0
    for what is not; ``vector`` (n, D), any numbers, as they are.

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
    :param signals: what else than pixels and classes is read: ``text``, ``attributes`` and ``vector``
    :param words: how many words of the captions are known at most, the most frequent ones; or a list of them, which is
        another run's vocabulary
    :param length: L; None is that of the longest caption, at most 77
    :raises UserError: an argument is out of range; at the first use of the content, ``root`` is not there, no image in
        it can be read, or what lies beside the images does not fit them
    """

    KNOWN: tuple[str, ...] = SIGNALS
    """What ``signals`` may name."""

    def __init__(self, root: str | Path, size: int = 64, channels: int = 3, crop: float = 1.0, held_out: float = 0.1,
                 resample: str = "bilinear", labels: Labels = "auto", cache: str | Path | Literal[False] | None = None,
                 flip: bool = False, signals: Sequence[str] = (), words: int | Sequence[str] = 4096,
                 length: int | None = None):
        super().__init__(size, channels, flip)
        check_layout(labels, held_out)
        check_captions(words, length)
        if isinstance(signals, str) or not {*signals} <= {*self.KNOWN} or len({*signals}) < len(signals):
            raise UserError(f"data.signals={signals}", f"some of {', '.join(self.KNOWN)}, or []",
                            f"data.signals=[{self.KNOWN[0]}]")
        self.signals, self.words, self.length = tuple(signals), words, length
        self._hinted = False
        self.root = Path(root).expanduser()
        self.held_out = held_out
        self.labels: Labels = labels
        self.cache = indexing.choose_cache(cache)
        self.decoder = Decoder(size, channels, crop, resample)

    @cached_property
    def index(self) -> indexing.Index:
        """Names and pixels of all readable images, and the files that were left out."""
        if self.signals:  # what does not fit is refused before the images are decoded, which takes minutes
            self._check_signals()
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

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        return super().described | self._describe_signals()

    def files(self, name: Split) -> list[str]:
        """The path inside ``root`` of each image of a split, in its order."""
        return [self.index.names[row] for row in self._rows(name)]

    def load(self, name: Split) -> ImageSet:
        rows, labels = self._rows(name), self.layout.labels
        signals = {} if labels is None else {"label": torch.from_numpy(labels[rows])}
        return ImageSet(self._pixels, signals | self._take_signals(name), torch.from_numpy(rows))

    def _check_signals(self) -> None:
        """Read what ``signals`` names.

        :raises UserError: if it does not fit the images
        """
        assert self._beside is not None

    def _describe_signals(self) -> dict[str, dict[str, Any]]:
        """What is said of them in ``described``."""
        if not self.signals:
            if self.index.captions and not self._hinted:
                self._hinted = True
                logger.info("%s has captions, which are not read: data.signals=[text] makes them a signal", self.root)
            return {}
        said: dict[str, dict[str, Any]] = {name: {"words": table.names} for name, table in self._beside.numbers.items()}
        if "vector" in said:
            said["vector"]["in_dim"] = len(said["vector"]["words"])
        if "text" in self.signals:
            said["text"] = {"words": self._text.words, "length": self._text.length}
        return said

    def _take_signals(self, name: Split) -> dict[str, Tensor]:
        """Their values of the images of a split."""
        if not self.signals:
            return {}
        taken = {signal: torch.from_numpy(np.stack([table.rows[file] for file in self.files(name)])
                                          if len(self._rows(name)) else np.zeros((0, len(table.names)), np.float32))
                 for signal, table in self._beside.numbers.items()}
        first = 0 if name == "train" else len(self.layout.train)
        if "text" in self.signals:
            taken["text"] = self._text.tokens[first : first + len(self._rows(name))]
        return taken

    @cached_property
    def _beside(self) -> Beside:
        return read_beside(self.root, self.signals)

    @cached_property
    def _text(self) -> Encoded:
        captions = [self._beside.captions[file] for name in SPLITS for file in self.files(name)]
        return encode_captions(captions, self.words, self.length, str(self.root))

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
