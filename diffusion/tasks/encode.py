"""Autoencoders, the first stages of latent models: photos are reconstructed, and what is lost is measured."""

from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig, OmegaConf

from configs import UserError, compose
from configs.overrides import RECIPE
from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_float
from diffusion.model import Model
from diffusion.pictures import Picture
from diffusion.sampling.job import Job
from diffusion.sampling.reconstruction import ReconstructionJob, reconstruct
from diffusion.tasks.base import Task

if TYPE_CHECKING:
    from diffusion.evaluation.bench import EvaluationContext
    from diffusion.evaluation.subjects import Subject

SAMPLING = {"sample": (*RECIPE, "condition", "from", "to", "twins", "input.t", "input.degraded"),
            "evaluate": (*RECIPE, "condition", "samplers")}
"""Settings of the commands that say how images are sampled."""


class Encode(Task):
    """A :class:`diffusion.objectives.autoencoder.NetworkAutoencoder`."""

    hint = ("reconstruct photos: python sample.py run={run} input=PHOTOS\nmeasure what is lost: python evaluate.py "
            "run={run}\ntrain a model on its latents: python train.py space=latent begin.first_stage.run={run}")

    def plan(self, cfg: DictConfig, model: Model) -> Job:
        refuse_sampling(cfg, model, "sample")
        if not cfg.input.root:
            raise UserError(f"sample.py with {cfg.run}, an autoencoder, and no images",
                            "images to encode and decode: it makes none of nothing, of N(0, I) it decodes noise",
                            "input=PHOTOS; new images take a model on its latents: python train.py space=latent "
                            f"begin.first_stage.run={cfg.run}")
        return ReconstructionJob.plan(cfg, model)

    def choose_subject(self, context: "EvaluationContext") -> "Subject":
        from diffusion.evaluation.reconstructions import ReconstructionsSubject

        refuse_sampling(context.cfg, context.model, "evaluate")
        return ReconstructionsSubject(context)

    def show(self, model: Model, held_out: ImageSet, count: int, times: list[float],
             sampling: list[str]) -> dict[str, Picture]:
        """Held-out images above their reconstructions."""
        x0 = to_float(held_out.batch(torch.arange(min(count, len(held_out))))[0])
        return {"pairs": Picture(torch.cat([x0, reconstruct(model, x0)]), len(x0), ["original", "reconstruction"])}


def refuse_sampling(cfg: DictConfig, model: Model, command: str) -> None:
    """Refuse settings about the sampling: an autoencoder answers in one step, and the same to each image.

    :param command: ``sample`` or ``evaluate``
    :raises UserError: naming the first that is not as usual
    """
    usual = compose(command, ["run=none", *model.config["sampling"]])
    for key in SAMPLING[command]:
        asked = OmegaConf.select(cfg, key)
        if asked != OmegaConf.select(usual, key):
            name = next(iter(asked)) if key == "condition" else key
            raise UserError(f"{name}=... with {cfg.run}, an autoencoder, which samples nothing",
                            "images, which it encodes and decodes", f"the same command without {name}=")
