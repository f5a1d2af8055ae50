"""Grids: the times that a sampler visits, from ``start`` (1 = destroyed) down to 0.

A degradation with T discrete levels was trained on ``t = k / T``; the grids keep to these levels, and a grid that asks
for more steps than there are levels is refused.
"""

from configs import UserError

MOST = 100_000
"""Steps of a grid."""


class Grid:
    """``grid(num_steps, levels, start)``: ``num_steps + 1`` falling times, the last one 0.

    :raises UserError: if the grid does not exist for these numbers
    """

    def __call__(self, num_steps: int | None, levels: int | None, start: float = 1.0) -> list[float]:
        if not 0 < start <= 1:
            raise UserError(f"a start at t = {start}", "a time in (0, 1]", "start=1.0")
        n = num_steps if num_steps is not None or not levels else round(start * levels)
        if n is None:
            raise UserError("num_steps=null for a degradation without levels", "a number", "sampler.num_steps=50")
        if not 1 <= n <= MOST:
            raise UserError(f"num_steps={n} from t = {start:g}", f"1 to {MOST}", "sampler.num_steps=50")
        if levels and n > round(start * levels):
            raise UserError(f"num_steps={n} from t = {start:g}", f"at most the {round(start * levels)} levels below",
                            f"sampler.num_steps={round(start * levels)}, or null for all of them")
        return [*self.times(n, levels, start), 0.0]

    def times(self, n: int, levels: int | None, start: float) -> list[float]:
        """The ``n`` positive times, falling."""
        raise NotImplementedError


def snap(times: list[float], levels: int | None) -> list[float]:
    """Each time on its nearest level, all of them different: time i of n is never below level ``n - i``."""
    if levels is None:
        return times
    n = len(times)
    return [max(round(time * levels), n - i) / levels for i, time in enumerate(times)]


class UniformGrid(Grid):
    """``t_i = start (1 - i / n)``, on the nearest levels: "trailing" spacing (Lin et al. 2023, arXiv 2305.08891)."""

    def times(self, n: int, levels: int | None, start: float) -> list[float]:
        return snap([start * (n - i) / n for i in range(n)], levels)


class LevelGrid(UniformGrid):
    """The degradation's own levels: all of them, or ``n`` evenly strided ones."""

    def times(self, n: int, levels: int | None, start: float) -> list[float]:
        if levels is None:
            raise UserError("the grid of levels for a degradation without levels", "a degradation with levels",
                            "sampler/grid=uniform")
        return super().times(n, levels, start)


class LeadingGrid(Grid):
    """Levels ``i floor(T / n) + 1 + offset`` (Nichol and Dhariwal 2021): starts below T.

    :param offset: added to each level
    """

    def __init__(self, offset: int = 0):
        self.offset = offset

    def times(self, n: int, levels: int | None, start: float) -> list[float]:
        if levels is None:
            raise UserError("leading spacing for a degradation without levels", "a degradation with levels",
                            "sampler/grid=uniform")
        stride = round(start * levels) // n
        return [min(i * stride + 1 + self.offset, levels) / levels for i in reversed(range(n))]


class QuadraticGrid(Grid):
    """``t_i = start (1 - i / n)^2``: denser where the image is clean (Song et al. 2020, arXiv 2010.02502, D.2, here
    over the whole range)."""

    def times(self, n: int, levels: int | None, start: float) -> list[float]:
        return snap([start * ((n - i) / n) ** 2 for i in range(n)], levels)
