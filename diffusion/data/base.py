"""What every data set offers: two fixed splits of decoded images, and a fingerprint of their content."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from configs.errors import UserError
from configs.values import hash_plain

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


RESIDENT = 8 * 2**30
"""Bytes of pixels up to which a set is moved to a GPU whole."""

LARGEST = 4096
"""Height and width of images, in pixels; a run of a stranger may ask for any size."""

CHUNK = 512
"""Images that are handled at a time where all of a set are gone through."""


@runtime_checkable
class PixelReader(Protocol):
    """Images that are decoded whenever they are asked for, in the place of a tensor of their pixels.

    :ivar shape: ``(m, c, h, w)`` of all images
    """

    shape: tuple[int, int, int, int]

    def read(self, rows: Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        """The pixels of these rows, on the CPU."""
        ...


@dataclass(frozen=True)
class ImageSet:
    """One split: the images are chosen rows of pixels that lie in memory, or in a file that is mapped into it, or that
    a ``PixelReader`` decodes.

    :ivar pixels: uint8 in 0..255, read only
    :ivar signals: what is known about the images, by the name of the signal, a row for each image: ``label (n,)`` of
        int64 is the class
    :ivar rows: which rows of ``pixels`` the images are, int64, or None for all of them
    """

    pixels: UInt8[Tensor, "m c h w"] | PixelReader
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    rows: Int[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return self.pixels.shape[0] if self.rows is None else len(self.rows)

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.pixels.device if isinstance(self.pixels, Tensor) else torch.device("cpu")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(n, c, h, w)`` of all images."""
        channels, height, width = self.pixels.shape[1:]
        return len(self), channels, height, width

    @property
    def labels(self) -> Int[Tensor, " n"] | None:
        """The class of each image, or None when the images have no classes."""
        return self.signals.get("label")

    @property
    def conditions(self) -> Int[Tensor, " n"] | None:
        """A number for each image, equal where all signals are equal; None when nothing is known about the images."""
        if not self.signals:
            return None
        columns = [torch.unique(raw.flatten(1) if raw.dim() > 1 else raw, dim=0, return_inverse=True)[1]
                   for raw in self.signals.values()]
        return torch.unique(torch.stack(columns, dim=1), dim=0, return_inverse=True)[1]

    @property
    def images(self) -> UInt8[Tensor, "n c h w"]:
        """All images in memory, for sets that are known to be small; else there are ``batch`` and ``chunks``."""
        if isinstance(self.pixels, Tensor) and self.rows is None:
            return self.pixels
        return self.batch(torch.arange(len(self)))[0]

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set on ``device``, from where ``batch`` then serves without any copying; or this set, if its images
        and signals are more than ``RESIDENT`` bytes or half of the GPU's free memory, or a ``PixelReader`` decodes
        them."""
        device = torch.device(device)
        size = math.prod(self.shape) + sum(raw.numel() * raw.element_size() for raw in self.signals.values())
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
        if device == self.device or size > min(RESIDENT, free / 2) or not isinstance(self.pixels, Tensor):
            return self
        pixels = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for place, (images, _) in zip(pixels.split(CHUNK), self.chunks(), strict=True):
            place.copy_(images)
        return ImageSet(pixels, {name: raw.to(device) for name, raw in self.signals.items()})

    def choose(self, places: Int[Tensor, " b"]) -> "ImageSet":
        """The set of the images at these places; no pixels are copied."""
        return ImageSet(self.pixels, {name: raw[places] for name, raw in self.signals.items()},
                        places if self.rows is None else self.rows[places])

    def batch(self, indices: Int[np.ndarray, " b"] | Int[Tensor, " b"]
              ) -> tuple[UInt8[Tensor, "b c h w"], dict[str, Tensor]]:
        """A copy of the images at ``indices``, and their signals, on the device of the set."""
        chosen = torch.as_tensor(indices, device=self.device)
        signals = {name: raw.index_select(0, chosen) for name, raw in self.signals.items()}
        rows = chosen if self.rows is None else self.rows.index_select(0, chosen)
        if not isinstance(self.pixels, Tensor):
            return self.pixels.read(rows), signals
        # On the CPU, choosing rows of a matrix is forty times faster than choosing rows of four axes.
        images = self.pixels.flatten(1).index_select(0, rows).unflatten(1, self.pixels.shape[1:])
        return images, signals

    def chunks(self) -> Iterator[tuple[UInt8[Tensor, "b c h w"], dict[str, Tensor]]]:
        """All images in their order, and their signals, ``CHUNK`` at a time."""
        for indices in torch.arange(len(self)).split(CHUNK) if len(self) else ():
            yield self.batch(indices)


class Data(ABC):
    """A data set: square images of one size, in a training and a test split that never change.

    A subclass loads a split in ``load``, once. What else than pixels its images have, it says in ``described``; for
    classes alone, ``class_names`` is enough.

    :param size: height and width of the images, in pixels
    :param channels: 1 (grey) or 3 (RGB)
    :param flip: whether training may mirror these images left to right. The images of a split are never mirrored; this
        is for the one who draws batches
    :raises UserError: a size below 1 or above ``LARGEST``, or another number of channels
    """

    def __init__(self, size: int, channels: int, flip: bool):
        if not 1 <= size <= LARGEST:
            raise UserError(f"data.size={size}", f"images of 1 to {LARGEST} pixels", "data.size=32")
        if channels not in (1, 3):
            raise UserError(f"data.channels={channels}", "1 (grey) or 3 (RGB)", "data.channels=3")
        self.size, self.channels, self.flip = size, channels, flip
        self._loaded: dict[Split, ImageSet] = {}

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, indexed by label, or None when the images have no labels."""
        return None

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        """The signals of the images, as plain data: for each the arguments that its module needs to know, which fill
        those that the config leaves open (null). ``{"label": {"num_classes": 10, "words": ["airplane", ...]}}``"""
        names = self.class_names
        return {} if names is None else {"label": {"num_classes": len(names), "words": names}}

    def accepts_judge(self, data: Mapping[str, Any], fingerprint: str) -> bool:
        """Whether a classifier may judge what models of these images make.

        :param data: the config of the data that it was trained on
        :param fingerprint: of these
        """
        return fingerprint == self.fingerprint()

    def find_answers(self, written: Sequence[Mapping[str, Any]]) -> Int[Tensor, "n a"] | None:
        """What a judge should say about images that were made as conditions say, as the signal ``answers``, -1 where
        they do not tell; None if the conditions are of another kind.

        :param written: the conditions, as :meth:`models.readers.Reader.write` writes them
        """
        return None

    @abstractmethod
    def load(self, name: Split) -> ImageSet:
        """Reads a split, which may be empty. Called once for each."""

    def split(self, name: str) -> ImageSet:
        """The split ``name``, on the CPU; read at the first call and kept.

        :raises UserError: there is no such split, or it has no images
        """
        if name not in SPLITS:
            raise UserError(f"the split {name!r}", "one of " + ", ".join(SPLITS), "name one of these")
        images = self._part(name)
        if len(images) == 0:
            raise UserError(f"no images in the {name} split", "at least one",
                            f"data.held_out=0.1 in the training, or more images than {len(self._part('train'))}")
        return images

    @property
    def holds_out(self) -> bool:
        """Whether there are images in the test split."""
        return len(self._part("test")) > 0

    def fingerprint(self) -> str:
        """A hash of pixels, signals and class names of both splits: equal content has equal fingerprints anywhere."""
        return self._fingerprint

    def _part(self, name: Split) -> ImageSet:
        if name not in self._loaded:
            self._loaded[name] = self.load(name)
        return self._loaded[name]

    @cached_property
    def _fingerprint(self) -> str:
        whole = hashlib.sha256(repr(self.class_names).encode())
        others = {name: words for name, words in self.described.items() if name != "label"}
        if others:
            whole.update(hash_plain(others, 64).encode())
        for name in SPLITS:
            part = self._part(name)
            whole.update(f"{name} {part.shape}".encode())
            whole.update(self._digests(name))
            if part.labels is not None:
                whole.update(part.labels.numpy().astype("<i8").data)
            for other, raw in sorted(part.signals.items()):
                if other != "label":
                    whole.update(f"{other} {raw.dtype} {tuple(raw.shape)}".encode())
                    whole.update(np.ascontiguousarray(raw.numpy()).data)
        return whole.hexdigest()

    def _digests(self, name: Split) -> bytes:
        """The ``digest`` of each image of a split, one after the other."""
        return b"".join(digest(image) for images, _ in self._part(name).chunks() for image in images.numpy())


def digest(image: UInt8[np.ndarray, "c h w"]) -> bytes:
    """A hash of the pixels of an image, 16 bytes."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def choose_classes(images: ImageSet, names: Sequence[str], classes: Sequence[str]) -> ImageSet:
    """The images of some classes, which are numbered anew in the order that is given.

    :param images: a set with classes
    :param names: of all of them
    :param classes: names of those to keep
    """
    assert images.labels is not None
    number = torch.full((len(names),), -1)
    number[[list(names).index(name) for name in classes]] = torch.arange(len(classes))
    labels = number[images.labels]
    (places,) = torch.where(labels >= 0)
    some = images.choose(places)
    return ImageSet(some.pixels, {**some.signals, "label": labels[places]}, some.rows)


def make_labelled(pixels: UInt8[np.ndarray, "n h w"], labels: Int[np.ndarray, " n"], channels: int) -> ImageSet:
    """Grey images and their classes as an ``ImageSet``, the grey repeated over ``channels``."""
    images = torch.from_numpy(pixels)[:, None].expand(-1, channels, -1, -1).contiguous()
    return ImageSet(images, {"label": torch.from_numpy(labels.astype(np.int64))})
