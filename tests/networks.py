"""Small conditional networks whose weights are all random, so that no zero layer hides an effect."""

import torch
from torch import nn

import models
from configs import registry
from models.conditioning import ConditionEncoder, LabelSignal
from models.context import Context
from models.protocol import ThreeParts

CLASSES = 10
CLASSIFIERS = [name for name in models.available() if "classes" in registry.node("model", name)]
AUTOENCODERS = [name for name in models.available() if "latent_channels" in registry.node("model", name)]
EMBEDDERS = [name for name in models.available() if "length" in registry.node("model", name)]
AROUND = ["controlled", "shifted"]
"""Networks around others."""
RESTORERS = [name for name in models.available() if name not in (*CLASSIFIERS, *AUTOENCODERS, *EMBEDDERS, *AROUND)]
SMALL = {"UNet": {"base": 8, "emb_dim": 32, "head_dim": 8},
         "ConvNextUNet": {"base": 8, "multipliers": [1, 2], "emb_dim": 32, "heads": 2, "head_dim": 4},
         "DiT": {"width": 16, "depth": 3, "emb_dim": 32, "head_dim": 8, "patch": 2}}
"""What makes a preset small, by its class. All have an embedding of length 32."""


def randomized(module, seed: int = 0):
    """``module`` with normal weights that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.15, generator=generator)
    return module.eval().requires_grad_(False)


def small(name: str, **changes) -> ThreeParts:
    """A preset with its structure, but narrow; for sides that 8 divides."""
    kind = registry.node("model", name)["_target_"].rpartition(".")[2]
    return models.build(name, **SMALL[kind] | changes)


def network(seed: int = 0, name: str = "nano", **changes) -> ThreeParts:
    """A small network for one channel, the nano U-Net if nothing is said."""
    return randomized(small(name, **changes), seed)


def encoder(dim: int = 32) -> ConditionEncoder:
    """Ten classes."""
    return randomized(ConditionEncoder({"label": LabelSignal(CLASSES, dim)}, dim), seed=1)


def context(labels: list[int]) -> Context:
    """The context of these classes, with its null."""
    return encoder().with_null({"label": torch.tensor(labels)})
