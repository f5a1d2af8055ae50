"""Singular values of linear operators: ``A = U S V^T`` for a batch of images.

The coefficients of an image are ``V^T x``, those of what was measured ``U^T y``. Both have a place for every direction
of the image, so that S, too, is one tensor that broadcasts with them: 0 where nothing is measured.
"""

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

CUT = 1e-3
"""Share of the greatest singular value below which a direction counts as not measured where nothing else says so."""


class Decomposition(ABC):
    """``A = U S V^T`` with orthogonal U and V.

    :ivar values: S, at least 0, broadcasts with the coefficients
    """

    values: Tensor

    @abstractmethod
    def vt(self, x: Tensor) -> Tensor:
        """``V^T x``: the coefficients of an image."""

    @abstractmethod
    def v(self, c: Tensor) -> Tensor:
        """``V c``: the image of coefficients."""

    @abstractmethod
    def ut(self, y: Tensor) -> Tensor:
        """``U^T y``: the coefficients of what was measured; any number where S is 0."""

    @abstractmethod
    def u(self, c: Tensor) -> Tensor:
        """``U c``: the measurement of coefficients that are 0 wherever S is."""

    @cached_property
    def measured(self) -> Tensor:
        """Which directions are measured: those whose S is more than ``CUT`` of the greatest."""
        return self.values > CUT * self.greatest

    @cached_property
    def greatest(self) -> Tensor:
        """The greatest singular value; of each image, where the operator has a state."""
        return self.values.amax()

    def invert(self, y: Tensor) -> Tensor:
        """``A^+ y``, the least image that explains y in the measured directions."""
        inverse = torch.where(self.measured, 1 / self.values.where(self.measured, 1), 0)
        return self.v(inverse * self.ut(y))


class Diagonal(Decomposition):
    """``A x = m x``, a share of each pixel: U and V are the identity.

    :param mask: the shares, in [0, 1]
    """

    def __init__(self, mask: Float[Tensor, "b _ h w"]):
        self.values = mask

    @cached_property
    def greatest(self) -> Tensor:
        return self.values.amax(dim=(1, 2, 3), keepdim=True)

    def vt(self, x: Tensor) -> Tensor:
        return x

    def v(self, c: Tensor) -> Tensor:
        return c

    def ut(self, y: Tensor) -> Tensor:
        return y

    def u(self, c: Tensor) -> Tensor:
        return c


class Kronecker(Decomposition):
    """``A x = R x C^T``: matrices for rows and columns.

    :param rows: R, (m, h) with m <= h, float64
    :param columns: C, (n, w) with n <= w, float64
    """

    def __init__(self, rows: Float[Tensor, "m h"], columns: Float[Tensor, "n w"], dtype: torch.dtype):
        self._rows, self._columns = (_Matrix(matrix, dtype) for matrix in (rows, columns))
        self.values = self._rows.values[:, None] * self._columns.values

    def vt(self, x: Tensor) -> Tensor:
        return self._rows.v.mT @ x @ self._columns.v

    def v(self, c: Tensor) -> Tensor:
        return self._rows.v @ c @ self._columns.v.mT

    def ut(self, y: Tensor) -> Tensor:
        return self._rows.u.mT @ y @ self._columns.u

    def u(self, c: Tensor) -> Tensor:
        return self._rows.u @ c @ self._columns.u.mT


class Dense(Decomposition):
    """Any matrix on the pixels of a channel, the same for all images, which it leaves of their size.

    :param matrix: (h w, h w), float64
    :param sides: h and w
    """

    def __init__(self, matrix: Float[Tensor, "n n"], sides: tuple[int, int], dtype: torch.dtype):
        self._matrix, self._sides = _Matrix(matrix, dtype), sides
        self.values = self._matrix.values

    def vt(self, x: Tensor) -> Tensor:
        return x.flatten(2) @ self._matrix.v

    def v(self, c: Tensor) -> Tensor:
        return (c @ self._matrix.v.mT).unflatten(2, self._sides)

    def ut(self, y: Tensor) -> Tensor:
        return y.flatten(2) @ self._matrix.u

    def u(self, c: Tensor) -> Tensor:
        return (c @ self._matrix.u.mT).unflatten(2, self._sides)


class Mixing(Decomposition):
    """A matrix on the channels of a pixel, the same for all pixels.

    :param matrix: (c, c), float64
    """

    def __init__(self, matrix: Float[Tensor, "c c"], dtype: torch.dtype):
        self._matrix = _Matrix(matrix, dtype)
        self.values = self._matrix.values[:, None, None]

    def vt(self, x: Tensor) -> Tensor:
        return torch.einsum("dc,bdhw->bchw", self._matrix.v, x)

    def v(self, c: Tensor) -> Tensor:
        return torch.einsum("dc,bchw->bdhw", self._matrix.v, c)

    def ut(self, y: Tensor) -> Tensor:
        return torch.einsum("dc,bdhw->bchw", self._matrix.u, y)

    def u(self, c: Tensor) -> Tensor:
        return torch.einsum("dc,bchw->bdhw", self._matrix.u, c)


class _Matrix:
    """The singular values of one matrix (m, n), m <= n; U is (m, n), with columns of zeros where S has none."""

    def __init__(self, matrix: Tensor, dtype: torch.dtype):
        m, n = matrix.shape
        u, values, vt = torch.linalg.svd(matrix, full_matrices=True)
        self.values = torch.cat([values, values.new_zeros(n - m)]).to(dtype)
        self.u = torch.cat([u, u.new_zeros(m, n - m)], dim=1).to(dtype)
        self.v = vt.mT.contiguous().to(dtype)


