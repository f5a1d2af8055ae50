"""Gaussian blur, composed step by step as in Cold Diffusion (Bansal et al. 2022, arXiv 2208.09392).

One step is a depthwise convolution with ``k k^T``, ``k_j ~ exp(-(j - r)^2 / (2 s_i^2))``, ``j = 0..2r``, normalised to
sum 1. ``D(x, k/T)`` applies steps ``0..k-1`` one after another. Padding and filter act on rows and columns
separately, so any number of steps is two small matrix products: ``D(x, t) = A_t x B_t^T``.
"""

from collections.abc import Sequence
from math import exp

import torch
from jaxtyping import Float64
from torch import Tensor

from configs import UserError
from degradations.separable import Separable

PADDINGS = ("circular", "reflect", "replicate", "zeros")


class Kernels:
    """Size and standard deviation (px) of the kernel of step ``i = 0..T-1``.

    :ivar composed: whether level k is the product of the steps ``0..k-1``, or step ``k-1`` alone
    """

    composed: bool = True

    def __init__(self, size: int):
        if size % 2 == 0 or size < 1:
            raise UserError(f"blur kernel size {size}", "an odd size, at least 1",
                            f"degradation.kernels.size={max(size, 0) + 1 if size % 2 == 0 else 1}")
        self._size = size

    def size(self, i: int) -> int:
        return self._size

    def std(self, i: int) -> float:
        raise NotImplementedError


class ConstantKernels(Kernels):
    """``s_i = std`` (the code's ``Constant``, ``Constant_reflect``)."""

    def __init__(self, size: int = 11, std: float = 7.0):
        super().__init__(size)
        self._std = std

    def std(self, i: int) -> float:
        return self._std


class LinearKernels(Kernels):
    """``s_i = start + slope i``: ``Incremental`` is start = slope = std, ``Special_6_routine`` 0.35 and 0.01."""

    def __init__(self, size: int = 11, start: float = 0.35, slope: float = 0.01):
        super().__init__(size)
        self._start, self._slope = start, slope

    def std(self, i: int) -> float:
        return self._start + self._slope * i


class ExponentialKernels(Kernels):
    """``s_i = exp(rate i)`` (the code's ``Exponential``, ``Exponential_reflect``)."""

    def __init__(self, size: int = 15, rate: float = 0.01):
        super().__init__(size)
        self._rate = rate

    def std(self, i: int) -> float:
        return exp(self._rate * i)


class IndividualKernels(Kernels):
    """One blur of size ``2i + 1`` and std ``2 (2i + 1)`` per level, not composed (``Individual_Incremental``)."""

    composed = False

    def __init__(self):
        super().__init__(1)

    def size(self, i: int) -> int:
        return 2 * i + 1

    def std(self, i: int) -> float:
        return 2.0 * (2 * i + 1)


class Blur(Separable):
    """Composed Gaussian blur of T levels; between two levels the matrices are interpolated.

    :param kernels: size and std of each step's kernel
    :param levels: number of steps T
    :param padding: ``circular``, ``reflect`` (the edge is not repeated), ``replicate`` or ``zeros``
    :param collapse: at ``t = 1`` replace the image by its mean per channel (``--discrete`` in the code, which the
        paper's generation from scratch uses)
    """

    def __init__(self, kernels: Kernels, levels: int = 20, padding: str = "circular", collapse: bool = False):
        if padding not in PADDINGS:
            raise UserError(f"blur padding {padding!r}", f"one of {', '.join(PADDINGS)}",
                            "degradation.padding=circular")
        if levels < 1:
            raise UserError(f"a blur of {levels} levels", "at least 1", "degradation.levels=20")
        narrow = [i for i in range(levels) if not kernels.std(i) > 0]
        if narrow:
            raise UserError(f"a blur kernel of std {kernels.std(narrow[0]):g} (step {narrow[0]})", "std above 0",
                            "degradation.kernels=constant degradation.kernels.std=1.0")
        self.kernels, self.levels, self.padding, self.collapse = kernels, levels, padding, collapse

    def table(self, size: int) -> Float64[Tensor, "rows size size"]:
        table = [torch.eye(size, dtype=torch.float64)]
        for i in range(self.levels):
            step = step_matrix(size, self.kernels.size(i), self.kernels.std(i), self.padding)
            table.append(step @ table[-1] if self.kernels.composed else step)
        if self.collapse:
            table[-1] = torch.full((size, size), 1 / size, dtype=torch.float64)
        return torch.stack(table)

    def check(self, shape: Sequence[int]) -> None:
        radius = max(self.kernels.size(i) // 2 for i in range(self.levels))
        if self.padding == "reflect" and radius >= min(shape[-2:]):
            raise UserError(f"a kernel of radius {radius} on images of {shape[-2]}x{shape[-1]} px",
                            "with reflect padding, a radius below the image's side",
                            f"degradation.kernels.size={2 * min(shape[-2:]) - 1} or degradation.padding=circular")


def step_matrix(size: int, kernel: int, std: float, padding: str) -> Tensor:
    """One step of pad-and-filter along one axis as a (size, size) float64 matrix."""
    radius = kernel // 2
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-(offsets**2) / (2 * std**2))
    weights = weights / weights.sum()
    place = torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)
    inside = (place >= 0) & (place < size)
    match padding:
        case "circular":
            source = place % size
        case "reflect":
            source = size - 1 - (size - 1 - place.abs()).abs()
        case _:
            source = place.clamp(0, size - 1)
    weights = weights.expand(size, -1)
    if padding == "zeros":
        weights = weights * inside
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, source, weights)
