"""What every data set offers: two fixed splits of decoded images, and a fingerprint of their content."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from configs.errors import UserError

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True)
class ImageSet:
    """One split, decoded and in memory.

    :ivar images: pixels, uint8 in 0..255
    :ivar labels: int64 class of each image, or None when the images have no classes
    :ivar names: the class names, indexed by label, or None
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"] | None = None
    names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set with its tensors on ``device``, from where ``batch`` then serves without any copying."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    def batch(self, indices: Int[np.ndarray, " b"] | Int[Tensor, " b"]
              ) -> tuple[UInt8[Tensor, "b c h w"], Int[Tensor, " b"] | None]:
        """The images at ``indices``, and their labels if there are any, on the device of the set."""
        rows = torch.as_tensor(indices, device=self.images.device)
        labels = None if self.labels is None else self.labels.index_select(0, rows)
        # On the CPU, choosing rows of a matrix is forty times faster than choosing rows of four axes.
        images = self.images.flatten(1).index_select(0, rows).unflatten(1, self.images.shape[1:])
        return images, labels


class Data(ABC):
    """A data set: square images of one size, in a training and a test split that never change.

    A subclass loads a split in ``load``, once. Classes are known by ``class_names``.

    :param size: height and width of the images, in pixels
    :param channels: 1 (grey) or 3 (RGB)
    :param flip: whether training may mirror these images left to right. The images of a split are never mirrored; this
        is for the one who draws batches
    :raises UserError: a size below 1, or another number of channels
    """

    def __init__(self, size: int, channels: int, flip: bool):
        if size < 1:
            raise UserError(f"data.size={size}", "images of at least one pixel", "data.size=32")
        if channels not in (1, 3):
            raise UserError(f"data.channels={channels}", "1 (grey) or 3 (RGB)", "data.channels=3")
        self.size, self.channels, self.flip = size, channels, flip
        self._loaded: dict[Split, ImageSet] = {}

    @property
    @abstractmethod
    def class_names(self) -> list[str] | None:
        """The names of the classes, indexed by label, or None when the images have no labels."""

    @property
    def classes(self) -> int | None:
        """How many classes there are, or None when the images have no labels."""
        return None if self.class_names is None else len(self.class_names)

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
            raise UserError(f"no images in the {name} split", "at least one", "data.held_out=0.1, or more images")
        return images

    def fingerprint(self) -> str:
        """A hash of pixels, labels and class names of both splits: equal content has equal fingerprints anywhere."""
        return self._fingerprint

    def _part(self, name: Split) -> ImageSet:
        if name not in self._loaded:
            self._loaded[name] = self.load(name)
        return self._loaded[name]

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.class_names).encode())
        for name in SPLITS:
            part = self._part(name)
            digest.update(f"{name} {tuple(part.images.shape)}".encode())
            digest.update(part.images.contiguous().numpy().data)
            if part.labels is not None:
                digest.update(part.labels.numpy().astype("<i8").data)
        return digest.hexdigest()


def labelled(pixels: UInt8[np.ndarray, "n h w"], labels: Int[np.ndarray, " n"], channels: int,
             names: list[str]) -> ImageSet:
    """Grey images and their classes as an ``ImageSet``, the grey repeated over ``channels``."""
    images = torch.from_numpy(pixels)[:, None].expand(-1, channels, -1, -1).contiguous()
    return ImageSet(images, torch.from_numpy(labels.astype(np.int64)), names)
