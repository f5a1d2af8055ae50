"""Asyrp, editing in h-space: Kwon et al. 2022, arXiv 2210.10960."""

import math
from collections.abc import Sequence

from configs import UserError
from degradations.base import Estimate
from models.shifted import ShiftedNet, ask_shift
from samplers.guidance.base import Branch, GuidanceInput, Term


class Asyrp(Term):
    """``x0_hat + x0_hat(h + a f(h)) - x0_hat(h)`` for ``t >= t_edit``, and the state as it is (equation 5: asymmetric,
    for the same shift of both would nearly cancel). Of a run of :class:`models.shifted.ShiftedNet`, which has learned
    f.

    :param strength: a; 1 is as trained, -1 the other way, 0 is off and costs nothing
    :param t_edit: the last time of the edit, in [0, 1]
    :raises UserError: for other values, and another network
    """

    def __init__(self, strength: float = 1.0, t_edit: float = 0.5):
        if not math.isfinite(strength):
            raise UserError(f"guidance.asyrp.strength={strength}", "a number", "guidance.asyrp.strength=1.0")
        if not 0 <= t_edit <= 1:
            raise UserError(f"guidance.asyrp.t_edit={t_edit:g}", "a time in [0, 1]", "guidance.asyrp.t_edit=0.5")
        self.strength, self.t_edit = strength, t_edit

    def branches(self, view: GuidanceInput) -> Sequence[Branch]:
        network = getattr(view.restorer, "network", None)
        if not isinstance(network, ShiftedNet):
            raise UserError(f"guidance=asyrp with {type(network or view.restorer).__name__}, which has learned no "
                            "shift", "a run that has", "python train.py experiment=asyrp_scenes begin.base.run=RUN")
        if self.strength == 0 or (view.step is not None and view.step.t < self.t_edit):
            return []
        return [Branch(ask_shift(view.ctx, self.strength, view.x_t))]

    def delta(self, base: Estimate, outs: Sequence[Estimate], view: GuidanceInput) -> Estimate | None:
        return Estimate(outs[0].x0 - base.x0, 0 * base.state) if outs else None
