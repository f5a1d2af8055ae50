"""Images of another data set, one for each sample: what animorphosis turns into (or from)."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from configs.errors import UserError
from degradations.randomness import Draws
from degradations.snow import LUMA
from diffusion.data.base import Data, ImageSet
from diffusion.data.pixels import to_float

LEAST = 2
"""Images that a gallery has at least: with one, all samples would turn into the same."""


class Gallery:
    """``gallery(shape, rng)``: a random image for each row, mirrored by a coin where the set may be, brought to the
    shape that is asked for. The set is read when the first image is wanted.

    :param data: the set
    :param split: which of its splits
    """

    def __init__(self, data: Data, split: str = "train"):
        self.data, self.split = data, split

    def __call__(self, shape: Sequence[int], rng: Draws) -> Float[Tensor, "b c h w"]:
        """:raises UserError: if the set cannot be read, is too small, or its colours do not fit"""
        images = self.images()
        chosen = rng.integers("other", len(images), (shape[0],))
        pixels, _ = _on(self, str(chosen.device)).batch(chosen)
        x = to_float(pixels.to(chosen.device))
        if self.data.flip:
            coin = rng.integers("mirror", 2, (shape[0],)) == 1
            x = torch.where(coin[:, None, None, None], x.flip(-1), x)
        if x.shape[-2:] != tuple(shape[-2:]):
            x = F.interpolate(x, tuple(shape[-2:]), mode="bilinear", antialias=True)
        return convert_channels(x, shape[1])

    def fingerprint(self) -> str:
        """That of the set."""
        return self.data.fingerprint()

    def images(self) -> ImageSet:
        """The images of the split, on the CPU.

        :raises UserError: as above
        """
        images = self.data.split(self.split)
        if len(images) < LEAST:
            raise UserError(f"a gallery of {len(images)} images", f"at least {LEAST}",
                            "degradation.target_set.data.root=WHERE_THERE_ARE_MORE")
        return images


def convert_channels(x: Float[Tensor, "b c h w"], channels: int) -> Float[Tensor, "b d h w"]:
    """``x`` with another number of channels: grey is repeated, RGB becomes its luma.

    :raises UserError: if that is no way
    """
    if x.shape[1] == channels:
        return x
    if x.shape[1] == 1:
        return x.expand(-1, channels, -1, -1)
    if channels == 1:
        return torch.einsum("bchw,c->bhw", x, x.new_tensor(LUMA))[:, None]
    raise UserError(f"other images of {x.shape[1]} channels for images of {channels}", "as many, or grey ones",
                    "degradation.target_set.data.channels=1")


@lru_cache(maxsize=4)
def _on(gallery: Gallery, device: str) -> ImageSet:
    return gallery.images().to(device)
