"""What the network's output means. Each is a target for training and its inverse for restoring.

| name  | target                 | x0 from the output                                          |
|-------|------------------------|-------------------------------------------------------------|
| ``X0``  | x0                     | output                                                      |
| ``Eps`` | z                      | ``(x_t - sigma output) / alpha`` (undefined at alpha = 0)     |
| ``V``   | ``alpha z - sigma x0`` | ``(alpha x_t - sigma output) / (alpha^2 + sigma^2)``          |

V: Salimans and Ho 2022, arXiv 2202.00512, appendix D.
"""

from jaxtyping import Float
from torch import Tensor, ones

from configs import UserError
from degradations.affine import Affine
from degradations.base import Degradation, State


class Parameterization:
    """``target`` and its inverse ``x0``.

    :cvar requires: the type of degradation that it makes sense for
    """

    requires: type[Degradation] = Degradation

    def target(self, x0: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], state: State,
               degradation: Degradation) -> Float[Tensor, "b *rest"]:
        """What the network should answer."""
        raise NotImplementedError

    def x0(self, out: Float[Tensor, "b *rest"], x_t: Float[Tensor, "b *rest"], t: Float[Tensor, " b"],
           degradation: Degradation) -> Float[Tensor, "b *rest"]:
        """The clean image that the network's answer stands for."""
        raise NotImplementedError

    def check(self, degradation: Degradation) -> None:
        """Refuse a degradation for which the target means nothing."""
        if not isinstance(degradation, self.requires):
            raise UserError(f"parameterization {type(self).__name__.lower()} for {type(degradation).__name__}",
                            "x0, which every degradation has", "objective/parameterization=x0")


class X0(Parameterization):
    """The network answers with the clean image."""

    def target(self, x0: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], state: State,
               degradation: Degradation) -> Float[Tensor, "b *rest"]:
        return x0

    def x0(self, out: Float[Tensor, "b *rest"], x_t: Float[Tensor, "b *rest"], t: Float[Tensor, " b"],
           degradation: Degradation) -> Float[Tensor, "b *rest"]:
        return out


class Eps(Parameterization):
    """The network answers with the noise z."""

    requires = Affine

    def target(self, x0: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], state: State,
               degradation: Degradation) -> Float[Tensor, "b *rest"]:
        return state["z"]

    def x0(self, out: Float[Tensor, "b *rest"], x_t: Float[Tensor, "b *rest"], t: Float[Tensor, " b"],
           degradation: Degradation) -> Float[Tensor, "b *rest"]:
        assert isinstance(degradation, Affine)
        alpha, sigma = degradation.coefficients(t, x_t)
        return (x_t - sigma * out) / alpha

    def check(self, degradation: Degradation) -> None:
        super().check(degradation)
        assert isinstance(degradation, Affine)
        if degradation.schedule(ones(1))[0].item() == 0:
            raise UserError("parameterization eps with a schedule that ends in pure noise", "v or x0: at alpha = 0 the "
                            "noise says nothing about the image", "objective/parameterization=v")


class V(Parameterization):
    """The network answers with ``v = alpha z - sigma x0``."""

    requires = Affine

    def target(self, x0: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], state: State,
               degradation: Degradation) -> Float[Tensor, "b *rest"]:
        assert isinstance(degradation, Affine)
        alpha, sigma = degradation.coefficients(t, x0)
        return alpha * state["z"] - sigma * x0

    def x0(self, out: Float[Tensor, "b *rest"], x_t: Float[Tensor, "b *rest"], t: Float[Tensor, " b"],
           degradation: Degradation) -> Float[Tensor, "b *rest"]:
        assert isinstance(degradation, Affine)
        alpha, sigma = degradation.coefficients(t, x_t)
        return (alpha * x_t - sigma * out) / (alpha**2 + sigma**2)
