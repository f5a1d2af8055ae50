"""How different two images look to a network."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

EPS = 1e-10


class Perceptual:
    """A distance of images through the eyes of a network that is not trained with the objective. Gradients reach the
    images."""

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse images that the network cannot see, or a network that is not there.

        :param shape: (C, H, W)
        :raises UserError: saying why
        """

    def __call__(self, a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """The distance of each pair of images in about [-1, 1], not below 0."""
        raise NotImplementedError


def compare_maps(a: Iterable[Tensor], b: Iterable[Tensor]) -> Float[Tensor, " b"]:
    """``mean_l mean_hw sum_c (f_a / |f_a| - f_b / |f_b|)^2`` over pairs of feature maps (B, C_l, H_l, W_l), ``|f|`` the
    norm over the channels of a pixel: LPIPS without learned weights (Zhang et al. 2018, arXiv 1801.03924, equation 1).
    From 0 to 4."""
    return torch.stack([(normalize_channels(f) - normalize_channels(g)).square().sum(1).mean((1, 2))
                        for f, g in zip(a, b, strict=True)]).mean(0)


def normalize_channels(f: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """``f / |f|`` at each pixel."""
    return f * (f.square().sum(1, keepdim=True) + EPS).rsqrt()
