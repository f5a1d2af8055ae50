"""Affine degradations ``x_t = alpha_t x0 + sigma_t z``: noise, another image, a straight line between two sets."""

from torch import Tensor

from degradations.base import Degradation, State
from degradations.schedules import Schedule
from degradations.shapes import expand_like
from degradations.types import Images, Times


class Affine(Degradation):
    """``x_t = alpha_t x0 + sigma_t z`` with z from any law.

    The state has the entry ``z`` of the image's shape, and :meth:`infer` is exact.

    :param schedule: ``t -> (alpha, sigma)``; its own number of levels becomes the degradation's
    """

    pixels = False
    affine_in_x0 = True

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.levels = schedule.levels

    def coefficients(self, t: Times, x: Images) -> tuple[Tensor, Tensor]:
        """``alpha_t, sigma_t`` in x's precision, shaped to multiply ``x``."""
        alpha, sigma = self.schedule(t)
        return expand_like(alpha.to(x.dtype), x), expand_like(sigma.to(x.dtype), x)

    def degrade(self, x0: Images, t: Times, state: State) -> Images:
        alpha, sigma = self.coefficients(t, x0)
        return alpha * x0 + sigma * state["z"]

    def infer(self, x_t: Images, x0_hat: Images, t: Times, state: State) -> State:
        """``z = (x_t - alpha_t x0_hat) / sigma_t``; where ``sigma_t = 0`` the given z is kept."""
        alpha, sigma = self.coefficients(t, x_t)
        z = (x_t - alpha * x0_hat) / sigma.where(sigma > 0, 1)
        return state.replace(z=z.where(sigma > 0, state["z"]))

    def difference(self, x0: Images, t: Times, s: Times, state: State) -> Images:
        """``(alpha_s - alpha_t) x0 + (sigma_s - sigma_t) z``, the coefficients subtracted in float64."""
        alpha_t, sigma_t = self.schedule(t)
        alpha_s, sigma_s = self.schedule(s)
        d_alpha, d_sigma = (alpha_s - alpha_t).to(x0.dtype), (sigma_s - sigma_t).to(x0.dtype)
        return expand_like(d_alpha, x0) * x0 + expand_like(d_sigma, x0) * state["z"]

    def response(self, x0: Images, dx: Images, t: Times, state: State) -> Images:
        """``alpha_t dx``."""
        return self.coefficients(t, dx)[0] * dx

    def score(self, x0_hat: Images, x_t: Images, t: Times) -> Images:
        """``-z / sigma_t``, the gradient of log p(x_t) when z is normal and x0_hat the posterior mean."""
        alpha, sigma = self.coefficients(t, x_t)
        return (alpha * x0_hat - x_t) / sigma**2
