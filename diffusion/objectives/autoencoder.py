"""A network as an autoencoder."""

from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from configs import UserError
from diffusion.objectives.evaluator import Evaluator
from models.autoencoder.base import Autoencoder, Moments
from models.context import Context


class NetworkAutoencoder(Evaluator):
    """Images to latents and back. Gradients flow.

    :param network: an autoencoder
    :param precision: of the network, see :class:`diffusion.objectives.evaluator.Evaluator`
    """

    task = "encode"
    example = "experiment=autoencoder_digits"
    network: Autoencoder

    def encode(self, x: Float[Tensor, "b c h w"]) -> Moments:
        """What is known about the latents of images in [-1, 1], float32."""
        with self.computing(x.device):
            moments = self.network.encode(x)
        return Moments(*(value.float() for value in moments))

    def decode(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h2 w2"]:
        """The images of latents, float32."""
        with self.computing(z.device):
            return self.network.decode(z).float()

    def reconstruct(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """What is left of images: the decoded means of their latents."""
        return self.decode(self.encode(x).mean)

    @property
    def num_codes(self) -> int | None:
        """K, the size of the codebook of a network whose latents are vectors of one; None of any other."""
        return self.network.num_codes

    def codes(self, x: Float[Tensor, "b c h w"]) -> Int64[Tensor, "b h2 w2"]:
        """The codes, 0 .. K - 1, of which images are decoded; only where there is a codebook."""
        z = self.encode(x).mean
        with self.computing(x.device):
            return cast(Any, self.network).codes(z)

    def try_out(self, x: Float[Tensor, "b ..."], ctx: Context) -> None:
        if not isinstance(self.network, Autoencoder):
            raise UserError(f"an autoencoder by {type(self.network).__name__}", "a network that encodes and decodes",
                            "model=autoencoder_kl")
        if ctx.emb is not None or ctx.tokens or ctx.spatial is not None:
            raise UserError("an autoencoder with a condition", "one that is told nothing", "condition=none")
        with torch.no_grad():
            answer = self.reconstruct(x)
        if answer.shape != x.shape:
            raise UserError(f"an autoencoder that makes {tuple(answer.shape)} of {tuple(x.shape)}", "the same shape",
                            "a data.size that model's factor divides")
