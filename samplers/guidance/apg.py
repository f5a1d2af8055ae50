"""Adaptive projected guidance: Sadat et al. 2024, arXiv 2410.02416."""

from collections.abc import Sequence

from torch import Tensor

from degradations.base import Estimate
from degradations.shapes import expand_like, flatten_rows
from degradations.types import Images
from samplers.guidance.base import GuidanceInput
from samplers.guidance.cfg import CFG
from samplers.guidance.scales import Scale
from samplers.guidance.schedules import ScaleSchedule
from samplers.guidance.spaces import check_space, from_space, to_space
from samplers.protocol import Restorer


class APG(CFG):
    """Classifier-free guidance of which the part along the estimate, which saturates, is turned down:
    ``estimate + (w - 1) (d_across + eta d_along)``, ``d = estimate - estimate_null`` with a momentum over the steps,
    ``d + beta (last d)``, cut to the norm r (algorithm 1; the paper's w is ours).

    ``eta = 1``, no momentum and no norm is CFG.

    :param scale: w; 1 is off and costs nothing
    :param eta: weight of the part along the estimate
    :param norm: r, the norm at which d is cut, over all values of a sample; null cuts nothing
    :param momentum: beta, usually negative; 0 remembers nothing
    :param space: in which it is computed, see :mod:`samplers.guidance.spaces`; the paper's is x0
    :param schedule: of ``w - 1`` over the run
    :param unconditional: see :class:`samplers.guidance.cfg.CFG`
    """

    def __init__(self, scale: Scale = 2.0, eta: float = 0.0, norm: float | None = 15.0, momentum: float = -0.5,
                 space: str = "x0", schedule: ScaleSchedule | None = None, unconditional: Restorer | None = None):
        super().__init__(scale, schedule, unconditional)
        self.eta, self.norm, self.momentum, self.space = eta, norm, momentum, check_space(space)

    def delta(self, base: Estimate, outs: Sequence[Estimate], view: GuidanceInput) -> Estimate | None:
        if not outs:
            return None
        plain = to_space(base, self.space, view)
        d = self.remembered(plain - to_space(outs[0], self.space, view), view)
        if self.norm is not None:
            d = d * expand_like((self.norm / flatten_rows(d).norm(dim=1).clamp(min=1e-12)).clamp(max=1), d)
        length = flatten_rows(plain).square().sum(dim=1).clamp(min=1e-24)
        along = expand_like((flatten_rows(d) * flatten_rows(plain)).sum(dim=1) / length, plain) * plain
        change = d - along + self.eta * along
        k = self.strength(view)
        k = expand_like(k, plain) if isinstance(k, Tensor) else k
        return from_space(plain + k * change, self.space, view, base) - base

    def remembered(self, d: Images, view: GuidanceInput) -> Images:
        """d with the momentum of the steps before; a second evaluation within a step does not count as one."""
        if self.momentum == 0 or view.step is None:
            return d
        memory, i = view.step.memory, view.step.i
        before, now = memory.get(self, ((-1, None), (-1, None)))
        last = before[1] if now[0] == i else now[1]
        total = d if last is None else d + self.momentum * last
        memory[self] = (before if now[0] == i else now, (i, total.detach()))
        return total
