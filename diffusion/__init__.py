"""The trainer, the run folder, the objective: everything between a config and an image.

``from diffusion import load`` gives a trained model: ``model = load("runs/ddpm_digits/...")``.
"""


def __getattr__(name: str):
    if name in ("load", "Model"):
        from diffusion import model

        return getattr(model, name)
    raise AttributeError(name)
