"""Pixels: the space that is the image itself."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from diffusion.spaces.base import Space


class Pixel(Space):
    """The image itself."""

    pixels = True

    def encode(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        return image

    def decode(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        return x

    def shape(self, image: Sequence[int]) -> tuple[int, ...]:
        return tuple(image)
