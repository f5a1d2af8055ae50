"""Latents of an autoencoder of the library diffusers."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from configs import UserError
from diffusion.runs.diffusers_folder import WEIGHTS
from diffusion.spaces.latent import Latent
from models.autoencoder.diffusers_kl import DiffusersKL

RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Layers of the attention in files that were written before diffusers 0.15, such as those of Stable Diffusion 1."""


class DiffusersLatent(Latent):
    """``x = (z - shift_factor) scaling_factor`` for the latent z of an image, with the numbers of the first stage's own
    config, as diffusers' pipelines scale it: the mean is ``shift_factor``, the standard deviation ``1 /
    scaling_factor``. Nothing is measured. Images are of any size that the first stage's factor divides.

    :param first_stage: the autoencoder
    :param checksum: SHA-256 of the file of its weights
    :param folder: where that file lies; it is read once, before a new training, since checkpoints hold the weights.
        None if they come with ``begin``
    :param chunk: latents that are decoded at a time
    :param cache: where the moments of the training images are kept, see :class:`diffusion.spaces.latent.Latent`
    """

    def __init__(self, first_stage: DiffusersKL, checksum: str, folder: str | None = None, chunk: int = 64,
                 cache: str | bool | None = None):
        super().__init__(first_stage, size=first_stage.factor, chunk=chunk, cache=cache)
        self.count, self.folder, self.checksum = 0, folder, checksum
        self.get_buffer("mean").copy_(torch.tensor(first_stage.latent_mean)[:, None, None])
        self.get_buffer("std").copy_(torch.tensor(first_stage.latent_std)[:, None, None])

    def prepare(self) -> None:
        """Read the weights of the first stage.

        :raises UserError: if they are not there, are others than those of ``checksum``, or do not fit
        """
        if self.folder is None:
            raise UserError("a first stage of diffusers without the folder of its weights", "the folder of the user, "
                            "which the config of another run cannot name", "space.folder=FOLDER, or begin.base.map="
                            "{space: space} to take the weights of the other run")
        path = Path(self.folder).expanduser() / WEIGHTS
        try:
            data = path.read_bytes()
            state = load(data)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read: {error}", "the weights of the first stage",
                            "space.folder=WHERE, if it has moved") from error
        if hashlib.sha256(data).hexdigest() != self.checksum:
            raise UserError(f"{path} has the checksum {hashlib.sha256(data).hexdigest()}", f"{self.checksum}, the file "
                            "of this run's config", "the same command again, or space.folder=WHERE")
        fill_first_stage(self.first_stage.get_submodule("vae"), state, path)

    def shape(self, image: Sequence[int]) -> tuple[int, ...]:
        """Shape of one encoded image.

        :raises UserError: for other channels than those of the first stage, or a size that its factor does not divide
        """
        channels, factor = self.first_stage.in_channels, self.first_stage.factor
        if image[0] != channels:
            raise UserError(f"images of {image[0]} channels for a first stage of {channels}",
                            "the channels of the first stage", f"data.channels={channels}, or another first stage")
        if any(side % factor for side in image[1:]):
            raise UserError(f"images of {image[1]} px for a first stage that divides the side by {factor}",
                            f"a multiple of {factor}", f"data.size={-(-image[1] // factor) * factor}")
        return self.first_stage.latent_channels, image[1] // factor, image[2] // factor


@torch.no_grad()
def fill_first_stage(vae: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights of a file into an autoencoder, as float32.

    :param path: of the file, for messages
    :raises UserError: for other names or shapes, or numbers that are not finite
    """
    pattern = re.compile(rf"(?<=attentions\.)(\d+)\.({'|'.join(RENAMED)})(?=\.)")
    theirs = {pattern.sub(lambda found: f"{found[1]}.{RENAMED[found[2]]}", name): value
              for name, value in state.items()}
    mine = vae.state_dict()
    odd = sorted(set(mine) ^ set(theirs)) or [name for name in mine if mine[name].shape != theirs[name].shape]
    if odd:
        raise UserError(f"{path}: {len(theirs)} tensors there, {len(mine)} in its config.json; the first that differs "
                        f"is {odd[0]}", "the weights of this config", "the config.json and weights of one first stage")
    for name, value in mine.items():
        value.copy_(theirs[name])
        if not value.isfinite().all():
            raise UserError(f"{name} in {path} has numbers that are not finite", "finite weights", "another file")
