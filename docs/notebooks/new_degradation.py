# %% [markdown]
# # A degradation of your own
#
# A degradation is a class: what it does to an image at time t. Everything else, training, both algorithms of Cold
# Diffusion, evaluation, is there for it. This one covers the image from the left with grey.

# %%
from tempfile import mkdtemp

import torch
from omegaconf import OmegaConf

import thaw
from configs import compose
from degradations.base import Degradation, State
from diffusion import commands
from diffusion.data.pixels import to_float, to_uint8
from diffusion.data.sets.digits import Digits
from diffusion.pictures import grid


class Curtain(Degradation):
    """The columns below ``t W`` of W fade to grey, the last one by a part: ``x_t = (1 - m) x0`` with
    ``m_j = clamp(t W - j, 0, 1)``."""

    affine_in_x0 = True

    def degrade(self, x0, t, state):
        width = x0.shape[-1]
        mask = (t[:, None] * width - torch.arange(width, device=x0.device)).clamp(0, 1)
        return (1 - mask[:, None, None]) * x0


# %% [markdown]
# At `t = 0` nothing happens, at `t = 1` nothing is left:

# %%
x0 = to_float(Digits(16).split("test").images[:1]).expand(6, -1, -1, -1)
grid(to_uint8(Curtain().forward(x0, torch.linspace(0, 1, 6), State())), columns=6)

# %% [markdown]
# Its experiment. In a package of yours the class has a name and a YAML file, and `degradation=curtain` chooses it
# ([how](../extending.md#a-degradation)). Here, on one page, it takes the place of another one in the config.

# %%
settings = ["experiment=cold_blur_digits", f"run.root={mkdtemp()}", "run.name=curtain", "objective/times=uniform",
            'sampling=["sampler=cold2","sampler/grid=uniform","sampler.num_steps=20"]', "model.base=32",
            "trainer.accelerator=cpu", "callbacks.pictures.count=0"]
cfg = compose("train", settings)
OmegaConf.update(cfg, "degradation", {"_target_": "__main__.Curtain"}, merge=False)
run = commands.train(cfg, "custom")

# %% [markdown]
# Held-out digits behind the whole curtain and behind three quarters of it, and what Algorithm 2 makes of them. All that
# is known of a digit at t = 1 is that it is one; at t = 0.75 a quarter is seen.

# %%
model = thaw.load(run.folder, allow=["__main__"], device="cpu")
x0 = to_float(Digits(16).split("test").images[:8])
rows = [x0]
for start in (1.0, 0.75):
    covered = model.degradation.forward(x0, torch.full((len(x0),), start), State())
    rows += [covered, model.sample(range(len(x0)), images=x0, recipe=model.recipe([f"start={start}"]))]
grid(to_uint8(torch.cat(rows)), columns=len(x0), rows=["original", "t = 1", "restored", "t = 0.75", "restored"])

# %% [markdown]
# How well it restores, measured with intervals, is `python evaluate.py run=RUN`; what its numbers mean is on the page
# about [numbers](../evaluation.md).
