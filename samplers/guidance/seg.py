"""Smoothed-energy guidance: Hong 2024, arXiv 2408.00760."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

from einops import rearrange
from torch import Tensor

from configs import UserError
from models.attention import AttentionCall
from samplers.guidance.base import Branch, GuidanceInput
from samplers.guidance.blur import blur_maps
from samplers.guidance.scales import Contrast, Scale
from samplers.guidance.schedules import ScaleSchedule
from samplers.guidance.sites import matching


@dataclass(frozen=True)
class Smoothed:
    """The hook of the smoothed evaluation: attention with blurred queries at the named sites."""

    names: tuple[str, ...]
    sigma: float

    def __call__(self, call: AttentionCall) -> Tensor | None:
        if call.site.name not in self.names:
            return None
        if self.sigma == inf:
            return replace(call, q=call.q.mean(dim=2, keepdim=True).expand_as(call.q)).rest()
        heads, (height, width) = call.q.shape[1], call.size
        q = rearrange(call.q, "b h (y x) d -> b (h d) y x", y=height, x=width)
        q = blur_maps(q, self.sigma, ceil(6 * self.sigma) // 2 * 2 + 1)
        return replace(call, q=rearrange(q, "b (h d) y x -> b h (y x) d", h=heads)).rest()


class SEG(Contrast):
    """``estimate + s (estimate - estimate_smoothed)``, the latter with the queries of some self-attentions blurred over
    the image. The scale stays, sigma is what is tuned.

    :param scale: s; 0 is off and costs nothing
    :param sigma: of the blur, in pixels of the feature map; ``.inf`` takes the mean of the queries, 0 changes nothing
        and costs nothing
    :param sites: see :func:`samplers.guidance.sites.matching`
    :param schedule: of s over the run
    """

    def __init__(self, scale: Scale = 3.0, sigma: float = inf, sites: Sequence[str] = ("mid",),
                 schedule: ScaleSchedule | None = None):
        if sigma < 0:
            raise UserError(f"SEG with sigma={sigma:g}", "0 or more", "sigma=.inf")
        super().__init__(scale, schedule)
        self.sigma, self.sites = sigma, tuple(sites)

    def branch(self, view: GuidanceInput) -> Branch | None:
        names = matching(view.sites, self.sites)
        return Branch(view.ctx, Smoothed(names, self.sigma)) if names and self.sigma else None
