"""Encode the training images of a latent model once: ``python scripts/cache_latents.py experiment=ldm_mnist
begin.first_stage.run=RUN data.root=FOLDER``, with the words of ``train.py`` that begin the training.

``train.py`` does the same by itself at its beginning, and finds what is there: this is for a machine that encodes
before others train. ``space.cache=FOLDER`` says where the moments are kept, also in the training;
``trainer.accelerator=cpu`` encodes on the CPU.
"""

import logging

from omegaconf import DictConfig

from configs import UserError, construct
from configs.cli import command
from configs.values import require_values, settle_paths, to_plain
from diffusion.commands import check_training
from diffusion.runs.origins import find_origins

log = logging.getLogger(__name__)


def cache(cfg: DictConfig, experiment: str | None = None) -> None:
    """Encode what is not encoded yet.

    :param cfg: the composed ``train`` config
    :raises UserError: for a model of pixels, a cache that is switched off, and images that are augmented
    """
    require_values(cfg)
    settle_paths(cfg, ["data", "degradation"])
    check_training(cfg)
    origins = find_origins(to_plain(cfg))

    import torch

    from diffusion.begin import begin
    from diffusion.data.base import Data
    from diffusion.model import Model
    from diffusion.spaces.cache import load_moments
    from diffusion.spaces.latent import Latent
    from diffusion.training.fit import fill_signals

    data: Data = construct(cfg.data, role=Data)
    model = Model(fill_signals({**to_plain(cfg), "origin": origins}, data.described))
    space = model.space
    if not isinstance(space, Latent) or space.cache is False:
        raise UserError(f"space={type(space).__name__.lower()}, of which nothing is cached", "a latent model",
                        "experiment=ldm_digits begin.first_stage.run=RUN, without space.cache=false")
    if model.augment is not None:
        raise UserError("images that are augmented at every step", "none, or mirrored", "augment=none")
    begin(model, model.config.get("begin") or {}, origins)
    space.to("cuda" if torch.cuda.is_available() and cfg.trainer.accelerator != "cpu" else "cpu")
    try:
        load_moments(space, data.split("train"), data.fingerprint(), data.flip)
    except OSError as error:
        raise UserError(f"cannot write to {error.filename}: {error.strerror}", "a folder that can be written",
                        "space.cache=FOLDER") from error


if __name__ == "__main__":
    command("train", cache)
