"""Snow, as in Cold Diffusion (Bansal et al. 2022, arXiv 2208.09392), after ImageNet-C (Hendrycks and Dietterich 2019,
arXiv 1903.12261).

A field of soft flakes, one per image, is cut off below a falling threshold and smeared along rows or columns by a
motion blur that widens; it is added to the image together with itself turned by 180 degrees, and the sum is clipped.
Not linear, since it is clipped, and not monotone in t: flakes fade as they smear.
"""

from collections.abc import Sequence
from math import ceil

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from configs import UserError
from degradations.base import Degradation, State, flush_denormals, locate_level
from degradations.randomness import Draws
from degradations.shapes import expand_like
from degradations.types import Times

LUMA = (0.299, 0.587, 0.114)


class Flakes:
    """What the snow is made of; ``configs/degradation/flakes`` has the four levels of the code.

    :param mean: of the field
    :param std: of the field
    :param zoom: size of a flake, px
    :param taps: length of the motion blur, px
    :param threshold: below which the field is empty, at the first and at the last level
    :param sigma: std of the motion blur, px, likewise
    :param brightness: share of the image that is not brightened, likewise
    """

    def __init__(self, mean: float, std: float, zoom: float, taps: int, threshold: Sequence[float],
                 sigma: Sequence[float], brightness: Sequence[float]):
        if taps < 1 or taps % 2 == 0:
            raise UserError(f"a motion blur of {taps} px", "an odd number of pixels",
                            f"degradation.flakes.taps={max(taps, 0) + 1}")
        if not zoom >= 1:
            raise UserError(f"flakes of {zoom:g} px", "at least 1", "degradation.flakes.zoom=2.5")
        if not min(sigma) > 0:
            raise UserError(f"a motion blur of std {min(sigma):g} px", "std above 0",
                            "degradation.flakes.sigma=[0.05,16]")
        self.mean, self.std, self.zoom, self.taps = mean, std, zoom, taps
        self.threshold, self.sigma, self.brightness = threshold, sigma, brightness


class Snow(Degradation):
    """``x_t = clip(b + L_t, 0, 1)`` on the scale [0, 1], with b the image and ``L_t = S_t + turn(S_t)`` the snow.

    The state has ``field`` (B, H, W) and ``vertical`` (B,), the fair coin for the direction. Threshold, motion and
    brightness are linear in the level; below the first one they are held, so that there the snow is that of t = 1/T.

    :param flakes: field, motion and brightness
    :param levels: number of levels T
    :param fix_brightness: leave the image as it is; else it is brightened as well, ``b = g x + (1 - g) max(x, 1.5
        luma(x) + 0.5)`` with g the flakes' brightness
    """

    levels: int

    def __init__(self, flakes: Flakes, levels: int = 200, fix_brightness: bool = True):
        if levels < 1:
            raise UserError(f"snow of {levels} levels", "at least 1", "degradation.levels=200")
        self.flakes, self.levels, self.fix_brightness = flakes, levels, fix_brightness

    def draw(self, shape: Sequence[int], rng: Draws) -> State:
        b, sides = shape[0], shape[-2:]
        small = [ceil(side / self.flakes.zoom) for side in sides]
        large = [max(side, round(n * self.flakes.zoom)) for side, n in zip(sides, small)]
        field = self.flakes.mean + self.flakes.std * rng.normal("flakes", (b, 1, *small))
        field = F.interpolate(field, large, mode="bilinear", align_corners=True)[:, 0]
        top, left = ((n - side) // 2 for n, side in zip(large, sides))
        return State(field=field[:, top:top + sides[0], left:left + sides[1]].contiguous(),
                     vertical=rng.integers("direction", 2, (b,)))

    def degrade(self, x0: Float[Tensor, "b c h w"], t: Times, state: State) -> Float[Tensor, "b c h w"]:
        image = (x0 + 1) / 2
        if not self.fix_brightness:
            luma = image if x0.shape[1] == 1 else torch.einsum("bchw,c->bhw", image, image.new_tensor(LUMA))[:, None]
            keep = expand_like(self.at(t, self.flakes.brightness).to(x0.dtype), x0)
            image = torch.lerp(torch.maximum(image, 1.5 * luma + 0.5), image, keep)
        return (image + self.layer(t, state)[:, None]).clamp(0, 1) * 2 - 1

    def layer(self, t: Times, state: State) -> Float[Tensor, "b h w"]:
        """The snow ``L_t``, to be added on the scale [0, 1]."""
        field = state["field"]
        threshold = self.at(t, self.flakes.threshold).to(field.dtype)
        flakes = field.where(field >= threshold[:, None, None], 0).clamp(0, 1)
        place = torch.arange(self.flakes.taps, device=field.device) - self.flakes.taps // 2
        weights = torch.exp(-(place**2) / (2 * self.at(t, self.flakes.sigma)[:, None] ** 2))
        weights = flush_denormals(weights / weights.sum(dim=1, keepdim=True)).to(field.dtype)
        along, down = smear(flakes, weights), smear(flakes.mT, weights).mT
        moved = torch.where(state["vertical"][:, None, None] == 1, down, along)
        return moved + moved.flip(1, 2)

    def at(self, t: Times, ends: Sequence[float]) -> Float64[Tensor, " b"]:
        """What goes from the first to the second of ``ends`` while the level goes from 1 to T."""
        below, share = locate_level(t, self.levels)
        way = ((below + share - 1) / max(self.levels - 1, 1)).clamp(min=0)
        return ends[0] + (ends[1] - ends[0]) * way

    def check(self, shape: Sequence[int]) -> None:
        if shape[-3] not in (1, 3):
            raise UserError(f"snow on images of {shape[-3]} channels", "1 (grey) or 3 (RGB)",
                            "data.channels=3, or another degradation")


def smear(x: Float[Tensor, "b h w"], weights: Float[Tensor, "b taps"]) -> Float[Tensor, "b h w"]:
    """Each row filtered by its image's weights, zeros beyond the border."""
    reach = weights.shape[1] // 2
    return torch.einsum("bhwk,bk->bhw", F.pad(x, (reach, reach)).unfold(2, weights.shape[1], 1), weights)
