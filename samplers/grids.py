"""Grids: the times that a sampler visits, from ``start`` (1 = destroyed) down to 0.

A degradation with T discrete levels was trained on ``t = k / T``; the grids keep to these levels, and a grid that asks
for more steps than there are levels is refused.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from configs import UserError
from degradations.affine import Affine
from degradations.base import Degradation
from degradations.gaussian import Gaussian

MOST = 100_000
"""Steps of a grid."""


class Grid:
    """``grid(num_steps, degradation, start)``: ``num_steps + 1`` times, the last one 0. They fall, but for those of
    :class:`RepaintGrid`.

    :cvar requires: the type of degradation that it makes sense for
    :raises UserError: if the grid does not exist for this degradation or these numbers
    """

    requires: type[Degradation] = Degradation

    def __call__(self, num_steps: int | None, degradation: Degradation, start: float = 1.0) -> list[float]:
        if not isinstance(degradation, self.requires):
            raise UserError(f"{type(self).__name__} with the degradation {type(degradation).__name__}",
                            f"a degradation that is {self.requires.__name__}", "sampler/grid=uniform")
        if not 0 < start <= 1:
            raise UserError(f"a start at t = {start}", "a time in (0, 1]", "start=1.0")
        levels = degradation.levels
        n = num_steps if num_steps is not None or not levels else round(start * levels)
        if n is None:
            raise UserError("num_steps=null for a degradation without levels", "a number", "sampler.num_steps=50")
        if not 1 <= n <= MOST:
            raise UserError(f"num_steps={n} from t = {start:g}", f"1 to {MOST}", "sampler.num_steps=50")
        if levels and n > round(start * levels):
            raise UserError(f"num_steps={n} from t = {start:g}", f"at most the {round(start * levels)} levels below",
                            f"sampler.num_steps={round(start * levels)}, or null for all of them")
        return [*self.times(n, degradation, start), 0.0]

    def times(self, n: int, degradation: Degradation, start: float) -> list[float]:
        """The ``n`` positive times, falling."""
        raise NotImplementedError


def snap(times: list[float], levels: int | None) -> list[float]:
    """Each time on its nearest level, all of them different: time i of n is below the one before it, and never below
    level ``n - i``."""
    if levels is None:
        return times
    n, below, snapped = len(times), levels, []
    for i, time in enumerate(times):
        level = max(min(round(time * levels), below), n - i)
        snapped.append(level / levels)
        below = level - 1
    return snapped


class GivenGrid(Grid):
    """These times, whatever is asked: those of another run.

    :param given: the last one is 0
    """

    def __init__(self, given: Sequence[float]):
        self.given = list(given)

    def __call__(self, num_steps: int | None, degradation: Degradation, start: float = 1.0) -> list[float]:
        return self.given


class UniformGrid(Grid):
    """``t_i = start (1 - i / n)``, on the nearest levels: "trailing" spacing (Lin et al. 2023, arXiv 2305.08891)."""

    def times(self, n: int, degradation: Degradation, start: float) -> list[float]:
        return snap([start * (n - i) / n for i in range(n)], degradation.levels)


class LevelGrid(UniformGrid):
    """The degradation's own levels: all of them, or ``n`` evenly strided ones."""

    def times(self, n: int, degradation: Degradation, start: float) -> list[float]:
        if degradation.levels is None:
            raise UserError("the grid of levels for a degradation without levels", "a degradation with levels",
                            "sampler/grid=uniform")
        return super().times(n, degradation, start)


class LeadingGrid(Grid):
    """Levels ``i floor(T / n) + 1 + offset`` (Nichol and Dhariwal 2021): starts below T.

    :param offset: added to each level
    """

    def __init__(self, offset: int = 0):
        self.offset = offset

    def times(self, n: int, degradation: Degradation, start: float) -> list[float]:
        levels = degradation.levels
        if levels is None:
            raise UserError("leading spacing for a degradation without levels", "a degradation with levels",
                            "sampler/grid=uniform")
        stride = round(start * levels) // n
        return [min(i * stride + 1 + self.offset, levels) / levels for i in reversed(range(n))]


class QuadraticGrid(Grid):
    """``t_i = start (1 - i / n)^2``: denser where the image is clean (Song et al. 2020, arXiv 2010.02502, D.2, here
    over the whole range)."""

    def times(self, n: int, degradation: Degradation, start: float) -> list[float]:
        return snap([start * ((n - i) / n) ** 2 for i in range(n)], degradation.levels)


