"""Which times the training sees."""

import torch

from configs import UserError
from degradations.affine import Affine
from degradations.base import Degradation
from degradations.randomness import Draws
from degradations.types import Times


class TimeDistribution:
    """``times(n, degradation, rng) -> t`` in (0, 1], or 0."""

    def __call__(self, n: int, degradation: Degradation, rng: Draws) -> Times:
        raise NotImplementedError

    def check(self, degradation: Degradation) -> None:
        """Refuse a degradation that does not have these times."""


class UniformTimes(TimeDistribution):
    """Uniform on (0, 1]."""

    def __call__(self, n: int, degradation: Degradation, rng: Draws) -> Times:
        return 1 - rng.uniform("time", (n,))


class CleanTimes(TimeDistribution):
    """``t = 0``, the images as they are: for a classifier that judges images, not for a restorer."""

    def __call__(self, n: int, degradation: Degradation, rng: Draws) -> Times:
        return torch.zeros_like(rng.uniform("time", (n,)))


class LevelTimes(TimeDistribution):
    """Uniform on the degradation's own levels ``k / T``, k = 1 .. T, as the papers with discrete chains train."""

    def __call__(self, n: int, degradation: Degradation, rng: Draws) -> Times:
        assert degradation.levels is not None
        k = rng.integers("time", degradation.levels, (n,)) + 1
        return (k.double() / degradation.levels).to(torch.float32)

    def check(self, degradation: Degradation) -> None:
        if degradation.levels is None:
            raise UserError("times=levels for a degradation without levels", "a degradation with levels",
                            "objective/times=uniform")


class AntitheticTimes(TimeDistribution):
    """Evenly spread over the global batch, with one random shift for all: each time is uniform, and the loss of a batch
    varies less (Kingma et al. 2021, arXiv 2107.00630, appendix I.1). On the degradation's own levels if it has some."""

    def __call__(self, n: int, degradation: Degradation, rng: Draws) -> Times:
        u = rng.even("time", n)
        if degradation.levels is None:
            return 1 - u
        k = (u.double() * degradation.levels).floor() + 1
        return (k / degradation.levels).to(torch.float32)


class LogNormalTimes(TimeDistribution):
    """``ln(sigma / alpha) ~ N(mean, std^2)``: most often the noise at which the training has most to do (Karras et al.
    2022, arXiv 2206.00364, table 1). On the straight schedule it is the logit-normal law of t of Stable Diffusion 3
    (Esser et al. 2024, arXiv 2403.03206, section 3.1).

    :param mean: of the logarithm
    :param std: of the logarithm
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2):
        if not std > 0:
            raise UserError(f"std={std:g}", "a number above 0", "objective.times.std=1.2")
        self.mean, self.std = mean, std

    def __call__(self, n: int, degradation: Degradation, rng: Draws) -> Times:
        assert isinstance(degradation, Affine)
        ratio = (self.mean + self.std * rng.normal("time", (n,)).double()).exp()
        return degradation.schedule.time(ratio).to(torch.float32).clamp(min=2**-24)

    def check(self, degradation: Degradation) -> None:
        if not isinstance(degradation, Affine):
            raise UserError(f"times=log_normal for {type(degradation).__name__}, which has no sigma / alpha",
                            "times that every degradation has", "objective/times=uniform")
