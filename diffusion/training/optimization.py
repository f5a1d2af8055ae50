"""Optimizers as config: the algorithm, and how the learning rate moves."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from configs import UserError

SHAPES = {
    "none": lambda u: 1.0,
    "linear": lambda u: 1 - u,
    "cosine": lambda u: (1 + math.cos(math.pi * u)) / 2,
}


class AdamW:
    """AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), linear warm-up, then decay towards ``final * lr``, which
    it would reach at step ``max_steps``. A longer ``max_steps`` stretches the decay.

    :param lr: learning rate after the warm-up
    :param warmup: steps from 0 to lr
    :param decay: ``none``, ``linear`` or ``cosine``
    :param final: share of lr at the end of the decay
    :param clip: largest gradient norm, None for no clipping
    :raises UserError: for a number that means nothing
    """

    def __init__(self, lr: float = 2e-4, betas: Sequence[float] = (0.9, 0.999), weight_decay: float = 0.0,
                 eps: float = 1e-8, warmup: int = 100, decay: str = "none", final: float = 0.0,
                 clip: float | None = 1.0):
        if decay not in SHAPES:
            raise UserError(f"optimizer.decay={decay}", f"one of {', '.join(SHAPES)}", "optimizer.decay=linear")
        if not 0 < lr < math.inf:
            raise UserError(f"optimizer.lr={lr:g}", "a learning rate above 0", "optimizer.lr=2e-4")
        if clip is not None and not clip > 0:
            raise UserError(f"optimizer.clip={clip:g}", "a gradient norm above 0",
                            "optimizer.clip=null for no clipping")
        for name, value, usual in (("weight_decay", weight_decay, 0.0), ("eps", eps, 1e-8), ("warmup", warmup, 100),
                                   ("final", final, 0.0)):
            if not 0 <= value < math.inf:
                raise UserError(f"optimizer.{name}={value:g}", "0 or more", f"optimizer.{name}={usual:g}")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"optimizer.betas={list(betas)}", "two shares in [0, 1)", "optimizer.betas=[0.9,0.999]")
        self.lr, self.betas, self.weight_decay, self.eps = lr, (betas[0], betas[1]), weight_decay, eps
        self.warmup, self.decay, self.final, self.clip = warmup, decay, final, clip

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimizer of these parameters."""
        return torch.optim.AdamW(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay,
                                 eps=self.eps, fused=True)

    def rate(self, step: int, max_steps: int) -> float:
        """The learning rate of step ``step = 0, 1, ...`` of ``max_steps``."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        progress = min(1.0, max(0.0, (step - self.warmup) / max(1, max_steps - self.warmup)))
        return self.lr * warm * (self.final + (1 - self.final) * SHAPES[self.decay](progress))
