"""CFG-Zero*: Fan et al. 2025, arXiv 2503.18886."""

from collections.abc import Sequence

import torch
from torch import Tensor

from degradations.base import Estimate
from degradations.shapes import expand_like, flatten_rows
from samplers.guidance.base import GuidanceInput
from samplers.guidance.cfg import CFG
from samplers.guidance.scales import Scale
from samplers.guidance.schedules import ScaleSchedule
from samplers.guidance.spaces import check_space, from_space, to_space
from samplers.protocol import Restorer


class CFGZero(CFG):
    """Classifier-free guidance from a null that is scaled to the conditional estimate:
    ``a null + w (conditional - a null)``, ``a = <conditional, null> / |null|^2`` for each sample. In the first steps
    the answer is zero, in the same space.

    :param scale: w; 1 is off and costs nothing
    :param zero_steps: number of the first steps that stand still
    :param space: see :mod:`samplers.guidance.spaces`; the paper's is the velocity, ``flow``
    :param schedule: of ``w - 1`` over the run
    :param unconditional: see :class:`samplers.guidance.cfg.CFG`
    """

    def __init__(self, scale: Scale = 2.0, zero_steps: int = 1, space: str = "flow",
                 schedule: ScaleSchedule | None = None, unconditional: Restorer | None = None):
        super().__init__(scale, schedule, unconditional)
        self.zero_steps, self.space = zero_steps, check_space(space)

    def delta(self, base: Estimate, outs: Sequence[Estimate], view: GuidanceInput) -> Estimate | None:
        if not outs:
            return None
        conditional, null = (to_space(e, self.space, view) for e in (base, outs[0]))
        if view.step is not None and view.step.i < self.zero_steps:
            return from_space(torch.zeros_like(conditional), self.space, view, base) - base
        flat, flat_null = flatten_rows(conditional), flatten_rows(null)
        a = (flat * flat_null).sum(dim=1) / (flat_null.square().sum(dim=1) + 1e-8)
        k = self.strength(view)
        k = expand_like(k, null) if isinstance(k, Tensor) else k
        guided = conditional + k * (conditional - expand_like(a, null) * null)
        return from_space(guided, self.space, view, base) - base
