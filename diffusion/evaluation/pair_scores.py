"""Restorations beside their originals, as they come."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_float, to_uint8
from diffusion.metrics.base import Images, PairMetric
from diffusion.metrics.intervals import MetricValue, mean


class PairScores:
    """Restorations as they come: the values of the pair metrics, and the images in 8 bits.

    :param pairs: the metrics, by name
    :param originals: the images that were degraded
    :param rounded: measure the pairs as they would be after a file of 8 bits
    :param keep: keep the images
    """

    def __init__(self, pairs: dict[str, PairMetric], originals: Images, rounded: bool = True, keep: bool = True):
        self._pairs, self._originals, self._rounded = pairs, originals, rounded
        self._pixels = torch.zeros(originals.shape if keep else 0, dtype=torch.uint8)
        self._values = {name: torch.zeros(originals.shape[0], dtype=torch.float64) for name in pairs}

    @property
    def images(self) -> ImageSet:
        """The restorations."""
        return ImageSet(self._pixels)

    def add(self, images: Float[Tensor, "b c h w"], rows: Int64[Tensor, " b"]) -> None:
        """Restorations in [-1, 1], not clipped."""
        pixels, originals = to_uint8(images), to_float(self._originals.batch(rows)[0])
        if len(self._pixels):
            self._pixels[rows] = pixels
        for name, metric in self._pairs.items():
            self._values[name][rows] = metric(to_float(pixels) if self._rounded else images, originals).double()

    @property
    def values(self) -> dict[str, Float64[Tensor, " n"]]:
        """What each metric says about each image."""
        return self._values

    def numbers(self) -> dict[str, MetricValue]:
        """What the pair metrics say about all."""
        return {name: mean(self._values[name], metric.root) for name, metric in self._pairs.items()}
