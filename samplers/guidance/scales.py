"""Terms with a scale: a number, or one per sample, on a schedule."""

from collections.abc import Sequence

import torch
from torch import Tensor

from configs import UserError
from degradations.base import Estimate
from samplers.guidance.base import Branch, GuidanceInput, Term
from samplers.guidance.schedules import ScaleSchedule

Scale = float | Sequence[float] | Tensor
"""A number for all samples, or several, of which sample i takes the one at i modulo their count."""


class Scaled(Term):
    """A term whose strength is ``k = scale - neutral``, at time t what the schedule makes of it.

    :cvar neutral: the scale that is off
    :param scale: a number or one per sample
    :param schedule: of the strength over the run; None is constant
    :raises UserError: for a scale that is no number
    """

    neutral: float = 0.0

    def __init__(self, scale: Scale, schedule: ScaleSchedule | None = None):
        values = scale.tolist() if isinstance(scale, Tensor) else scale
        values = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]
        if not values or not all(type(value) in (int, float) for value in values):
            raise UserError(f"scale={scale} of {type(self).__name__}", "a number, or one per sample",
                            "scale=2.0, or scale=[1.0,2.0,4.0]")
        self.scale, self.scales, self.schedule = scale, tuple(map(float, values)), schedule

    def strength(self, view: GuidanceInput) -> float | Tensor:
        """k at this step: a number, or one per row (B,); 0.0, decided without a look at the device, is off for all.

        :raises ValueError: for a schedule outside of a loop, where there is no step
        """
        if self.schedule is not None and view.step is None:
            raise ValueError("a guidance schedule needs the step of a loop")
        ks = [value - self.neutral for value in self.scales]
        if self.schedule is not None and view.step is not None:
            ks = [self.schedule(k, view.step.t) for k in ks]
        if len(ks) == 1:
            return ks[0]
        n = view.x_t.shape[0]
        who = view.step.streams.indices if view.step is not None else range(n)
        mine = [ks[who[row % len(who)] % len(ks)] for row in range(n)]
        return torch.tensor(mine, device=view.x_t.device) if any(mine) else 0.0

    def off(self, view: GuidanceInput) -> bool:
        """Whether nothing is to be added at this step."""
        k = self.strength(view)
        return isinstance(k, float) and k == 0


class Contrast(Scaled):
    """``k (base - branch)`` for x0 and state alike: away from what a worse restorer says."""

    def branch(self, view: GuidanceInput) -> Branch | None:
        """The worse evaluation; None if it would be the base."""
        raise NotImplementedError

    def branches(self, view: GuidanceInput) -> Sequence[Branch]:
        branch = None if self.off(view) else self.branch(view)
        return () if branch is None else [branch]

    def delta(self, base: Estimate, outs: Sequence[Estimate], view: GuidanceInput) -> Estimate | None:
        return self.strength(view) * (base - outs[0]) if outs else None
