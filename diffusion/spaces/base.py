"""Spaces: where the degradation happens. The trainer and the samplers do not know which."""

from collections.abc import Iterable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from configs import UserError
from degradations.base import Degradation
from degradations.randomness import Draws


class Space(nn.Module):
    """``encode`` images in [-1, 1] to where the model works, ``decode`` back; both differentiable. What it holds, such
    as the first stage of a latent model, is in the checkpoint and is not trained.

    :cvar pixels: whether the space is the image itself
    :ivar count: training images that it is fitted to; 0 if there is nothing to fit
    """

    pixels: bool = False
    count: int = 0

    def prepare(self) -> None:
        """Read what the user's own files give it, such as the weights of a first stage; once, before a new training
        whose ``begin`` does not bring them. Checkpoints hold it, so that the files are not needed again."""

    def fit(self, batches: Iterable[Float[Tensor, "_ c h w"]]) -> None:
        """Measure what it needs to know, such as the scale of the encoded images, into buffers; once, before the
        training.

        :param batches: ``count`` training images in [-1, 1]
        """

    def train(self, mode: bool = True) -> "Space":
        """A space is never in training mode."""
        return super().train(False)

    def encode(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        raise NotImplementedError

    def draw(self, image: Float[Tensor, "b c h w"], rng: Draws, cached: Tensor | None = None) -> Float[Tensor, "b ..."]:
        """What the training makes of images: ``encode``, or a draw from what the space knows about them.

        :param cached: a row for each image of what the space has kept of it, see :mod:`diffusion.spaces.cache`
        """
        return self.encode(image)

    def decode(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        raise NotImplementedError

    def shape(self, image: Sequence[int]) -> tuple[int, ...]:
        """Shape of one encoded image (C, H, W)."""
        raise NotImplementedError

    def check(self, degradation: Degradation) -> None:
        """Refuse a degradation that means pixels in a space that has none."""
        if degradation.pixels and not self.pixels:
            raise UserError(f"degradation {type(degradation).__name__} in the space {type(self).__name__}",
                            "pixels, which this operator means", "space=pixel")
