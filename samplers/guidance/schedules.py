"""How the strength of a term changes on the way from noise to image: schedules and intervals, for every term.

A term adds ``k (base - branch)``; for classifier-free guidance and autoguidance ``k = w - 1``, for the others k is the
scale. A schedule makes of k the strength at time t, ``u = 1 - t`` being the progress. Where that is 0, nothing is
evaluated. Shapes: Wang et al. 2024, arXiv 2404.13040, whose omega is our k; but for ``power_cosine`` and ``clamp``
their mean over the run is k.
"""

from math import cos, pi

from configs import UserError


class ScaleSchedule:
    """``schedule(k, t) -> float``: the strength at time t of a term of strength k."""

    def __call__(self, k: float, t: float) -> float:
        raise NotImplementedError


class ConstantScale(ScaleSchedule):
    """``k``."""

    def __call__(self, k: float, t: float) -> float:
        return k


class LinearScale(ScaleSchedule):
    """``2 u k``: from nothing to twice the strength."""

    def __call__(self, k: float, t: float) -> float:
        return 2 * (1 - t) * k


class InverseLinearScale(ScaleSchedule):
    """``2 (1 - u) k``: from twice the strength to nothing."""

    def __call__(self, k: float, t: float) -> float:
        return 2 * t * k


class CosineScale(ScaleSchedule):
    """``(1 - cos(pi u)) k``: rising, steepest in the middle."""

    def __call__(self, k: float, t: float) -> float:
        return (1 - cos(pi * (1 - t))) * k


class SineScale(ScaleSchedule):
    """``(1 + cos(pi u)) k``: falling, the mirror image of :class:`Cosine`."""

    def __call__(self, k: float, t: float) -> float:
        return (1 + cos(pi * (1 - t))) * k


class LambdaScale(ScaleSchedule):
    """``4 min(u, 1 - u) k``: low, high, low."""

    def __call__(self, k: float, t: float) -> float:
        return 4 * min(1 - t, t) * k


class VScale(ScaleSchedule):
    """``2 |1 - 2 u| k``: high, low, high."""

    def __call__(self, k: float, t: float) -> float:
        return 2 * abs(2 * t - 1) * k


class PowerCosineScale(ScaleSchedule):
    """``(1 - cos(pi u^power)) / 2 k``: rising to k; the smaller the power, the sooner.

    :param power: s of the paper; above 0
    """

    def __init__(self, power: float = 1.0):
        if power <= 0:
            raise UserError(f"a power-cosine schedule with power={power:g}", "a number above 0", "power=1.0")
        self.power = power

    def __call__(self, k: float, t: float) -> float:
        return (1 - cos(pi * (1 - t) ** self.power)) / 2 * k


class ClampedScale(ScaleSchedule):
    """``max(floor, schedule(k, t))``.

    :param floor: least strength; for classifier-free guidance, of ``w - 1``
    :param schedule: what is clamped
    """

    def __init__(self, schedule: ScaleSchedule, floor: float = 1.0):
        self.schedule, self.floor = schedule, floor

    def __call__(self, k: float, t: float) -> float:
        return max(self.floor, self.schedule(k, t))


class IntervalScale(ScaleSchedule):
    """``schedule(k, t)`` for ``low < t <= high``, elsewhere off, and without cost (Kynkäänniemi et al. 2024, arXiv
    2404.07724, whose interval is of the noise level: ``t = degradation.schedule.time(sigma)``).

    :param low: in [0, 1)
    :param high: in (low, 1]
    :param schedule: inside; None is constant
    """

    def __init__(self, low: float = 0.2, high: float = 0.8, schedule: ScaleSchedule | None = None):
        if not 0 <= low < high <= 1:
            raise UserError(f"a guidance interval from low={low:g} to high={high:g}", "0 <= low < high <= 1",
                            "low=0.2 and high=0.8")
        self.low, self.high, self.schedule = low, high, schedule or ConstantScale()

    def __call__(self, k: float, t: float) -> float:
        # Times of a grid are rounded: 0.3 may come as 0.30000000000000004.
        return self.schedule(k, t) if self.low + 1e-9 < t <= self.high + 1e-9 else 0.0


class DynamicScale(ScaleSchedule):
    """``gamma (k + 1) - 1``, with :func:`ramp`: Dynamic CFG (Sadat et al. 2023, arXiv 2310.17347, section 3), in which
    ``w(t) = gamma(t) w`` multiplies ``conditional - null``, so that the beginning is unconditional. For terms whose
    scale 1 is off.

    :param tau1: time below which w is whole
    :param tau2: time above which it is 0
    """

    def __init__(self, tau1: float = 0.6, tau2: float = 0.9):
        check_ramp(tau1, tau2)
        self.tau1, self.tau2 = tau1, tau2

    def __call__(self, k: float, t: float) -> float:
        return ramp(t, self.tau1, self.tau2) * (k + 1) - 1


def ramp(t: float, tau1: float, tau2: float) -> float:
    """``gamma``: 1 up to tau1, 0 from tau2 on, a straight line between."""
    if t <= tau1:
        return 1.0
    return 0.0 if t >= tau2 else (tau2 - t) / (tau2 - tau1)


def check_ramp(tau1: float, tau2: float) -> None:
    """Refuse times that are no ramp.

    :raises UserError: unless 0 <= tau1 <= tau2
    """
    if not 0 <= tau1 <= tau2:
        raise UserError(f"tau1={tau1:g} and tau2={tau2:g}", "0 <= tau1 <= tau2", "tau1=0.6 and tau2=0.9")
