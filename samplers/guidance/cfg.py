"""Classifier-free guidance: Ho and Salimans 2022, arXiv 2207.12598."""

from collections.abc import Collection, Sequence

from configs import UserError
from models.conditioning import ConditionEncoder
from models.context import Context
from samplers.guidance.base import Branch, GuidanceInput, GuidingModel
from samplers.guidance.scales import Contrast, Scale
from samplers.guidance.schedules import ScaleSchedule
from samplers.protocol import Restorer


class CFG(Contrast):
    """``estimate_null + w (estimate - estimate_null)``, on the clean image and the state alike.

    :param scale: w; 1 is off and costs nothing, 0 the unconditional estimate. (The paper's w is ours minus 1.)
    :param schedule: of ``w - 1`` over the run
    :param unconditional: what gives the unconditional estimate; None is the guided restorer itself, told nothing
    :raises UserError: if the condition has no null, because the model is unconditional, or if its training has not seen
        the null
    """

    neutral = 1.0

    def __init__(self, scale: Scale = 2.0, schedule: ScaleSchedule | None = None,
                 unconditional: Restorer | None = None):
        super().__init__(scale, schedule)
        self.unconditional = unconditional

    @property
    def models(self) -> Sequence[GuidingModel]:
        return [self.unconditional] if isinstance(self.unconditional, GuidingModel) else []

    def check(self, encoder: ConditionEncoder, dropped: Collection[frozenset[str]] | None) -> None:
        if self.unconditional is None and not self.neutral_always:
            require_seen(encoder.droppable, encoder, dropped, "guidance=none")

    @property
    def neutral_always(self) -> bool:
        """Whether it is off at every step."""
        return self.schedule is None and set(self.scales) == {self.neutral}

    def branch(self, view: GuidanceInput) -> Branch:
        return Branch(require_null(view.ctx), restorer=self.unconditional)


def require_null(ctx: Context) -> Context:
    """The context without condition.

    :raises UserError: if there is none
    """
    if ctx.null is None:
        raise UserError("guidance=cfg with an unconditional model", "a model trained with a condition",
                        "guidance=none or guidance=pag, or train with condition=label")
    return ctx.null


def require_seen(names: Collection[str], encoder: ConditionEncoder, dropped: Collection[frozenset[str]] | None,
                 instead: str) -> None:
    """Refuse a difference to a context that training has never seen: the one without these signals.

    :param dropped: the sets of signals that training has dropped together; None if that is not known
    :param instead: guidance that needs less
    :raises UserError: naming the event that ``objective.drop`` lacks
    """
    if not names or dropped is None or frozenset(names) in dropped:
        return
    droppable = encoder.droppable
    event = "all" if set(names) == set(droppable) else "+".join(name for name in droppable if name in names)
    raise UserError(f"guidance that asks the model without {' and '.join(names)}, which its training never did",
                    f"a training whose objective.drop has a share for the event {event}",
                    f"objective.drop='{{{event}: 0.1}}' in training, or {instead}")
