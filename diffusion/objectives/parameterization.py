"""What the network's output means. Each is a target for training and its inverse for restoring.

| name     | target                 | x0 from the output                                            |
|----------|------------------------|---------------------------------------------------------------|
| ``X0``   | x0                     | output                                                        |
| ``Eps``  | z                      | ``(x_t - sigma output) / alpha`` (undefined at alpha = 0)     |
| ``V``    | ``alpha z - sigma x0`` | ``(alpha x_t - sigma output) / (alpha^2 + sigma^2)``          |
| ``Flow`` | ``z - x0``             | ``(x_t - sigma output) / (alpha + sigma)``                    |

V: Salimans and Ho 2022, arXiv 2202.00512, appendix D. Flow: Lipman et al. 2023, arXiv 2210.02747, where the schedule is
``RectifiedSchedule`` and the target the velocity ``dx/dt``.
"""

from jaxtyping import Float64
from torch import Tensor, ones, ones_like

from configs import UserError
from degradations.affine import Affine
from degradations.base import Degradation, State
from degradations.types import Images, Times


class Parameterization:
    """``target`` and its inverse ``x0``, and what an error of the one means in the other.

    :cvar requires: the type of degradation that it makes sense for
    """

    requires: type[Degradation] = Degradation

    def target(self, x0: Images, t: Times, state: State, degradation: Degradation) -> Images:
        """What the network should answer."""
        raise NotImplementedError

    def x0(self, out: Images, x_t: Images, t: Times, degradation: Degradation) -> Images:
        """The clean image that the network's answer stands for."""
        raise NotImplementedError

    def scale(self, alpha: Float64[Tensor, " b"], sigma: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """The size of the error of x0 that comes from an error of size 1 of the network's answer."""
        raise NotImplementedError

    def check(self, degradation: Degradation) -> None:
        """Refuse a degradation for which the target means nothing."""
        if not isinstance(degradation, self.requires):
            raise UserError(f"parameterization {type(self).__name__.lower()} for {type(degradation).__name__}",
                            "x0, which every degradation has", "objective/parameterization=x0")


class X0(Parameterization):
    """The network answers with the clean image."""

    def target(self, x0: Images, t: Times, state: State, degradation: Degradation) -> Images:
        return x0

    def x0(self, out: Images, x_t: Images, t: Times, degradation: Degradation) -> Images:
        return out

    def scale(self, alpha: Float64[Tensor, " b"], sigma: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        return ones_like(alpha)


class Eps(Parameterization):
    """The network answers with the noise z."""

    requires = Affine

    def target(self, x0: Images, t: Times, state: State, degradation: Degradation) -> Images:
        return state["z"]

    def x0(self, out: Images, x_t: Images, t: Times, degradation: Degradation) -> Images:
        assert isinstance(degradation, Affine)
        alpha, sigma = degradation.coefficients(t, x_t)
        return (x_t - sigma * out) / alpha

    def scale(self, alpha: Float64[Tensor, " b"], sigma: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        return sigma / alpha

    def check(self, degradation: Degradation) -> None:
        super().check(degradation)
        assert isinstance(degradation, Affine)
        if degradation.schedule(ones(1))[0].item() == 0:
            raise UserError("parameterization eps with a schedule that ends in pure noise", "v or x0: at alpha = 0 the "
                            "noise says nothing about the image", "objective/parameterization=v")


class V(Parameterization):
    """The network answers with ``v = alpha z - sigma x0``."""

    requires = Affine

    def target(self, x0: Images, t: Times, state: State, degradation: Degradation) -> Images:
        assert isinstance(degradation, Affine)
        alpha, sigma = degradation.coefficients(t, x0)
        return alpha * state["z"] - sigma * x0

    def x0(self, out: Images, x_t: Images, t: Times, degradation: Degradation) -> Images:
        assert isinstance(degradation, Affine)
        alpha, sigma = degradation.coefficients(t, x_t)
        return (alpha * x_t - sigma * out) / (alpha**2 + sigma**2)

    def scale(self, alpha: Float64[Tensor, " b"], sigma: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        return sigma / (alpha**2 + sigma**2)


class Flow(Parameterization):
    """The network answers with ``u = z - x0``, the way from the image to its noise."""

    requires = Affine

    def target(self, x0: Images, t: Times, state: State, degradation: Degradation) -> Images:
        return state["z"] - x0

    def x0(self, out: Images, x_t: Images, t: Times, degradation: Degradation) -> Images:
        assert isinstance(degradation, Affine)
        alpha, sigma = degradation.coefficients(t, x_t)
        return (x_t - sigma * out) / (alpha + sigma)

    def scale(self, alpha: Float64[Tensor, " b"], sigma: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        return sigma / (alpha + sigma)
