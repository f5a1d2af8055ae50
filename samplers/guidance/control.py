"""How strongly a controlled network follows its hint, at which depth, and when."""

from configs import UserError
from models.context import Context
from models.control import STRENGTH
from samplers.guidance.base import ConditionTransform
from samplers.protocol import Step


class ControlStrength(ConditionTransform):
    """What :class:`models.control.ControlledNet` adds to feature map i of 0 (the shallowest) to n (the middle), times
    ``scale decay^(n - i)``. With ``decay`` 0.825 and ``guess`` it is the "guess mode" of the official code of Zhang et
    al. 2023 (arXiv 2302.05543), for a hint with an empty caption.

    :param scale: 1 is as trained, 0 the base alone, bit for bit
    :param decay: in (0, 1]
    :param begin: the hint is followed from this time on
    :param end: down to this time
    :param guess: the null of guidance does not see the hint, so that it is amplified with the other signals
    :raises UserError: for other values, or a model without a hint
    """

    def __init__(self, scale: float = 1.0, decay: float = 1.0, begin: float = 1.0, end: float = 0.0,
                 guess: bool = False):
        if not 0 < decay <= 1:
            raise UserError(f"guidance.control.decay={decay:g}", "a factor in (0, 1]", "guidance.control.decay=0.825")
        if not 0 <= end <= begin <= 1:
            raise UserError(f"a hint from t={begin:g} to {end:g}", "times in [0, 1], the first the higher one",
                            "guidance.control.begin=1 guidance.control.end=0")
        self.scale, self.decay, self.begin, self.end, self.guess = scale, decay, begin, end, guess

    def __call__(self, ctx: Context, step: Step | None) -> Context:
        if not ctx.extra:
            raise UserError("guidance=control with a model without a hint", "a run with a hint, such as "
                            "experiment=control_scenes_edges", "guidance=cfg")
        on = step is None or self.end <= step.t <= self.begin
        return self._tell(ctx, self.scale if on else 0.0)

    def _tell(self, ctx: Context, scale: float) -> Context:
        rows = next(iter(ctx.extra.values()))
        strength = Context(extra={STRENGTH: rows.new_tensor([scale, self.decay]).expand(len(rows), 2)})
        untold = 0.0 if self.guess else scale
        return ctx.replace(extra={**ctx.extra, **strength.extra},
                           parts={**ctx.parts, STRENGTH: strength} if ctx.parts else {},
                           null=None if ctx.null is None else self._tell(ctx.null, untold),
                           nulls={name: self._tell(null, untold) for name, null in ctx.nulls.items()})
