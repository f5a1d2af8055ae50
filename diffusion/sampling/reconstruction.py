"""Images through a first stage and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from configs import registry
from diffusion.data.pixels import to_float
from diffusion.model import Model
from diffusion.objectives.autoencoder import NetworkAutoencoder
from diffusion.sampling.inputs import find_inputs
from diffusion.sampling.job import Job
from diffusion.sampling.manifest import Sample
from diffusion.sampling.selection import choose_indices, list_samples
from samplers.protocol import Callback


@torch.no_grad()
def reconstruct(model: Model, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The decoded means of the latents of images in [-1, 1], not clipped, on the CPU.

    :raises UserError: if the model is no autoencoder
    """
    x = model.space.encode(images.to(model.device))
    return model.space.decode(model.use(NetworkAutoencoder).reconstruct(x)).cpu()


@dataclass(frozen=True)
class ReconstructionJob(Job):
    """Photos beside what an autoencoder leaves of them."""

    @classmethod
    def plan(cls, cfg: DictConfig, model: Model) -> "ReconstructionJob":
        """What the config asks for: ``input.root`` is there.

        :raises UserError: if there are no such images
        """
        inputs = find_inputs(model, cfg, (*registry.trusted(), *cfg.allow))
        indices = choose_indices(cfg, inputs)
        return cls(cfg, model, list_samples(indices, cfg, inputs, [{} for _ in indices]), inputs)

    @property
    def title(self) -> str:
        return "reconstruction"

    def batch(self, some: Sequence[Sample], callbacks: Sequence[Callback]) -> dict[str, Tensor]:
        assert self.inputs is not None
        x0 = to_float(self.inputs.images.batch(torch.tensor([entry["index"] for entry in some]))[0])
        return {"original": x0, self.title: reconstruct(self.model, x0)}