class RepaintGrid(Grid):
    """Another grid with ways back up: at every ``jump``-th time, ``jump`` steps up and down again, ``repeats - 1``
    times (RePaint, Lugmayr et al. 2022, arXiv 2201.09865, section 4.2; ``jump = 1`` is the time travel of DDNM, Wang et
    al. 2022, arXiv 2212.00490, algorithm 2). Steps up evaluate nothing.

    For samplers that do not look back: ``ddim`` and ``ddpm``.

    :param grid: whose times they are
    :param jump: steps of a way up
    :param repeats: how often each piece of the way down is gone; 1 never goes up
    """

    requires = Gaussian

    def __init__(self, grid: Grid | None = None, jump: int = 5, repeats: int = 3):
        if jump < 1 or repeats < 1:
            raise UserError(f"ways up of {jump} steps, {repeats} times", "at least 1",
                            "sampler.grid.jump=5 sampler.grid.repeats=3")
        self.grid, self.jump, self.repeats = grid or UniformGrid(), jump, repeats

    def times(self, n: int, degradation: Degradation, start: float) -> list[float]:
        down = [*self.grid.times(n, degradation, start), 0.0]
        left = {n - k: self.repeats - 1 for k in range(1, n - self.jump + 1, self.jump)}
        i, visited = 0, [0]
        while i < n:
            i += 1
            visited.append(i)
            if left.get(i):
                left[i] -= 1
                visited += range(i - 1, i - self.jump - 1, -1)
                i -= self.jump
            if len(visited) > MOST:
                raise UserError(f"a grid of more than {MOST} steps", "fewer ways up",
                                "sampler.grid.jump=5 sampler.grid.repeats=3")
        return [down[i] for i in visited[:-1]]


class NoiseLevelGrid(Grid):
    """Times between which a function of ``rho = sigma / alpha`` falls by equal amounts, on the nearest levels.

    The first is ``start``, the last before 0 that of ``sigma_min``, or level 1 where that is noisier. From a start with
    more noise than ``sigma_max``, such as pure noise, where rho is infinite, the first step goes to ``sigma_max``, and
    the equal ones begin there.

    :param sigma_min: least ``sigma / alpha`` before 0; above 0
    :param sigma_max: greatest ``sigma / alpha`` of the equal steps
    """

    requires = Affine

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0):
        if not 0 < sigma_min < sigma_max:
            raise UserError(f"a grid from sigma_max={sigma_max:g} to sigma_min={sigma_min:g}",
                            "0 < sigma_min < sigma_max", "sampler.grid.sigma_min=0.002 sampler.grid.sigma_max=80.0")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def warp(self, rho: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """The function of rho that falls by equal amounts."""
        raise NotImplementedError

    def unwarp(self, value: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """The inverse of :meth:`warp`."""
        raise NotImplementedError

    def times(self, n: int, degradation: Degradation, start: float) -> list[float]:
        assert isinstance(degradation, Affine)
        levels = degradation.levels
        alpha, sigma = degradation.schedule(torch.tensor([start, 1 / levels if levels else 0], dtype=torch.float64))
        first, least = (sigma / alpha).tolist()
        high, low = min(first, self.sigma_max), max(least, self.sigma_min)
        if n > 1 and high <= low:
            raise UserError(f"{n} steps from t = {start:g}, sigma / alpha at most {high:g}, to sigma / alpha {low:g}",
                            "a start with more noise than the end", "sampler/grid=uniform")
        beyond = first > self.sigma_max
        begin, end = self.warp(torch.tensor([high, low], dtype=torch.float64))
        rho = self.unwarp(begin + (end - begin) * torch.linspace(0, 1, n - beyond, dtype=torch.float64))
        times = degradation.schedule.time(rho).tolist()
        return snap([start, *(times if beyond else times[1:])], levels)


class KarrasGrid(NoiseLevelGrid):
    """Even in ``(sigma / alpha)^(1 / power)``: dense where there is little noise (Karras et al. 2022, arXiv 2206.00364,
    eq. 5, whose sigma is ``sigma / alpha`` here, and whose rho is the power).

    :param power: 1 is even in ``sigma / alpha``; the higher, the nearer to :class:`LambdaGrid`
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, power: float = 7.0):
        super().__init__(sigma_min, sigma_max)
        if not power > 0:
            raise UserError(f"power={power:g}", "a number above 0", "sampler.grid.power=7.0")
        self.power = power

    def warp(self, rho: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        return rho ** (1 / self.power)

    def unwarp(self, value: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        return value**self.power


class LambdaGrid(NoiseLevelGrid):
    """Even in ``lambda = ln(alpha / sigma)``, half the logarithm of the signal-to-noise ratio: the steps ``logSNR`` of
    DPM-Solver (Lu et al. 2022, arXiv 2206.00927)."""

    def warp(self, rho: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        return rho.log()

    def unwarp(self, value: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        return value.exp()
