"""Noise schedules ``t -> (alpha, sigma)`` on [0, 1]: 0 clean, 1 destroyed. Tables in float64, or a formula in t.

A paper's chain of T steps has its level k at ``t = k / T``: ``alpha^2 = prod_{i <= k} (1 - beta_i)``, level 0 clean.
Between two levels the angle ``atan2(sigma, alpha)`` is interpolated, so ``alpha^2 + sigma^2 = 1`` everywhere.
"""

from functools import lru_cache
from math import pi

import torch
from jaxtyping import Float64
from torch import Tensor

from configs import UserError
from degradations.base import locate_level
from degradations.types import Times


class Schedule:
    """``schedule(t) -> (alpha, sigma)``, float64 (B,).

    :ivar levels: number of discrete levels T, None if the schedule is a formula in t
    """

    levels: int | None = None

    def __call__(self, t: Times) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
        raise NotImplementedError

    def snr(self, t: Times) -> Float64[Tensor, " b"]:
        """Signal-to-noise ratio ``alpha^2 / sigma^2``."""
        alpha, sigma = self(t)
        return (alpha / sigma) ** 2

    def time(self, ratio: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """The inverse: the t at which ``sigma / alpha`` is ``ratio``, in [0, inf]; 1 for a ratio beyond the last."""
        raise NotImplementedError


class Discrete(Schedule):
    """A variance-preserving chain of T levels, given by ``alpha_bar_k = alpha_k^2`` for k = 1..T.

    :param alpha_bar: (T,) float64, decreasing, in [0, 1)
    """

    levels: int

    def __init__(self, alpha_bar: Float64[Tensor, " T"]):
        self.alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar])
        self.levels = len(alpha_bar)

    def __call__(self, t: Times) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
        alphas, sigmas, angles = _tables(self, str(t.device))
        below, share = locate_level(t, len(alphas) - 1)
        above = (below + 1).clamp(max=len(alphas) - 1)
        angle = torch.lerp(angles[below], angles[above], share)
        exact = share == 0
        return torch.where(exact, alphas[below], angle.cos()), torch.where(exact, sigmas[below], angle.sin())

    def time(self, ratio: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        _, _, angles = _tables(self, str(ratio.device))
        angle = ratio.atan()
        above = torch.searchsorted(angles, angle).clamp(1, self.levels)
        share = (angle - angles[above - 1]) / (angles[above] - angles[above - 1])
        return (above - 1 + share.clamp(max=1)) / self.levels


@lru_cache(maxsize=32)
def _tables(schedule: Discrete, device: str) -> tuple[Tensor, Tensor, Tensor]:
    alpha, sigma = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    return alpha.to(device), sigma.to(device), torch.atan2(sigma, alpha).to(device)


class RectifiedSchedule(Schedule):
    """``alpha = 1 - t, sigma = t``: each image goes to its noise on a straight line (Lipman et al. 2023, arXiv
    2210.02747; Liu et al. 2023, arXiv 2209.03003). Its end is pure noise: ``parameterization`` flow, v or x0."""

    def __call__(self, t: Times) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
        return 1 - t.double(), t.double()

    def time(self, ratio: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        return 1 / (1 + 1 / ratio)


class AdditiveSchedule(Schedule):
    """``alpha = 1, sigma = std t``: noise is added and nothing taken away, for a part of a composition.

    :param std: of the noise at t = 1
    """

    def __init__(self, std: float = 0.1):
        if not std > 0:
            raise UserError(f"noise of std {std:g}", "std above 0", "degradation.schedule.std=0.1")
        self.std = std

    def __call__(self, t: Times) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
        return torch.ones_like(t, dtype=torch.float64), self.std * t.double()

    def time(self, ratio: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        return (ratio / self.std).clamp(max=1)


def _accumulate(beta: Float64[Tensor, " T"]) -> Float64[Tensor, " T"]:
    return torch.cumprod(1 - beta, dim=0)


def _some(levels: int) -> None:
    if levels < 1:
        raise UserError(f"a schedule of {levels} levels", "at least 1", "degradation.schedule.levels=1000")


class LinearSchedule(Discrete):
    """``beta`` linear from ``start`` to ``end`` (Ho et al. 2020, section 4), both scaled by ``1000 / levels``."""

    def __init__(self, levels: int = 1000, start: float = 1e-4, end: float = 0.02):
        _some(levels)
        scale = 1000 / levels
        if end * scale >= 1:
            raise UserError(f"a linear schedule of {levels} levels up to beta {end * scale:.2f}", "beta below 1",
                            f"degradation.schedule.levels={int(1000 * end) + 1} or more")
        super().__init__(_accumulate(torch.linspace(start * scale, end * scale, levels, dtype=torch.float64)))


class CosineSchedule(Discrete):
    """``alpha_bar = f(k/T) / f(0)``, ``f(u) = cos^2((u + offset) / (1 + offset) pi / 2)``, beta at most ``max_beta``
    (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17)."""

    def __init__(self, levels: int = 1000, offset: float = 0.008, max_beta: float = 0.999):
        _some(levels)
        u = torch.arange(levels + 1, dtype=torch.float64) / levels
        f = torch.cos((u + offset) / (1 + offset) * pi / 2) ** 2
        super().__init__(_accumulate((1 - f[1:] / f[:-1]).clamp(max=max_beta)))


class SigmoidSchedule(Discrete):
    """``alpha_bar(u)`` a normalised falling sigmoid between ``start`` and ``end`` (Jabri et al. 2022, arXiv
    2212.11972, algorithm 1). Not the sigmoid *beta* schedule of the same name.

    :param tau: temperature of the sigmoid
    """

    def __init__(self, levels: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0,
                 max_beta: float = 0.999):
        _some(levels)
        u = torch.arange(levels + 1, dtype=torch.float64) / levels
        first, last = (torch.sigmoid(torch.tensor(v / tau, dtype=torch.float64)) for v in (start, end))
        f = (last - torch.sigmoid((u * (end - start) + start) / tau)) / (last - first)
        super().__init__(_accumulate((1 - f[1:] / f[:-1]).clamp(max=max_beta)))


class ZeroTerminalSNR(Discrete):
    """Another schedule, its ``alpha`` shifted and scaled so that the last level is pure noise and the first unchanged
    (Lin et al. 2023, arXiv 2305.08891, algorithm 1). Needs ``parameterization`` v or x0.

    :param base: the schedule to rescale
    """

    def __init__(self, base: Discrete):
        root = base.alpha_bar[1:].sqrt()
        super().__init__(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2)
