"""Where the eyes, the nose and the mouth of a face are, as a condition: as ten numbers, or drawn into maps."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from configs.errors import UserError
from degradations.randomness import Draws
from models.conditioning import ImageSignal, VectorSignal
from models.context import Condition, Context
from models.readers import is_number
from models.sources import Source

POINTS = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
"""CelebA's landmarks, in its order; left is the image's left (Liu et al. 2015, arXiv 1411.7766)."""
MIRRORED = (1, 0, 2, 4, 3)
"""The place in ``POINTS`` that each has in a mirrored image."""
SIGMA = 1.5 / 64
"""Standard deviation of the bumps in the maps, as a share of the side."""


def mirror_landmarks(raw: Float[Tensor, "b 5 2"], side: int) -> Float[Tensor, "b 5 2"]:
    """The landmarks of faces that are mirrored left to right: ``x -> side - x``, and the left ones are the right ones.

    :param raw: places (x, y), in pixels
    :param side: of the images, in pixels
    """
    x, y = raw[:, list(MIRRORED)].unbind(-1)
    return torch.stack([side - x, y], dim=-1)


def draw_maps(raw: Float[Tensor, "b 5 2"], side: int, sigma: float = SIGMA) -> Float[Tensor, "b 5 side side"]:
    """A map in [0, 1] of each landmark, ``exp(-|p - p_i|^2 / (2 (sigma side)^2))`` at the middle p of each pixel.

    :param raw: places (x, y), in pixels, 0 being the edge of the image
    :param side: of the maps, in pixels
    :param sigma: as a share of the side
    """
    middle = torch.arange(side, device=raw.device) + 0.5
    x, y = ((-((middle - raw[..., axis, None]) / (sigma * side)) ** 2 / 2).exp() for axis in (0, 1))
    return y[..., :, None] * x[..., None, :]


class LandmarkReader:
    """Landmarks as ten numbers, ``[x1, y1, ..., x5, y5]``."""

    name: str

    def is_single(self, value: Any) -> bool:
        return not isinstance(value, list | tuple) or not any(isinstance(each, list | tuple) for each in value)

    def read_points(self, values: Sequence[Any]) -> Float[Tensor, "b 5 2"]:
        """The places that were asked for each sample.

        :raises UserError: if they are something else
        """
        for value in values:
            if not isinstance(value, list | tuple) or len(value) != 2 * len(POINTS) or not all(map(is_number, value)):
                raise UserError(f"{self.name}={value}", f"x and y of {', '.join(POINTS)} in pixels, a list of "
                                f"{2 * len(POINTS)} numbers, or a list of such lists",
                                f"{self.name}=[23,33,41,33,32,44,24,52,40,52], of a face of 64 px")
        return torch.tensor(values, dtype=torch.float32).view(-1, len(POINTS), 2)


class LandmarkSignal(LandmarkReader, VectorSignal):
    """Landmarks (n, 5, 2), places (x, y) in pixels, as ten numbers ``2 p / side - 1`` through a two-layer perceptron.

    :param side: of the images, in pixels
    :param dim: length E of the embedding
    """

    def __init__(self, side: int, dim: int):
        VectorSignal.__init__(self, 2 * len(POINTS), dim)
        self.side = side

    def read(self, values: Sequence[Any]) -> Float[Tensor, "b 5 2"]:
        return self.read_points(values)

    def write(self, raw: Tensor) -> list[list[float]]:
        return raw.flatten(1).tolist()

    def caption(self, value: Any) -> str:
        return " ".join(f"{number:.0f}" for number in value)

    def forward(self, value: Float[Tensor, "b 5 2"]) -> Context:
        return super().forward((2 * value / self.side - 1).flatten(1))

    def mirror(self, raw: Float[Tensor, "b 5 2"], side: int) -> Float[Tensor, "b 5 2"]:
        return mirror_landmarks(raw, side)


class LandmarkMapSignal(LandmarkReader, ImageSignal):
    """Maps of the landmarks that are concatenated to ``x``, see :func:`draw_maps`; asked for by the places.

    :param side: height and width of the maps, in pixels, those of the network's
    :param dim: length E of the embeddings of the other signals
    :param sigma: of the bumps, as a share of the side
    """

    def __init__(self, side: int, dim: int, sigma: float = SIGMA):
        ImageSignal.__init__(self, len(POINTS), side, dim)
        self.side, self.sigma, self.picture = side, sigma, None
        _check_sigma(sigma)

    def read(self, values: Sequence[Any]) -> Float[Tensor, "b c h w"]:
        return draw_maps(self.read_points(values), self.side, self.sigma)

    def mirror(self, raw: Tensor, side: int) -> Tensor:
        return raw[:, list(MIRRORED)].flip(-1)


class LandmarkMaps(Source):
    """Maps of the signal ``landmarks`` of the images, see :func:`draw_maps`.

    :param sigma: of the bumps, as a share of the side
    :raises UserError: for a sigma that is not above 0
    """

    reads = ("landmarks",)

    def __init__(self, sigma: float = SIGMA):
        super().__init__()
        _check_sigma(sigma)
        self.sigma = sigma

    def forward(self, images: Float[Tensor, "b c h w"], condition: Condition, rng: Draws) -> Float[Tensor, "b 5 h w"]:
        return draw_maps(condition["landmarks"], images.shape[-1], self.sigma)

    def mirror(self, name: str, raw: Float[Tensor, "b 5 2"], side: int) -> Float[Tensor, "b 5 2"]:
        return mirror_landmarks(raw, side)


def _check_sigma(sigma: float) -> None:
    if not 0 < sigma <= 1:
        raise UserError(f"sigma={sigma} of landmark maps", "a share of the side, above 0 and at most 1",
                        f"condition.signals.pose.sigma={SIGMA:.4f}")
