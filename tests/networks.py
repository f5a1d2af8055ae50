"""A small conditional network whose weights are all random, so that no zero layer hides an effect."""

import torch
from torch import nn

import models
from models.conditioning import ConditionEncoder, Context, LabelSignal
from models.unet import UNet

CLASSES = 10


def randomized(module, seed: int = 0):
    """``module`` with normal weights that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.15, generator=generator)
    return module.eval().requires_grad_(False)


def network(seed: int = 0, **changes) -> UNet:
    """The nano U-Net for one channel."""
    return randomized(models.build("nano", **changes), seed)


def encoder(dim: int = 32) -> ConditionEncoder:
    """Ten classes."""
    return randomized(ConditionEncoder({"label": LabelSignal(CLASSES, dim)}, dim), seed=1)


def context(labels: list[int]) -> Context:
    """The context of these classes, with its null."""
    return encoder().with_null({"label": torch.tensor(labels)})
