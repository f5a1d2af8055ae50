"""Holes: of each pixel a share is visible, the rest is one value, ``D(x, t, z) = v_t x + (1 - v_t) value``.

Beside the holes of Cold Diffusion (:mod:`degradations.inpaint`) these are the two of the inverse problems of DPS (Chung
et al. 2022, arXiv 2209.14687, section 4): a box, and pixels at random. There they are what is left at t = 1; the way
to it is ours.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from configs import UserError
from degradations.base import Degradation, State, locate_level
from degradations.decomposition import CUT, Decomposition, Diagonal
from degradations.randomness import Draws
from degradations.types import Times

CENTERS = ("random", "middle")


class Hole(Degradation):
    """``D(x, t, z) = v_t x + (1 - v_t) value``, with the visible share ``v_t`` in [0, 1] of each pixel, the same in all
    channels. To write one, implement :meth:`visible`.

    :param levels: number of levels T, at least 1
    :param value: what erased pixels become, in [-1, 1]: 0 is grey, -1 black
    :raises UserError: for another number or value
    """

    levels: int
    affine_in_x0 = True

    def __init__(self, levels: int, value: float = 0.0):
        if levels < 1:
            raise UserError(f"inpainting of {levels} levels", "at least 1", "degradation.levels=50")
        if not -1 <= value <= 1:
            raise UserError(f"holes of the value {value:g}", "a value in [-1, 1], such as 0 (grey) or -1 (black)",
                            "degradation.value=0")
        self.levels, self.value = levels, value

    def visible(self, x: Float[Tensor, "b c h w"], t: Times, state: State,
                dtype: torch.dtype) -> Float[Tensor, "b 1 h w"]:
        """How much of each pixel is there at time t, in [0, 1]."""
        raise NotImplementedError

    def fill(self, x: Float[Tensor, "b c h w"], state: State) -> Float[Tensor, "b c 1 1"] | float:
        """What erased pixels become, to be added to ``x``."""
        return self.value

    def degrade(self, x0: Float[Tensor, "b c h w"], t: Times, state: State) -> Float[Tensor, "b c h w"]:
        visible = self.visible(x0, t, state, torch.float32).to(x0.dtype)
        return visible * x0 + (1 - visible) * self.fill(x0, state)

    def difference(self, x0: Float[Tensor, "b c h w"], t: Times, s: Times, state: State) -> Float[Tensor, "b c h w"]:
        """``(v_s - v_t) (x - value)``, the shares subtracted in float64."""
        growth = self.visible(x0, s, state, torch.float64) - self.visible(x0, t, state, torch.float64)
        return growth.to(x0.dtype) * (x0 - self.fill(x0, state))

    def response(self, x0: Float[Tensor, "b c h w"], dx: Float[Tensor, "b c h w"], t: Times,
                 state: State) -> Float[Tensor, "b c h w"]:
        return self.visible(dx, t, state, torch.float32).to(dx.dtype) * dx

    def observe(self, x_t: Float[Tensor, "b c h w"], t: Times, state: State) -> Float[Tensor, "b c h w"]:
        """0 where next to nothing of x0 is visible."""
        return x_t * (self.visible(x_t, t, state, torch.float32) > CUT).to(x_t.dtype)

    def decompose(self, shape: Sequence[int], t: float, state: State) -> Decomposition:
        like = next(state[name] for name in state)
        x = torch.zeros(len(like), *shape, device=like.device)
        visible = self.visible(x, x.new_full((len(x),), t), state, torch.float32)
        return Diagonal(visible * (visible > CUT))


class BoxInpaint(Hole):
    """A rectangle that grows from its center: at time t its sides are t times the last ones, and of a pixel on its
    border the part outside is visible.

    The last rectangle is of whole pixels and lies within the image. The state has ``corner`` (B, 2), row and column of
    its first pixel.

    :param levels: number of levels T; between two levels the rectangle goes on growing
    :param height: last height, as a share of the image's, in (0, 1]; rounded to whole pixels, at least one
    :param width: last width, likewise
    :param center: ``random``: uniform among all places; or ``middle``
    :param value: what erased pixels become, in [-1, 1]
    :raises UserError: for settings outside of these
    """

    def __init__(self, levels: int = 20, height: float = 0.5, width: float = 0.5, center: str = "random",
                 value: float = 0.0):
        super().__init__(levels, value)
        for name, share in (("height", height), ("width", width)):
            if not 0 < share <= 1:
                raise UserError(f"a hole of {name}={share:g}", f"a share of the image's {name}, in (0, 1]",
                                f"degradation.{name}=0.5")
        if center not in CENTERS:
            raise UserError(f"the center {center!r}", f"one of {', '.join(CENTERS)}", "degradation.center=random")
        self.height, self.width, self.center = height, width, center

    def draw(self, shape: Sequence[int], rng: Draws) -> State:
        room = [side - hole for side, hole in zip(shape[-2:], self._sides(shape))]
        corners = [rng.integers(f"corner {axis}", free + 1, shape[:1]) for axis, free in zip("yx", room)]
        if self.center == "middle":
            corners = [torch.full_like(corner, free // 2) for corner, free in zip(corners, room)]
        return State(corner=torch.stack(corners, dim=1))

    def visible(self, x: Float[Tensor, "b c h w"], t: Times, state: State,
                dtype: torch.dtype) -> Float[Tensor, "b 1 h w"]:
        below, share = locate_level(t, self.levels)
        grown = (below + share)[:, None] / self.levels
        covered = []
        for axis, (side, hole) in enumerate(zip(x.shape[-2:], self._sides(x.shape))):
            middle, half = state["corner"][:, axis, None] + hole / 2, grown * hole / 2
            pixel = torch.arange(side, device=x.device)
            covered.append((torch.minimum(pixel + 1, middle + half) - torch.maximum(pixel, middle - half)).clamp(min=0))
        return (1 - covered[0][:, None, :, None] * covered[1][:, None, None, :]).to(dtype)

    def _sides(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of the last rectangle, px."""
        height, width = shape[-2:]
        return max(1, round(self.height * height)), max(1, round(self.width * width))


class PixelInpaint(Hole):
    """Single pixels vanish: one of the threshold u is erased from the first level k on at which ``u < share k / T``.

    The state has ``threshold`` (B, H, W), uniform on [0, 1), so that the holes of a level contain those before, and
    about ``share t`` of all pixels are gone at time t.

    :param levels: number of levels T; between two levels v is interpolated
    :param share: of the pixels that are erased at t = 1, in (0, 1]
    :param value: what erased pixels become, in [-1, 1]
    :raises UserError: for settings outside of these
    """

    def __init__(self, levels: int = 20, share: float = 0.7, value: float = 0.0):
        super().__init__(levels, value)
        if not 0 < share <= 1:
            raise UserError(f"share={share:g} of the pixels", "a share in (0, 1]", "degradation.share=0.7")
        self.share = share

    def draw(self, shape: Sequence[int], rng: Draws) -> State:
        return State(threshold=rng.uniform("threshold", (shape[0], *shape[-2:])))

    def visible(self, x: Float[Tensor, "b c h w"], t: Times, state: State,
                dtype: torch.dtype) -> Float[Tensor, "b 1 h w"]:
        below, share = locate_level(t, self.levels)
        above = (below + 1).clamp(max=self.levels)
        low, high = ((state["threshold"] >= self.share * k[:, None, None] / self.levels).to(dtype)
                     for k in (below, above))
        return torch.lerp(low, high, share[:, None, None].to(dtype))[:, None]
