"""Rescaled guidance: Lin et al. 2023, arXiv 2305.08891, section 3.4."""

from configs import UserError
from degradations.base import Estimate
from degradations.shapes import expand_like, flatten_rows
from samplers.guidance.base import EstimateTransform, GuidanceInput
from samplers.guidance.spaces import check_space, from_space, to_space


class Rescale(EstimateTransform):
    """``phi g std(base) / std(g) + (1 - phi) g``, g the guided estimate: strong guidance without its excess of
    contrast. The standard deviation is of each sample, over all its values.

    :param phi: share of the rescaled estimate, in [0, 1]; 0 is off
    :param space: in which it is measured, see :mod:`samplers.guidance.spaces`; the paper's is the network's output
    """

    def __init__(self, phi: float = 0.7, space: str = "x0"):
        if not 0 <= phi <= 1:
            raise UserError(f"rescaling with phi={phi:g}", "a share in [0, 1]", "phi=0.7")
        self.phi, self.space = phi, check_space(space)

    def __call__(self, estimate: Estimate, base: Estimate, view: GuidanceInput) -> Estimate:
        if self.phi == 0:
            return estimate
        value, plain = (to_space(e, self.space, view) for e in (estimate, base))
        std, wanted = (flatten_rows(v).std(dim=1) for v in (value, plain))
        factor = 1 - self.phi + self.phi * wanted / std.where(std > 0, 1)
        return from_space(expand_like(factor, value) * value, self.space, view, estimate)
