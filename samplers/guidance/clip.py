"""Clipping of the clean estimate."""

from degradations.base import Estimate
from samplers.guidance.base import EstimateTransform, GuidanceInput


class Clip(EstimateTransform):
    """x0 cut to [low, high] in x0 space; the state is inferred again, so that both still explain x_t. For pixel models
    (Ho et al. 2020 clip; latents are not bounded).
    """

    pixels = True

    def __init__(self, low: float = -1.0, high: float = 1.0):
        self.low, self.high = low, high

    def __call__(self, estimate: Estimate, base: Estimate, view: GuidanceInput) -> Estimate:
        x0 = estimate.x0.clamp(self.low, self.high)
        return Estimate(x0, view.degradation.infer(view.x_t, x0, view.t, view.state))
