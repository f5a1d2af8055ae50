"""What is known of an image: ``y = A x0 + sigma n``, a linear degradation at a fixed time, and noise."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from configs import UserError
from degradations.base import Degradation, State
from degradations.decomposition import Decomposition
from degradations.randomness import Draws


@dataclass(frozen=True)
class Measurement:
    """``y = A x0 + sigma n`` of a batch of images (B, C, H, W) in [-1, 1], with ``A x0 = D(x0, t0, z)`` without what is
    only a copy of other pixels (:meth:`degradations.base.Degradation.observe`).

    :ivar degradation: linear, or linear and a constant, for a given t and z
    :ivar t0: the time at which it measures, in (0, 1]
    :ivar state: z of each image
    :ivar noise: sigma, the standard deviation of the noise, in the units of the images
    :ivar shape: (C, H, W) of the images
    :ivar y: what was measured; None until :meth:`measure`
    :raises UserError: for a degradation that is not linear, a time outside of (0, 1], or noise below 0
    """

    degradation: Degradation
    t0: float
    state: State
    noise: float
    shape: Sequence[int]
    y: Tensor | None = field(default=None, repr=False)

    def __post_init__(self):
        if not self.degradation.affine_in_x0 or not self.degradation.pixels:
            raise UserError(f"a measurement by {type(self.degradation).__name__}, which is not linear in the image",
                            "a linear degradation: a blur, a hole, fewer pixels, less colour", "task=deblur_gauss")
        if not 0 < self.t0 <= 1:
            raise UserError(f"task.t0={self.t0:g}", "a time in (0, 1]", "task.t0=1.0")
        if not 0 <= self.noise < float("inf"):
            raise UserError(f"task.noise={self.noise:g}", "a standard deviation, 0 or more", "task.noise=0.05")
        self.degradation.check(self.shape)

    def forward(self, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        """What would be measured of these images without noise."""
        t = self._time(x0)
        return self.degradation.observe(self.degradation.forward(x0, t, self.state), t, self.state)

    def apply(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        """``A x``, the linear part of :meth:`forward`."""
        t = self._time(x)
        dx = self.degradation.response(torch.zeros_like(x), x, t, self.state)
        return self.degradation.observe(dx, t, self.state)

    def adjoint(self, u: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        """``A^T u``, the vector-Jacobian product of :meth:`apply`."""
        with torch.enable_grad():
            x = u.new_zeros(len(u), *self.shape).requires_grad_()
            return torch.autograd.grad(self.apply(x), x, u, create_graph=u.requires_grad)[0]

    def invert(self, u: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        """``A^+ u``.

        :raises UserError: for an operator whose singular values are not known
        """
        return self.decomposition.invert(u)

    def residual(self, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        """``y - A x0``, 0 where nothing is measured."""
        return self.known - self.forward(x0)

    def measure(self, x0: Float[Tensor, "b c h w"], rng: Draws) -> "Measurement":
        """The measurement of these images, with its own noise for each."""
        y = self.forward(x0)
        if self.noise:
            n = rng.normal("measurement", x0.shape)
            y = y + self.noise * self.degradation.observe(n, self._time(x0), self.state)
        return replace(self, y=y)

    def accept(self, picture: Float[Tensor, "b c _ _"]) -> "Measurement":
        """The measurement that was taken already: y itself, or an image of full size that shows it."""
        if tuple(picture.shape[1:]) == tuple(self.shape):
            picture = self.degradation.observe(picture, self._time(picture), self.state)
        return replace(self, y=picture)

    def misfit(self, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """The root mean square of :meth:`residual` over what is measured, for each image."""
        residual = self.residual(x0)
        seen = self.degradation.observe(torch.ones_like(x0), self._time(x0), self.state).expand_as(residual)
        return (residual.square().flatten(1).sum(1) / seen.flatten(1).sum(1).clamp(min=1)).sqrt()

    def show(self) -> Float[Tensor, "b c h w"]:
        """What was measured, as an image of full size."""
        return self.degradation.enlarge(self.known, self.shape)

    def unseen(self) -> Float[Tensor, "b c h w"]:
        """What :meth:`show` leaves out of a degraded image: the colour of a hole."""
        black = torch.zeros(len(self.known), *self.shape, device=self.known.device)
        constant = self.degradation.forward(black, self._time(black), self.state)
        return constant - self.degradation.enlarge(self.degradation.observe(constant, self._time(black), self.state),
                                                   self.shape)

    @property
    def known(self) -> Tensor:
        """What was measured: y."""
        assert self.y is not None
        return self.y

    @cached_property
    def decomposition(self) -> Decomposition:
        """``A = U S V^T``.

        :raises UserError: for an operator whose singular values are not known
        """
        found = self.known_decomposition
        if found is None:
            raise UserError(f"{type(self.degradation).__name__}, whose singular values are not known",
                            "a degradation with known singular values, or a method that needs none",
                            "method=pigdm or method=dps")
        return found

    @cached_property
    def known_decomposition(self) -> Decomposition | None:
        """``A = U S V^T``; None if the operator has none that is known."""
        return self.degradation.decompose(self.shape, self.t0, self.state)

    def rows(self, index: slice | Tensor) -> "Measurement":
        """Some rows of the batch."""
        y = None if self.y is None else self.y[index]
        return replace(self, state=self.state.rows(index), y=y)

    def _time(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), self.t0, device=x.device)
