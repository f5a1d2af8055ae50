"""An autoencoder whose decoder sees the nearest codes of a codebook."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from models.autoencoder.base import Moments
from models.autoencoder.blocks import ConvAutoencoder
from models.autoencoder.quantizer import Quantizer


class VQAutoencoder(ConvAutoencoder):
    """The decoder begins by replacing each vector of the latent by the nearest of K codes (van den Oord et al. 2017,
    arXiv 1711.00937), as in latent diffusion (Rombach et al. 2022, arXiv 2112.10752, section 3.1): a latent is the
    vector before that, which another model can learn, and whose error the codebook absorbs. ``std`` is zero.

    :param in_channels: of the images
    :param latent_channels: D, length of a code
    :param codes: K
    :param base: channels of the first level
    :param multipliers: channels of each level, in units of ``base``; a level has half the side of the one before, so
        that ``factor = 2^(levels - 1)``
    :param blocks: residual blocks per level, on each way
    :param attention: a self-attention at the lowest resolution, on each way
    :param decay: of the codes' moving averages, see :class:`models.autoencoder.quantizer.Quantizer`
    :param revive: whether codes that are hardly used become random vectors of the batch
    :param threshold: below this share of the mean count a code is dead
    :raises UserError: for numbers that mean nothing
    """

    def __init__(self, in_channels: int, latent_channels: int = 4, codes: int = 512, base: int = 64,
                 multipliers: Sequence[int] = (1, 2, 4), blocks: int = 2, attention: bool = False, decay: float = 0.95,
                 revive: bool = True, threshold: float = 0.1):
        super().__init__(in_channels, latent_channels, latent_channels, base, multipliers, blocks, attention)
        self.quantizer = Quantizer(codes, latent_channels, decay, revive, threshold)

    def encode(self, x: Float[Tensor, "b c h w"]) -> Moments:
        z = self.describe(x)
        return Moments(z, torch.zeros_like(z))

    def codes(self, z: Float[Tensor, "b d h w"]) -> Int64[Tensor, "b h w"]:
        """Which of the K codes stand for a latent."""
        return self.quantizer.nearest(z)

    def decode(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h2 w2"]:
        """The images of the nearest codes of latents; the gradient passes by the codes."""
        return super().decode(self.quantizer(z))
