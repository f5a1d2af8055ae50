"""Self-attention guidance: Hong et al. 2022, arXiv 2210.00939."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from configs import UserError
from degradations.affine import Affine
from degradations.base import Estimate
from models.attention import AttentionCall, AttentionHook
from samplers.guidance.base import GuidanceInput
from samplers.guidance.blur import blur_maps
from samplers.guidance.scales import Scale, Scaled
from samplers.guidance.schedules import ScaleSchedule
from samplers.guidance.sites import matching, weights
from samplers.guidance.spaces import from_space


class SAG(Scaled):
    """``estimate + s (estimate - estimate_blurred)``: away from what the restorer says where the places that it attends
    to are blurred away.

    From the base come x0, z and the attention map of one site; the places whose attention, summed over the queries and
    averaged over the heads, is above 1 are blurred in x0, and ``x_t + D(blurred, t, z) - D(x0, t, z)``, for noise the
    same as noising anew with the estimated z, is restored in a second evaluation, which has to wait for the first. For
    an affine degradation the difference is taken in z, as in the paper, else in x0.

    :param scale: s; 0 is off and costs nothing
    :param site: the self-attention that is looked at, see :func:`samplers.guidance.sites.matching`; of several the last
    :param sigma: of the blur in pixels; the paper has 9 at 256 px
    :param size: of its kernel, odd; the paper has 31
    :param schedule: of s over the run
    """

    def __init__(self, scale: Scale = 0.75, site: str = "mid", sigma: float = 1.0, size: int = 9,
                 schedule: ScaleSchedule | None = None):
        if sigma <= 0 or size < 1 or size % 2 == 0:
            raise UserError(f"SAG with sigma={sigma:g} and size={size}", "sigma above 0 and an odd size",
                            "sigma=1.0 and size=9")
        super().__init__(scale, schedule)
        self.site, self.sigma, self.size = site, sigma, size

    def watch(self, view: GuidanceInput) -> AttentionHook | None:
        if self.off(view):
            return None
        if view.step is None:
            raise ValueError("SAG needs the step of a loop, where it remembers what it saw")
        name, memory = matching(view.sites, [self.site])[-1], view.step.memory

        def look(call: AttentionCall) -> Tensor | None:
            if call.site.name == name:
                memory[self] = weights(call).mean(dim=1).sum(dim=1).reshape(-1, *call.size)
            return None

        return look

    def delta(self, base: Estimate, outs: Sequence[Estimate], view: GuidanceInput) -> Estimate | None:
        if self.off(view) or view.step is None:
            return None
        attention = view.step.memory.pop(self)
        d, x0 = view.degradation, base.x0
        masked = torch.lerp(x0, blur_maps(x0, self.sigma, self.size), self.mask(attention, x0))
        x_t = view.x_t + d.forward(masked, view.t, base.state) - d.forward(x0, view.t, base.state)
        worse = view.restorer(x_t, view.t, view.ctx, state=base.state, step=view.step)
        delta = self.strength(view) * (base - worse)
        if not isinstance(d, Affine):
            return delta
        # The two were asked about different x_t: only one of image and state can be taken over, the other follows.
        return from_space(base.state["z"] + delta.state["z"], "eps", view, base) - base

    @staticmethod
    def mask(attention: Float[Tensor, "b y x"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """1 where the image is attended to more than on average, 0 elsewhere."""
        return F.interpolate((attention > 1).to(x.dtype)[:, None], size=x.shape[2:], mode="nearest")
