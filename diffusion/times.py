"""Which times the training sees."""

import torch
from jaxtyping import Float
from torch import Tensor

from configs import UserError
from degradations.base import Degradation
from degradations.randomness import Draws


class Times:
    """``times(n, degradation, rng) -> t`` in (0, 1]."""

    def __call__(self, n: int, degradation: Degradation, rng: Draws) -> Float[Tensor, " b"]:
        raise NotImplementedError


class Uniform(Times):
    """Uniform on (0, 1]."""

    def __call__(self, n: int, degradation: Degradation, rng: Draws) -> Float[Tensor, " b"]:
        return 1 - rng.uniform("time", (n,))


class Levels(Times):
    """Uniform on the degradation's own levels ``k / T``, k = 1 .. T, as the papers with discrete chains train."""

    def __call__(self, n: int, degradation: Degradation, rng: Draws) -> Float[Tensor, " b"]:
        if degradation.levels is None:
            raise UserError("times=levels for a degradation without levels", "a degradation with levels",
                            "objective/times=uniform")
        k = rng.integers("time", degradation.levels, (n,)) + 1
        return (k.double() / degradation.levels).to(torch.float32)
