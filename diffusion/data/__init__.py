"""Images for training and evaluation: whole data sets, decoded once to uint8, in memory or in a mapped file, or decoded
whenever they are asked for.

A data set (``Digits``, ``MNIST``, ``CIFAR10``, ``CelebA``, ``Folder``, ``Shards``, or anyone's ``Data``) gives two
fixed splits of type ``ImageSet``. ``Batches`` walks over one of them in an order that depends on nothing but the seed
and the position. Pixels become floats in ``diffusion.data.pixels`` and nowhere else.

The names are imported on first use, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion.data.base import Data, ImageSet
    from diffusion.data.loader import Batch, Batches
    from diffusion.data.pixels import to_float, to_uint8
    from diffusion.data.sets.celeba import CelebA
    from diffusion.data.sets.cifar10 import CIFAR10
    from diffusion.data.sets.digits import Digits
    from diffusion.data.sets.folder import Folder
    from diffusion.data.sets.mnist import MNIST
    from diffusion.data.sets.shards import Shards

__all__ = ["CIFAR10", "MNIST", "Batch", "Batches", "CelebA", "Data", "Digits", "Folder", "ImageSet", "Shards",
           "to_float", "to_uint8"]

_HOMES = {
    "Batch": "loader",
    "Batches": "loader",
    "CIFAR10": "sets.cifar10",
    "CelebA": "sets.celeba",
    "Data": "base",
    "Digits": "sets.digits",
    "Folder": "sets.folder",
    "ImageSet": "base",
    "MNIST": "sets.mnist",
    "Shards": "sets.shards",
    "to_float": "pixels",
    "to_uint8": "pixels",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
