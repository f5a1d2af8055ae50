"""PiGDM: Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems" (ICLR)."""

import torch
from torch import Tensor

from configs import UserError
from degradations.affine import Affine
from degradations.base import Estimate
from degradations.measurement import Measurement
from degradations.shapes import expand_like, flatten_rows
from samplers.guidance.base import GuidanceInput
from samplers.guidance.scales import Scale, Scaled
from samplers.guidance.schedules import ScaleSchedule

LEAST_ALPHA = 1e-3
"""alpha below which nothing is added: ``sigma^2 / alpha`` would multiply the Jacobian of the network, which does not
vanish with alpha as that of the ideal restorer does."""


class PiGDM(Scaled):
    """Towards images that explain the measurement ``y = A x0 + sigma_y n``:

    ``x0 + g sigma^2 / alpha J^T A^T (r^2 A A^T + sigma_y^2 I)^-1 (y - A x0)``, ``J = d x0_hat / d x_t``, and the state
    that goes with it. ``r^2`` is the variance of x0 given x_t, ``v sigma^2 / (alpha^2 v + sigma^2)`` for images of
    variance v: then this is the exact posterior of Gaussian images, ``E[x0 | x_t, y]``. (The paper's
    ``sigma^2 / (1 + sigma^2)`` is v = 1.) Costs a backward pass through the network, and no evaluation.

    Where the singular values of A are not known, the system is solved by conjugate gradients.

    :param scale: g; 0 is off and costs nothing
    :param variance: v of the training images, per pixel, on the scale [-1, 1]; photos have 0.2 to 0.4
    :param iterations: of conjugate gradients
    :param schedule: of g over the run
    :raises UserError: for a variance that is not positive, a cold model, or if nothing was measured
    """

    needs_measurement = True

    def __init__(self, scale: Scale = 1.0, variance: float = 0.5, iterations: int = 20,
                 schedule: ScaleSchedule | None = None):
        super().__init__(scale, schedule)
        if not variance > 0:
            raise UserError(f"images of variance={variance:g}", "a number above 0", "guidance.pigdm.variance=0.5")
        if iterations < 1:
            raise UserError(f"{iterations} iterations of conjugate gradients", "at least 1",
                            "guidance.pigdm.iterations=20")
        self.variance, self.iterations = variance, iterations

    def needs_grad(self, view: GuidanceInput) -> bool:
        if not isinstance(view.degradation, Affine):
            raise UserError(f"guidance=pigdm with the degradation {type(view.degradation).__name__}", "a hot model",
                            "guidance=none")
        alpha, _ = view.degradation.schedule(view.t[:1])
        return not self.off(view) and alpha.item() >= LEAST_ALPHA

    def delta(self, base: Estimate, outs: object, view: GuidanceInput) -> Estimate | None:
        if not self.needs_grad(view):
            return None
        assert isinstance(view.degradation, Affine)
        assert view.step is not None
        alpha, sigma = view.degradation.coefficients(view.t, view.x_t)
        outside = torch.is_grad_enabled()
        spread = float((self.variance * sigma**2 / (alpha**2 * self.variance + sigma**2)).flatten()[0])
        cause = explain(view.step.known, base.x0 if outside else base.x0.detach(), spread, self.iterations)
        with torch.enable_grad():
            towards = torch.autograd.grad(base.x0, view.x_t, cause, create_graph=outside)[0]
        k = self.strength(view)
        towards = towards * (expand_like(k, towards) if isinstance(k, Tensor) else k)
        return Estimate(sigma**2 / alpha * towards, (base.state * 0.0).replace(z=-sigma * towards))


def explain(measurement: Measurement, x0: Tensor, spread: float, iterations: int) -> Tensor:
    """``A^T (r^2 A A^T + sigma_y^2 I)^-1 (y - A x0)``.

    :param spread: r^2
    :param iterations: of conjugate gradients, where the singular values are not known
    """
    residual, noise, found = measurement.residual(x0), measurement.noise**2, measurement.known_decomposition
    if found is not None:
        total = spread * found.values**2 + noise
        # Without noise, what is hardly measured would be divided by almost nothing.
        share = torch.where(found.measured | (noise > 0), found.values / total.where(total > 0, 1), 0)
        return found.v(share * found.ut(residual))

    def system(w: Tensor) -> Tensor:
        return spread * measurement.apply(measurement.adjoint(w)) + noise * w

    return measurement.adjoint(solve(system, residual, iterations))


def solve(system, right: Tensor, iterations: int) -> Tensor:
    """Conjugate gradients for ``system(w) = right``, each sample by itself; stops where the residual is 0.

    :param system: linear, symmetric, positive
    """
    def dot(a: Tensor, b: Tensor) -> Tensor:
        return expand_like((flatten_rows(a) * flatten_rows(b)).sum(dim=1), a)

    w, left = torch.zeros_like(right), right
    way, size = left, dot(left, left)
    for _ in range(iterations):
        ahead = system(way)
        curve = dot(way, ahead)
        pace = torch.where(curve > 0, size / curve.where(curve > 0, 1), 0)
        w, left = w + pace * way, left - pace * ahead
        size, before = dot(left, left), size
        way = left + torch.where(before > 0, size / before.where(before > 0, 1), 0) * way
    return w
