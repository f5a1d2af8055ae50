"""Motion blur: each pixel becomes the mean along a line, as when camera or object moves during the exposure.

The straight line is the simplest of the motions that inverse problems are stated with (DPS, Chung et al. 2022, arXiv
2209.14687, section 4, has random paths); that its length grows with t is ours.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, inf, isfinite, prod

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Float64
from torch import Tensor

from configs import UserError
from degradations.base import Degradation, State, flush_denormals, locate_level
from degradations.blur import PADDINGS
from degradations.decomposition import Decomposition, Dense, Kronecker
from degradations.randomness import Draws
from degradations.types import Times

MOST_PIXELS = 32**2
"""Pixels of images up to which the singular values of a slanting line are computed, in seconds."""


class MotionBlur(Degradation):
    """``x_t(p) = sum_j w_j x0(p + j d)``: the mean over a line of ``l_t = 1 + (length - 1) t`` px around p.

    ``d`` is the unit vector of the angle, and ``w_j = clip((l_t + 1) / 2 - |j|, 0, 1) / l_t``: whole pixels along the
    line, a part of one at both ends. Between the pixels x0 is interpolated bilinearly, so a line along rows or columns
    touches no others. The state has ``angle`` (B,), in degrees.

    :param levels: number of levels T; between two levels the line goes on growing
    :param length: of the line at t = 1, px, above 1 and at most the image's shorter side
    :param angle: of the line, in degrees from rows to the right, counterclockwise; or ``random``: uniform on [0, 180),
        for each image
    :param padding: ``circular``, ``reflect`` (the edge is not repeated), ``replicate`` or ``zeros``
    :raises UserError: for settings outside of these
    """

    levels: int
    affine_in_x0 = True

    def __init__(self, levels: int = 20, length: float = 7.0, angle: float | str = 0.0, padding: str = "reflect"):
        if levels < 1:
            raise UserError(f"a motion blur of {levels} levels", "at least 1", "degradation.levels=20")
        if not 1 < length < inf:
            raise UserError(f"a motion blur of {length:g} px", "a line above 1 px", "degradation.length=7")
        if angle != "random" and (isinstance(angle, str) or not isfinite(angle)):
            raise UserError(f"the angle {angle!r}", "degrees, or random", "degradation.angle=45")
        if padding not in PADDINGS:
            raise UserError(f"blur padding {padding!r}", f"one of {', '.join(PADDINGS)}",
                            "degradation.padding=reflect")
        self.levels, self.length, self.angle, self.padding = levels, length, angle, padding
        self.reach = ceil((length - 1) / 2)

    def draw(self, shape: Sequence[int], rng: Draws) -> State:
        u = rng.uniform("angle", shape[:1])
        return State(angle=180 * u if self.angle == "random" else torch.full_like(u, float(self.angle)))

    def degrade(self, x0: Float[Tensor, "b c h w"], t: Times, state: State) -> Float[Tensor, "b c h w"]:
        return self._filter(x0, self.kernel(t, state))

    def difference(self, x0: Float[Tensor, "b c h w"], t: Times, s: Times, state: State) -> Float[Tensor, "b c h w"]:
        """The image filtered with ``k_s - k_t``, the kernels subtracted in float64."""
        with torch.autocast(x0.device.type, enabled=False):
            return self._filter(x0, self.kernel(s, state) - self.kernel(t, state))

    def response(self, x0: Float[Tensor, "b c h w"], dx: Float[Tensor, "b c h w"], t: Times,
                 state: State) -> Float[Tensor, "b c h w"]:
        return self.forward(dx, t, state)

    def decompose(self, shape: Sequence[int], t: float, state: State) -> Decomposition | None:
        """None for lines of an angle each, and for slanting ones on images of more than ``MOST_PIXELS``."""
        if self.angle == "random" or (float(self.angle) % 90 and prod(shape[-2:]) > MOST_PIXELS):
            return None
        return _decompose(self, (shape[-2], shape[-1]), t)

    def kernel(self, t: Times, state: State) -> Float64[Tensor, "b size size"]:
        """The weight of each offset, rows down and columns to the right, the middle one being no offset."""
        below, share = locate_level(t, self.levels)
        length = 1 + (self.length - 1) * (below + share)[:, None] / self.levels
        place = torch.arange(-self.reach, self.reach + 1, device=t.device, dtype=torch.float64)
        weights = ((length + 1) / 2 - place.abs()).clamp(0, 1) / length
        angle = state["angle"].double().deg2rad()[:, None]
        down, right = (1 - (step[..., None] * place[:, None] - place).abs() for step in (-angle.sin(), angle.cos()))
        return torch.einsum("bj,bjy,bjx->byx", weights, down.clamp(min=0), right.clamp(min=0))

    def _filter(self, x: Tensor, kernel: Tensor) -> Tensor:
        b, c = x.shape[:2]
        weight = flush_denormals(kernel).to(x.dtype)[:, None].repeat_interleave(c, dim=0)
        mode = "constant" if self.padding == "zeros" else self.padding
        padded = rearrange(F.pad(x, [self.reach] * 4, mode=mode), "b c h w -> 1 (b c) h w")
        return rearrange(F.conv2d(padded, weight, groups=b * c), "1 (b c) h w -> b c h w", c=c)

    def check(self, shape: Sequence[int]) -> None:
        side = min(shape[-2:])
        if self.length > side:
            raise UserError(f"a motion blur of {self.length:g} px on images of {shape[-2]}x{shape[-1]} px",
                            f"a line of at most {side} px", f"degradation.length={side}")


@lru_cache(maxsize=4)
def _decompose(operator: MotionBlur, sides: tuple[int, int], t: float) -> Decomposition:
    def blur(images: Tensor) -> Tensor:
        angle = State(angle=torch.full((len(images),), float(operator.angle)))
        return operator.forward(images[:, None], torch.full((len(images),), t), angle)[:, 0]

    height, width = sides
    if float(operator.angle) % 90:
        images = torch.eye(height * width, dtype=torch.float64).reshape(-1, height, width)
        return Dense(blur(images).flatten(1).mT, sides, torch.float32)
    rows = blur(torch.eye(height, dtype=torch.float64)[:, :, None].expand(-1, -1, width))[:, :, 0].mT
    columns = blur(torch.eye(width, dtype=torch.float64)[:, None].expand(-1, height, -1))[:, 0].mT
    return Kronecker(rows, columns, torch.float32)
