"""An autoencoder of the library diffusers."""

import inspect
import math
from typing import Any

from jaxtyping import Float
from torch import Tensor

from configs import UserError
from models.autoencoder.base import Autoencoder, Moments

BLOCKS = {"down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
          "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")}
"""Those that halve or double the side, as an ``AutoencoderKL`` has them."""


class DiffusersKL(Autoencoder):
    """``diffusers.AutoencoderKL``, the first stage of Stable Diffusion and others (Rombach et al. 2022, arXiv
    2112.10752). The encoder gives the posterior ``q(z | x) = N(mean, std^2)``; the side is halved between two blocks:
    ``factor = 2^(blocks - 1)``.

    :param config: the arguments of ``AutoencoderKL``, as its ``config.json`` has them
    :ivar latent_mean: of each latent channel, by the config: ``latents_mean``, ``shift_factor`` or 0
    :ivar latent_std: of each latent channel: ``latents_std / scaling_factor``, or ``1 / scaling_factor``
    :raises UserError: if diffusers is missing, for arguments that the class does not take, other blocks, images that
        it turns into those of other channels, and a scale that is no positive number
    """

    def __init__(self, config: dict):
        super().__init__()
        try:
            from diffusers import AutoencoderKL  # type: ignore[attr-defined]
        except ImportError as error:
            raise UserError(f"an AutoencoderKL without the library diffusers ({error})", "diffusers, 0.35 or later",
                            'pip install "thaw[latent]"') from error
        known = [name for name in inspect.signature(AutoencoderKL).parameters if name != "self"]
        odd = sorted(set(config) - set(known))
        if odd:
            raise UserError(f"{', '.join(odd)} in the config of an AutoencoderKL",
                            f"arguments among {', '.join(known)}",
                            "a later version of diffusers, or another first stage")
        for name, types in BLOCKS.items():
            for block in config.get(name, ()):
                if block not in types:
                    raise UserError(f"{name} with {block}", f"{' or '.join(types)}", "another first stage")
        self.vae: Any = AutoencoderKL(**config)
        given = self.vae.config
        if given.in_channels != given.out_channels:
            raise UserError(f"a first stage that makes images of {given.out_channels} channels of those of "
                            f"{given.in_channels}", "the same images", "another first stage")
        self.in_channels, self.latent_channels = given.in_channels, given.latent_channels
        self.factor = 2 ** (len(given.block_out_channels) - 1)
        self.latent_mean, self.latent_std = find_scale(given)

    def encode(self, x: Float[Tensor, "b c h w"]) -> Moments:
        posterior = self.vae.encode(x, return_dict=False)[0]
        return Moments(posterior.mean, posterior.std)

    def decode(self, z: Float[Tensor, "b d i j"]) -> Float[Tensor, "b c h w"]:
        return self.vae.decode(z, return_dict=False)[0]


def find_scale(given: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel, as diffusers' pipelines take them from the config of an
    ``AutoencoderKL``: ``x = (z - shift_factor) scaling_factor``, and with statistics of the channels ``x = (z -
    latents_mean) scaling_factor / latents_std``.

    :raises UserError: for numbers that are not finite, a scale that is not positive, or too few numbers
    """
    channels, mean, spread = given.latent_channels, given.latents_mean, given.latents_std
    if mean is None or spread is None:
        mean, spread = [given.shift_factor or 0.0] * channels, [1.0] * channels
    mean, spread = list(mean), list(spread)
    numbers = [*mean, *spread, given.scaling_factor]
    if not all(type(value) in (int, float) and math.isfinite(value) for value in numbers) \
            or min(*spread, given.scaling_factor) <= 0 or not len(mean) == len(spread) == channels:
        raise UserError(f"a first stage of {channels} latent channels with the scale {given.scaling_factor}, the means "
                        f"{mean} and the standard deviations {spread}", "finite numbers for each channel, and a "
                        "positive scale", "another first stage")
    return mean, [value / given.scaling_factor for value in spread]
