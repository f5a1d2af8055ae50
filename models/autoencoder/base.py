"""What every autoencoder offers: images to latents and back."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn


class Moments(NamedTuple):
    """The distribution ``q(z | x) = N(mean, std^2)`` of a latent.

    :ivar mean: (B, D, H, W)
    :ivar std: of the same shape; zeros where the encoder gives a point
    """

    mean: Tensor
    std: Tensor


class Autoencoder(nn.Module):
    """Images to latents, whose side is the image's divided by ``factor``, and back.

    :ivar in_channels: of the images
    :ivar latent_channels: D
    :ivar factor: the image's side by the latent's
    """

    in_channels: int
    latent_channels: int
    factor: int

    @property
    def last(self) -> nn.Conv2d:
        """The decoder's last layer: the gradients of its weight balance the terms of a loss."""
        raise NotImplementedError

    @property
    def num_codes(self) -> int | None:
        """K, the size of the codebook, a buffer of this name, of a network whose latents are vectors of one; such a
        network also has ``codes(z)``, which of them stands at each place. None of any other."""
        codebooks = [value for name, value in self.named_buffers() if name.split(".")[-1] == "codebook"]
        return len(codebooks[0]) if codebooks else None

    def encode(self, x: Float[Tensor, "b c h w"]) -> Moments:
        """What is known about the latents of images in [-1, 1]."""
        raise NotImplementedError

    def decode(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h2 w2"]:
        """The images of latents; about [-1, 1], not clipped."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """What is left of images: the decoded means of their latents."""
        return self.decode(self.encode(x).mean)
