# %% [markdown]
# # Guidance side by side
#
# Guidance changes what a model believes on its way from noise to image. The same noise under each of them shows what it
# does. Which there are, with formulas and sources, is in the [gallery](../../gallery/guidance.rst); when to take which,
# on the page about [guidance](../guidance.md).

# %%
from tempfile import mkdtemp

import torch

import thaw
from configs import compose
from diffusion import commands
from diffusion.data.pixels import to_uint8
from diffusion.pictures import grid

settings = ["experiment=ddpm_digits", f"run.root={mkdtemp()}", "run.name=first", "model.base=32", "max_steps=140",
            "trainer.accelerator=cpu", "callbacks.pictures.count=0"]
model = thaw.load(commands.train(compose("train", settings), "ddpm_digits").folder, device="cpu")


def compare(*choices: str):
    """A row for each choice: ten digits, the same noise in all rows."""
    recipes = [model.recipe(["sampler.num_steps=20", *choice.split()]) for choice in choices]
    images = torch.cat([model.sample(range(10), recipe=recipe) for recipe in recipes])
    return grid(to_uint8(images), columns=10, rows=[choice.replace("guidance", "") for choice in choices])


# %% [markdown]
# ## Scales
#
# Classifier-free guidance adds `(w - 1) (conditional - unconditional)`: more of what the class explains, less variety.

# %%
compare("guidance=none", "guidance.cfg.scale=2", "guidance.cfg.scale=4", "guidance.cfg.scale=8")

# %% [markdown]
# ## Without a condition
#
# PAG, SAG and SEG compare with a network that is disturbed, and need no classes.

# %%
compare("guidance=none", "guidance=pag", "guidance=sag", "guidance=seg")

# %% [markdown]
# ## At large scales
#
# What a large scale overdoes, projections and thresholds take back.

# %%
compare("guidance=cfg guidance.cfg.scale=8", "guidance=[cfg,threshold] guidance.cfg.scale=8",
        "guidance=[cfg,rescale] guidance.cfg.scale=8", "guidance=apg")
