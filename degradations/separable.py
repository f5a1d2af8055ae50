"""Linear operators on rows and columns: ``D(x, t) = A_t x B_t^T``, two small matrix products for any mixture of times.

The matrices of all levels are built once per image size, in float64; the cost of D depends neither on t nor on T.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from einops import rearrange
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from degradations.base import Degradation, State, flush_denormals, locate_level
from degradations.decomposition import Decomposition, Kronecker
from degradations.types import Times


class Separable(Degradation):
    """``D(x, k/T) = A_k x B_k^T`` from a table of T + 1 matrices per axis, :meth:`table`. Between two levels the
    matrices are interpolated, unless :meth:`place` says otherwise."""

    levels: int
    affine_in_x0 = True

    def table(self, size: int) -> Float64[Tensor, "rows size size"]:
        """The matrices of levels 0 .. T along an axis of ``size`` pixels."""
        raise NotImplementedError

    def place(self, t: Times) -> tuple[Int64[Tensor, " b"], Times]:
        """The row of the table below ``t``, and the share of the next."""
        return locate_level(t, self.levels)

    def degrade(self, x0: Float[Tensor, "b c h w"], t: Times, state: State) -> Float[Tensor, "b c h w"]:
        rows, columns = self._matrices(x0, t, torch.float32)
        return apply(x0, rows.to(x0.dtype), columns.to(x0.dtype))

    def difference(self, x0: Float[Tensor, "b c h w"], t: Times, s: Times, state: State) -> Float[Tensor, "b c h w"]:
        """``(A_s - A_t) x B_s^T + A_t x (B_s - B_t)^T``, the matrices subtracted in float64."""
        with torch.autocast(x0.device.type, enabled=False):
            rows_t, columns_t = self._matrices(x0, t, torch.float64)
            rows_s, columns_s = self._matrices(x0, s, torch.float64)
            rows, columns = flush_denormals(rows_s - rows_t), flush_denormals(columns_s - columns_t)
            first = apply(x0, rows.to(x0.dtype), flush_denormals(columns_s).to(x0.dtype))
            second = apply(x0, flush_denormals(rows_t).to(x0.dtype), columns.to(x0.dtype))
            return first + second

    def response(self, x0: Float[Tensor, "b c h w"], dx: Float[Tensor, "b c h w"], t: Times,
                 state: State) -> Float[Tensor, "b c h w"]:
        return self.forward(dx, t, state)

    def decompose(self, shape: Sequence[int], t: float, state: State) -> Decomposition:
        return _decompose(self, tuple(shape), t)

    def matrix(self, size: int, t: float) -> Float64[Tensor, "rows size"]:
        """The matrix along an axis at time t, of what a measurement takes."""
        below, share = self.place(torch.tensor([t], dtype=torch.float32))
        table, above = self.table(size), (below + 1).clamp(max=self.levels)
        return torch.lerp(table[below], table[above], share[:, None, None].double())[0]

    def _matrices(self, x: Tensor, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        height, width = x.shape[-2:]
        below, share = self.place(t)
        above = (below + 1).clamp(max=self.levels)
        weight = share[:, None, None].to(dtype)

        def at(size: int) -> Tensor:
            table = _table(self, size, str(x.device), dtype)
            return torch.lerp(table[below], table[above], weight)

        rows = at(height)
        return rows, rows if width == height else at(width)


def apply(x: Float[Tensor, "b c h w"], rows: Float[Tensor, "b h h"],
          columns: Float[Tensor, "b w w"]) -> Float[Tensor, "b c h w"]:
    """``rows x columns^T`` for every channel."""
    c = x.shape[1]
    x = rearrange(x, "b c h w -> b (c h) w") @ columns.mT
    x = rows @ rearrange(x, "b (c h) w -> b h (c w)", c=c)
    return rearrange(x, "b h (c w) -> b c h w", c=c)


@lru_cache(maxsize=16)
def _decompose(operator: Separable, shape: tuple[int, ...], t: float) -> Decomposition:
    return Kronecker(operator.matrix(shape[-2], t), operator.matrix(shape[-1], t), torch.float32)


@lru_cache(maxsize=16)
def _table(operator: Separable, size: int, device: str, dtype: torch.dtype) -> Tensor:
    return flush_denormals(operator.table(size)).to(device=device, dtype=dtype)
