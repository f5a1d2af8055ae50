"""Latents: the space of a first stage, an autoencoder that was trained before."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from configs import UserError
from degradations.randomness import Draws
from diffusion.spaces.base import Space
from models.autoencoder.base import Autoencoder, Moments

log = logging.getLogger(__name__)


class Latent(Space):
    """``x = (z - mean) / std`` for the latent z of an image, with the mean and the standard deviation of each channel
    over the training images, so that every channel has mean 0 and standard deviation 1. (Rombach et al. 2022, arXiv
    2112.10752, section 3.2, have one scale for all channels.)

    ``encode`` gives the mean of the posterior; the training draws from it, ``z = mu + sigma n``.

    :param first_stage: the autoencoder; the weights come with ``begin``, and are in the checkpoint
    :param size: side of the images that it was trained on, px
    :param count: training images over which mean and standard deviation are measured
    :param chunk: latents that are decoded at a time: the decoder needs more memory than the network
    :param cache: where the moments of the training images are kept, which are then encoded once: a folder; None for
        ``thaw`` in the user's cache folder, False for no cache
    :raises UserError: for numbers below 1
    """

    def __init__(self, first_stage: Autoencoder, size: int, count: int = 4096, chunk: int = 64,
                 cache: str | bool | None = None):
        super().__init__()
        for name, value in (("size", size), ("count", count), ("chunk", chunk)):
            if value < 1:
                raise UserError(f"space.{name}={value}", "at least 1", f"space.{name}=64")
        self.first_stage, self.size, self.count, self.chunk, self.cache = first_stage, size, count, chunk, cache
        channels = first_stage.latent_channels
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def fit(self, batches: Iterable[Float[Tensor, "_ c h w"]]) -> None:
        """Measure mean and standard deviation of the latents as the training draws them: ``Var z = E(sigma^2 + mu^2) -
        (E mu)^2``.

        :raises UserError: if they are not finite, or a channel says nothing
        """
        number, total, square = 0, torch.zeros(()), torch.zeros(())
        known, codes = self.first_stage.num_codes, []
        for images in batches:
            mean, std = (value.double() for value in self.first_stage.encode(images))
            number += mean[:, 0].numel()
            total = total.to(mean) + mean.sum((0, 2, 3))
            square = square.to(mean) + (mean.square() + std.square()).sum((0, 2, 3))
            if known is not None:
                codes.append(cast(Any, self.first_stage).codes(mean.float()).unique())
        mean = total / number
        std = (square / number - mean.square()).clamp(min=0).sqrt()
        if not (mean.isfinite().all() and std.isfinite().all() and std.min() > 1e-8 * (1 + mean.abs().max())):
            raise UserError(f"a first stage whose latents have means {mean.tolist()} and standard deviations "
                            f"{std.tolist()}", "finite numbers, and none of 0", "another first stage: this one was "
                            "not trained, or has collapsed")
        self.get_buffer("mean").copy_(mean[:, None, None])
        self.get_buffer("std").copy_(std[:, None, None])
        if known is not None:
            used = len(torch.cat(codes).unique())
            if used < known / 10:
                log.warning("the first stage uses %d of its %d codes: its codebook has collapsed, and what it decodes "
                            "is poor; python evaluate.py run=FIRST_STAGE", used, known)

    def find_moments(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 2 d i j"]:
        """Mean and standard deviation of the latents, as the first stage gives them, in half precision: what a cache
        holds."""
        return torch.stack(self.first_stage.encode(image), dim=1).half()

    def scale(self, moments: Moments) -> Moments:
        """Moments of z as moments of ``x``."""
        return Moments((moments.mean - self.get_buffer("mean")) / self.get_buffer("std"),
                       moments.std / self.get_buffer("std"))

    def encode(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return self.scale(self.first_stage.encode(image)).mean

    def draw(self, image: Float[Tensor, "b c h w"], rng: Draws, cached: Float[Tensor, "b 2 d i j"] | None = None
             ) -> Float[Tensor, "b d i j"]:
        # Rounded in any case, so that a cache changes nothing.
        moments = self.find_moments(image) if cached is None else cached
        mean, std = self.scale(Moments(*moments.float().unbind(1)))
        return mean + std * rng.normal("posterior", mean.shape)

    def decode(self, x: Float[Tensor, "b d i j"]) -> Float[Tensor, "b c h w"]:
        z = x * self.get_buffer("std") + self.get_buffer("mean")
        return torch.cat([self.first_stage.decode(some) for some in z.split(self.chunk)])

    def shape(self, image: Sequence[int]) -> tuple[int, ...]:
        """Shape of one encoded image.

        :raises UserError: for images of another size or other channels than those of the first stage
        """
        stage = self.first_stage
        wanted = (stage.in_channels, self.size, self.size)
        if tuple(image) != wanted:
            raise UserError(f"images of {image[0]} channels and {image[1]} px for a first stage of {wanted[0]} and "
                            f"{wanted[1]}", "the images of the first stage",
                            f"data.size={wanted[1]} data.channels={wanted[0]}, or another first stage")
        return stage.latent_channels, image[1] // stage.factor, image[2] // stage.factor


def choose_mirrored(cached: Float[Tensor, "b m 2 d i j"], mirrored: Bool[Tensor, " b"]) -> Float[Tensor, "b 2 d i j"]:
    """Of the moments of images and of their mirror images, those of the images as they are."""
    return cached[torch.arange(len(cached), device=cached.device), mirrored.to(cached.device).long()]
