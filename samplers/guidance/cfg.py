"""Classifier-free guidance: Ho and Salimans 2022, arXiv 2207.12598."""

from collections.abc import Sequence

from configs import UserError
from degradations.base import Estimate
from models.conditioning import Context
from samplers.base import Step
from samplers.guidance.base import Branch, Term, View


class CFG(Term):
    """``estimate_null + w (estimate - estimate_null)``, on the clean image and the state alike.

    :param scale: w; 1 is off and costs nothing, 0 the unconditional estimate. (The paper's w is ours minus 1.)
    :raises UserError: if the condition has no null, because the model is unconditional
    """

    def __init__(self, scale: float = 2.0):
        self.scale = scale

    def branches(self, ctx: Context, step: Step | None) -> Sequence[Branch]:
        if self.scale == 1:
            return ()
        if "null" not in ctx.alt:
            raise UserError("guidance=cfg with an unconditional model", "a model trained with a condition",
                            "guidance=none, or train with condition=label")
        return [Branch(ctx.alt["null"])]

    def delta(self, base: Estimate, outs: Sequence[Estimate], view: View) -> Estimate | None:
        return (self.scale - 1) * (base - outs[0]) if outs else None
