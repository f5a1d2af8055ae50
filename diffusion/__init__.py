"""The trainer, the run folder, the objective: everything between a config and an image.

``from diffusion import load`` gives a trained model: ``model = load("runs/ddpm_digits/...")``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion.loading import load
    from diffusion.model import Model

__all__ = ["Model", "load"]


def __getattr__(name: str):
    if name == "load":
        from diffusion.loading import load

        return load
    if name == "Model":
        from diffusion.model import Model

        return Model
    raise AttributeError(name)
