# %% [markdown]
# # First steps
#
# Train a model of digits, look at what it does, and draw with it. The page is executed when the site is built; as a
# notebook it opens in any editor that knows the percent format.

# %%
from pathlib import Path
from tempfile import mkdtemp

import thaw
from configs import compose
from diffusion import commands
from diffusion.data.pixels import to_uint8
from diffusion.pictures import grid

root = Path(mkdtemp())

# %% [markdown]
# A training is a config: an experiment, and whatever is to be otherwise. The command line says the same with
# `python train.py experiment=ddpm_digits run.name=first`. Here the network is small and the training short.

# %%
settings = ["experiment=ddpm_digits", f"run.root={root}", "run.name=first", "model.base=32", "max_steps=120",
            "trainer.accelerator=cpu", "callbacks.pictures.count=0"]
run = commands.train(compose("train", settings), "ddpm_digits")
sorted(path.name for path in run.folder.iterdir())

# %% [markdown]
# The folder holds the run: what it is, what was logged, its weights, and a page that shows how it went. The averaged
# weights draw. Sample 7 of seed 0 is the same picture at any batch size and on any machine.

# %%
model = thaw.load(run.folder, device="cpu")
images = model.sample(range(20), seed=0, label=[i % 10 for i in range(20)])
grid(to_uint8(images), columns=10)

# %% [markdown]
# How it samples is its *recipe*: a sampler, guidance, a prior. Fewer steps, and more guidance:

# %%
recipe = model.recipe(["sampler.num_steps=10", "guidance.cfg.scale=4"])
grid(to_uint8(model.sample(range(20), seed=0, label=[i % 10 for i in range(20)], recipe=recipe)), columns=10)

# %% [markdown]
# Every name that the command line knows is there:

# %%
print("degradations:", ", ".join(thaw.degradations.available()))
print("samplers:", ", ".join(thaw.samplers.available()))

# %% [markdown]
# Next: [a degradation of your own](new_degradation.py), [guidance side by side](guidance.py),
# [the concepts](../concepts.md).
