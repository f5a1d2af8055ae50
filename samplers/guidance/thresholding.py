"""Dynamic thresholding: Saharia et al. 2022 (Imagen), arXiv 2205.11487, section 2.3."""

import torch

from configs import UserError
from degradations.base import Estimate
from degradations.shapes import expand_like, flatten_rows
from samplers.guidance.base import EstimateTransform, GuidanceInput
from samplers.guidance.spaces import from_space


class DynamicThreshold(EstimateTransform):
    """x0 cut to [-q, q] and divided by q, the share ``percentile`` of ``|x0|`` in each sample, but at least 1: values
    within [-1, 1] stay as they are. In x0 space, for pixel models.

    :param percentile: in (0, 1]
    :param max_value: q is at most this; null for no bound
    """

    pixels = True

    def __init__(self, percentile: float = 0.995, max_value: float | None = None):
        if not 0 < percentile <= 1:
            raise UserError(f"percentile={percentile:g}", "a share in (0, 1]", "percentile=0.995")
        self.percentile, self.max_value = percentile, max_value

    def __call__(self, estimate: Estimate, base: Estimate, view: GuidanceInput) -> Estimate:
        x0 = estimate.x0
        q = torch.quantile(flatten_rows(x0).abs(), self.percentile, dim=1).clamp(min=1, max=self.max_value)
        q = expand_like(q, x0)
        return from_space(x0.clamp(-q, q) / q, "x0", view, estimate)
