"""DDNM and DDNM+: Wang et al. 2022, arXiv 2212.00490."""

import torch
from torch import Tensor

from configs import UserError
from degradations.base import Estimate
from degradations.decomposition import Decomposition
from degradations.gaussian import Gaussian
from samplers.guidance.base import EstimateTransform, GuidanceInput


class DDNM(EstimateTransform):
    """What was measured takes the place of what the model believes about it, and only that; no gradient is needed.

    Without noise (eq. 13): ``x0 - A^+ (A x0 - y)``, so that the images explain y exactly. With noise sigma_y (DDNM+,
    section 3.3), for each singular value S of A, with alpha', sigma' at the time s of the next image:

    * ``sigma' >= alpha' sigma_y / S``: corrected wholly; the next image gets the noise
      ``sqrt(sigma'^2 - (alpha' sigma_y / S)^2) n`` beside that which comes with y, so that it has sigma' in all;
    * else a share ``S sigma' sqrt(1 - eta^2) / (alpha' sigma_y)`` of the correction, and the noise ``eta sigma' n``;
    * directions that are not measured stay, with the noise ``sigma' (sqrt(1 - eta^2) z + eta n)``.

    The estimate keeps its own state but for this new noise: it is not inferred from the corrected x0. So the sampler
    shall be ``ddim`` without noise of its own.

    :param eta: share of new noise, in [0, 1]; the paper's is 0.85
    :raises UserError: for an eta outside of [0, 1], a cold model, an operator without known singular values, or if
        nothing was measured
    """

    needs_measurement = True

    def __init__(self, eta: float = 0.85):
        if not 0 <= eta <= 1:
            raise UserError(f"eta={eta:g}", "a share of the noise in [0, 1]", "guidance.ddnm.eta=0.85")
        self.eta = eta

    def __call__(self, estimate: Estimate, base: Estimate, view: GuidanceInput) -> Estimate:
        if not isinstance(view.degradation, Gaussian):
            raise UserError(f"guidance=ddnm with the degradation {type(view.degradation).__name__}",
                            "a hot model", "guidance=none")
        assert view.step is not None
        measurement, step = view.step.known, view.step
        found = measurement.decomposition
        s = view.x_t.new_full((1,), step.s, dtype=torch.float64)
        alpha, sigma = (float(value) for value in view.degradation.schedule(s))
        share, kept, new = self.plan(found, alpha, sigma, measurement.noise)
        inverse = torch.where(found.measured, share / found.values.where(found.measured, 1), 0)
        x0 = estimate.x0 + found.v(inverse * found.ut(measurement.residual(estimate.x0)))
        if (not self.eta and not measurement.noise) or not sigma:
            return Estimate(x0, estimate.state)
        z, n = estimate.state["z"], step.streams.normal("ddnm", view.x_t.shape)
        mixed = found.v(kept * found.vt(z) + new * found.vt(n))
        return Estimate(x0, estimate.state.replace(z=mixed))

    def plan(self, found: Decomposition, alpha: float, sigma: float, noise: float) -> tuple[Tensor, Tensor, Tensor]:
        """For each direction: the share of the correction, and those of the old and of the new noise."""
        free = (1 - self.eta**2) ** 0.5
        values, one = found.values, torch.ones_like(found.values)
        kept, new = free * one, self.eta * one
        if not noise:
            return one, kept, new
        least = alpha * noise / values.where(found.measured, 1)
        whole, part = found.measured & (sigma >= least), found.measured & (sigma < least)
        share = torch.where(part, sigma * free / least, one)
        rest = ((sigma**2 - least**2).clamp(min=0)).sqrt() / sigma if sigma else 0 * one
        return share, kept.where(~found.measured, 0), torch.where(whole, rest, new)
