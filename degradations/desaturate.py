"""Desaturation, towards the mean of the three channels (the code of Cold Diffusion, Bansal et al. 2022,
arXiv 2208.09392, there ``decolor``).

One step mixes each channel with the mean of all, with equal weights; k of them are one mixture again, ``D(x, k/T) = g_k
x + (1 - g_k) mean(x)``.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from configs import UserError
from degradations.base import Degradation, State, locate_level
from degradations.decomposition import Decomposition, Mixing
from degradations.shapes import expand_like
from degradations.types import Times


class Desaturate(Degradation):
    """``x_t = g_t x0 + (1 - g_t) mean(x0)``, ``g_t = 1 - t`` (the code's ``Linear``) or ``keep^(t T)`` (``Constant``).

    :param levels: number of steps T
    :param keep: share of the colour that each step keeps, in (0, 1); None is linear
    :param total: leave no colour at t = 1, whatever ``keep`` says (``--decolor_total_remove``)
    """

    levels: int
    affine_in_x0 = True

    def __init__(self, levels: int = 20, keep: float | None = None, total: bool = False):
        if levels < 1:
            raise UserError(f"desaturation of {levels} levels", "at least 1", "degradation.levels=20")
        if keep is not None and not 0 < keep < 1:
            raise UserError(f"keep={keep:g}", "a share of the colour in (0, 1), or null for a line",
                            "degradation.keep=0.9")
        self.levels, self.keep, self.total = levels, keep, total

    def degrade(self, x0: Float[Tensor, "b c h w"], t: Times, state: State) -> Float[Tensor, "b c h w"]:
        mean = x0.mean(dim=1, keepdim=True)
        return torch.lerp(mean, x0, expand_like(self.color(t).to(x0.dtype), x0))

    def difference(self, x0: Float[Tensor, "b c h w"], t: Times, s: Times, state: State) -> Float[Tensor, "b c h w"]:
        """``(g_s - g_t) (x - mean(x))``, the shares subtracted in float64."""
        grow = expand_like((self.color(s) - self.color(t)).to(x0.dtype), x0)
        return grow * (x0 - x0.mean(dim=1, keepdim=True))

    def response(self, x0: Float[Tensor, "b c h w"], dx: Float[Tensor, "b c h w"], t: Times,
                 state: State) -> Float[Tensor, "b c h w"]:
        return self.forward(dx, t, state)

    def decompose(self, shape: Sequence[int], t: float, state: State) -> Decomposition:
        color = self.color(torch.tensor([t])).item()
        return Mixing(color * torch.eye(3, dtype=torch.float64) + (1 - color) / 3, torch.float32)

    def color(self, t: Times) -> Float64[Tensor, " b"]:
        """``g_t``, the share of the colour that is left."""
        below, share = locate_level(t, self.levels)
        k = below + share
        g = 1 - k / self.levels if self.keep is None else self.keep**k
        return g.where((k < self.levels) | (not self.total), 0)

    def check(self, shape: Sequence[int]) -> None:
        if shape[-3] != 3:
            raise UserError(f"desaturation of images of {shape[-3]} channels", "3, red, green and blue",
                            "data.channels=3, or another degradation")
