"""Not a test: numbers that are not finite in chosen steps. As a script it trains like train.py with them, so that each
of several processes has them."""

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch

INF = float("inf")


class Poisoned(torch.autograd.Function):
    """Nothing, but for a gradient that is not a number."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * float("nan")


def poison(plain: Callable[..., Any], kind: str, steps: Collection[int], row: int) -> Callable[..., Any]:
    """An objective whose loss, or whose gradient alone, is not finite in some steps (from 1) for one row of the global
    batch."""

    def call(self, evaluator, encoder, degradation, x0, condition, rng):
        losses = plain(self, evaluator, encoder, degradation, x0, condition, rng)
        rows = torch.arange(rng.rows.start, rng.rows.stop, device=losses.values.device)
        if rng.step + 1 not in steps or not (rows == row).any():
            return losses
        if kind == "gradient":
            values = torch.where(rows == row, Poisoned.apply(losses.values), losses.values)
        else:
            values = losses.values + torch.where(rows == row, INF, 0.0)
        return replace(losses, values=values)

    return call


if __name__ == "__main__":
    from configs.cli import command
    from diffusion import commands
    from diffusion.objectives.restoration import Objective

    kind, steps, row = os.environ["POISON"].split(":")
    Objective.__call__ = poison(Objective.__call__, kind, list(map(int, steps.split(","))), int(row))
    command("train", commands.train)
