"""Gaussian noise: hot diffusion as one degradation among others."""

from collections.abc import Sequence

from torch import Tensor

from degradations.affine import Affine
from degradations.base import State
from degradations.randomness import Draws
from degradations.types import Times


class Gaussian(Affine):
    """``x_t = alpha_t x0 + sigma_t z`` with ``z ~ N(0, I)``: hot diffusion (Ho et al. 2020, arXiv 2006.11239)."""

    def draw(self, shape: Sequence[int], rng: Draws) -> State:
        return State(z=rng.normal("state", shape))

    def beta(self, t: Times, s: Times) -> Tensor:
        """Variance of ``q(x_t | x_s)``, ``s < t``: ``sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2``, float64, (B,)."""
        alpha_t, sigma_t = self.schedule(t)
        alpha_s, sigma_s = self.schedule(s)
        return sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2

    def posterior(self, t: Times, s: Times) -> tuple[Tensor, Tensor, Tensor]:
        """``q(x_s | x_t, x0) = N(a x0 + b x_t, v I)`` for ``s < t``: (a, b, v), float64, (B,).

        With ``r = alpha_t / alpha_s`` and :meth:`beta`: ``a = alpha_s beta / sigma_t^2``,
        ``b = r sigma_s^2 / sigma_t^2``, ``v = beta sigma_s^2 / sigma_t^2`` (2006.11239, eq. 7, for any t and s).
        """
        alpha_t, sigma_t = self.schedule(t)
        alpha_s, sigma_s = self.schedule(s)
        ratio = alpha_t / alpha_s
        beta = self.beta(t, s)
        return alpha_s * beta / sigma_t**2, ratio * sigma_s**2 / sigma_t**2, beta * sigma_s**2 / sigma_t**2
