"""Inpainting: a hole that grows, as in Cold Diffusion (Bansal et al. 2022, arXiv 2208.09392).

Step i multiplies the image by the mask ``m_i(p) = 1 - exp(-|p - c|^2 / (2 b_i^2))``, ``b_i = kernel_std (i +
initial_mask)``, around a center c. After k steps the visible share of a pixel is ``v_k = m_0 ... m_{k-1}``, a function
of k and of the whole number ``|p - c|^2`` alone: one table serves every center, at a cost that depends on neither.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from configs import UserError
from degradations.base import State, flush_denormals, locate_level
from degradations.holes import CENTERS, Hole
from degradations.randomness import Draws
from degradations.types import Times


class Inpaint(Hole):
    """``D(x, t) = v_t x``: the hole tends to 0, which is grey; the network is not told where it is.

    The state has the entry ``center`` (B, 2), row and column of the hole's center.

    :param levels: number of steps T; between two levels v is interpolated
    :param kernel_std: growth of the mask's width with each step, px
    :param initial_mask: width of the first mask, in units of ``kernel_std``
    :param center: ``random``: uniform on -1 .. side - 1 along each axis, as in the code; or ``middle``
    """

    def __init__(self, levels: int = 50, kernel_std: float = 0.1, initial_mask: int = 11, center: str = "random"):
        super().__init__(levels)
        if not kernel_std > 0:
            raise UserError(f"a mask of std {kernel_std:g} px", "std above 0", "degradation.kernel_std=0.1")
        if initial_mask < 1:
            raise UserError(f"initial_mask={initial_mask}", "at least 1", "degradation.initial_mask=1")
        if center not in CENTERS:
            raise UserError(f"the center {center!r}", f"one of {', '.join(CENTERS)}", "degradation.center=random")
        self.kernel_std, self.initial_mask, self.center = kernel_std, initial_mask, center

    def draw(self, shape: Sequence[int], rng: Draws) -> State:
        b, sides = shape[0], shape[-2:]
        if self.center == "random":
            axes = [rng.integers(f"centre {axis}", side + 1, (b,)) - 1 for axis, side in zip("yx", sides)]
        else:
            zero = torch.zeros_like(rng.integers("centre", 1, (b,)))
            axes = [zero + (side - 1) // 2 for side in sides]
        return State(center=torch.stack(axes, dim=1))

    def shares(self, reach: int) -> Float64[Tensor, "rows reach"]:
        """``v_k`` at the squared distances 0 .. reach - 1 from the center, for k = 0 .. T."""
        distance = torch.arange(reach, dtype=torch.float64)
        b = self.kernel_std * (torch.arange(self.levels, dtype=torch.float64)[:, None] + self.initial_mask)
        masks = -torch.expm1(-distance / (2 * b**2))
        return torch.cat([torch.ones(1, reach, dtype=torch.float64), torch.cumprod(masks, dim=0)])

    def visible(self, x: Float[Tensor, "b c h w"], t: Times, state: State,
                dtype: torch.dtype) -> Float[Tensor, "b 1 h w"]:
        """How much of each pixel is there at time t, in [0, 1]."""
        height, width = x.shape[-2:]
        down, across = (torch.arange(side, device=x.device) - state["center"][:, axis, None]
                        for axis, side in enumerate((height, width)))
        distance = down[:, :, None] ** 2 + across[:, None, :] ** 2
        far = [side if self.center == "random" else side // 2 for side in (height, width)]
        table = _table(self, far[0] ** 2 + far[1] ** 2 + 1, str(x.device), dtype)
        below, share = locate_level(t, self.levels)
        above = (below + 1).clamp(max=self.levels)
        low, high = (torch.take(table, k[:, None, None] * table.shape[1] + distance) for k in (below, above))
        return torch.lerp(low, high, share[:, None, None].to(dtype))[:, None]


class ColorInpaint(Inpaint):
    """``D(x, t) = v_t x + (1 - v_t) color``: the image vanishes behind one color, from the corners inwards, until at
    t = 1 nothing else is left: for generation from scratch.

    Here ``1 - v_k`` is the product of the first ``T - k`` masks (the code's ``--reverse``), so what is visible is a
    disc that shrinks. The state has ``color`` (B, C) too, uniform on [-0.5, 0.5].
    """

    def draw(self, shape: Sequence[int], rng: Draws) -> State:
        return super().draw(shape, rng).replace(color=rng.uniform("colour", tuple(shape[:2])) - 0.5)

    def shares(self, reach: int) -> Float64[Tensor, "rows reach"]:
        shares = 1 - super().shares(reach).flip(0)
        shares[0] = 1  # the first mask leaves the corners at 1e-2 of a grey level: t = 0 is the image itself
        return shares

    def fill(self, x: Float[Tensor, "b c h w"], state: State) -> Float[Tensor, "b c 1 1"]:
        """The color, to be added to ``x``."""
        return state["color"][..., None, None].to(x.dtype)


@lru_cache(maxsize=8)
def _table(operator: Inpaint, reach: int, device: str, dtype: torch.dtype) -> Float[Tensor, "rows reach"]:
    return flush_denormals(operator.shares(reach)).to(device=device, dtype=dtype)
