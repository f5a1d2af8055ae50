"""An autoencoder whose latents are drawn from a normal distribution that is held near the standard one."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from models.autoencoder.base import Moments
from models.autoencoder.blocks import ConvAutoencoder


class KLAutoencoder(ConvAutoencoder):
    """The encoder's 2 D channels are ``[mean, logvar]``, ``std = exp(logvar / 2)`` (Kingma and Welling 2013, arXiv
    1312.6114; Rombach et al. 2022, arXiv 2112.10752, section 3.1). ``logvar`` is clamped to [-30, 20].

    The weight of the KL term is usually far too small for ``decode(N(0, I))`` to be images: this is a first stage, for
    another model to learn what its latents are.

    :param in_channels: of the images
    :param latent_channels: D
    :param base: channels of the first level
    :param multipliers: channels of each level, in units of ``base``; a level has half the side of the one before, so
        that ``factor = 2^(levels - 1)``
    :param blocks: residual blocks per level, on each way
    :param attention: a self-attention at the lowest resolution, on each way
    :raises UserError: for numbers below 1
    """

    def __init__(self, in_channels: int, latent_channels: int = 4, base: int = 64,
                 multipliers: Sequence[int] = (1, 2, 4), blocks: int = 2, attention: bool = False):
        super().__init__(in_channels, latent_channels, 2 * latent_channels, base, multipliers, blocks, attention)

    def encode(self, x: Float[Tensor, "b c h w"]) -> Moments:
        mean, logvar = self.describe(x).float().chunk(2, dim=1)
        return Moments(mean, (logvar.clamp(-30, 20) / 2).exp())
