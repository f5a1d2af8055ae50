"""Downsampling by halves, as in Cold Diffusion (Bansal et al. 2022, arXiv 2208.09392, super-resolution).

Level k is the image at ``1 / 2^k`` of its size, brought back by repeating pixels. The paper's code goes down one after
the other with PyTorch's bicubic filter (A = -0.75, no antialiasing); since the image is then made of blocks, only its
first halving is truly bicubic and all others are plain averages of 2 x 2.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from configs import UserError
from degradations.base import State, ceil_level
from degradations.separable import Separable
from degradations.types import Times

HALVINGS = {"bicubic": (-0.09375, 0.59375, 0.59375, -0.09375), "average": (0.0, 0.5, 0.5, 0.0)}
"""Weights of the four pixels around the middle of two, by the name of the first halving."""


class Downsample(Separable):
    """T halvings of the side. There is nothing between two levels: the one at or above t holds.

    :param levels: number of halvings T, of which the side must admit all
    :param first: filter of the first halving: ``bicubic``, as in the code, or ``average``
    """

    def __init__(self, levels: int = 3, first: str = "bicubic"):
        if levels < 1:
            raise UserError(f"downsampling of {levels} levels", "at least 1", "degradation.levels=3")
        if first not in HALVINGS:
            raise UserError(f"the first halving {first!r}", f"one of {', '.join(HALVINGS)}",
                            "degradation.first=bicubic")
        self.levels, self.first = levels, first

    def table(self, size: int) -> Float64[Tensor, "rows size size"]:
        half = halving(size, self.first)
        table = [torch.eye(size, dtype=torch.float64)]
        for k in range(1, self.levels + 1):
            average = half.reshape(-1, 2 ** (k - 1), size).mean(dim=1)
            table.append(average.repeat_interleave(2**k, dim=0))
        return torch.stack(table)

    def place(self, t: Times) -> tuple[Int64[Tensor, " b"], Times]:
        return ceil_level(t, self.levels), torch.zeros_like(t)

    def observe(self, x_t: Float[Tensor, "b c h w"], t: Times, state: State) -> Float[Tensor, "b c m n"]:
        """One pixel of each block. All images must be at the same time."""
        side = self._side(float(t[0]))
        return x_t[..., ::side, ::side]

    def enlarge(self, y: Float[Tensor, "b c m n"], shape: Sequence[int]) -> Float[Tensor, "b c h w"]:
        return y.repeat_interleave(shape[-2] // y.shape[-2], dim=-2).repeat_interleave(shape[-1] // y.shape[-1], dim=-1)

    def matrix(self, size: int, t: float) -> Float64[Tensor, "rows size"]:
        return super().matrix(size, t)[::self._side(t)]

    def _side(self, t: float) -> int:
        """Of the blocks, px."""
        return 2 ** int(self.place(torch.tensor([t]))[0])

    def check(self, shape: Sequence[int]) -> None:
        reach = min((side & -side).bit_length() - 1 for side in shape[-2:])
        if reach < self.levels:
            block = 2**self.levels
            near = [max(1, round(side / block)) * block for side in shape[-2:]]
            raise UserError(f"{self.levels} halvings of images of {shape[-2]}x{shape[-1]} px",
                            f"sides that {block} divides, such as {near[0]}x{near[1]}",
                            f"degradation.levels={reach} or data.size={near[0]}" if reach else f"data.size={near[0]}")


def halving(size: int, filter: str) -> Float64[Tensor, "half size"]:
    """The matrix that halves an axis: each pixel from the four around its middle, the border repeated."""
    weights = torch.tensor(HALVINGS[filter], dtype=torch.float64).expand(size // 2, -1)
    place = (2 * torch.arange(size // 2)[:, None] + torch.arange(-1, 3)).clamp(0, size - 1)
    return torch.zeros(size // 2, size, dtype=torch.float64).scatter_add_(1, place, weights)
