"""Classifier-free guidance of several signals: Brooks et al. 2023 (InstructPix2Pix), arXiv 2211.09800, equation 3."""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from torch import Tensor

from configs import UserError
from configs.registry import closest
from degradations.base import Estimate
from models.conditioning import ConditionEncoder
from models.context import Context
from samplers.guidance.base import Branch, GuidanceInput, Term
from samplers.guidance.cfg import CFG, require_null, require_seen
from samplers.guidance.scales import Scale
from samplers.guidance.schedules import ScaleSchedule


class MultiCFG(Term):
    """``e(c_0) + sum_j w_j (e(c_j) - e(c_{j-1}))`` along a chain of contexts, from nothing given, c_0, to all signals,
    c_n, each step of which gives one more. On the clean image and the state alike. The paper's is
    ``{hint: w_I, text: w_T}``.

    The order matters: ``{hint: 1.5, text: 3.0}`` takes the difference of the hint without the text, and that of the
    text with the hint. Equal scales are ordinary classifier-free guidance, bit for bit, whatever the order. A scale 1
    is off; a context between equal scales is not evaluated. Signals that were not asked for are left out of the chain.

    :param scales: w by signal, in the order of the chain; each signal that can be dropped is named once, those joined
        by ``+`` are given in one step: ``{hint: 1.5, text+label: 3.0}``. A number is that of all of them together
    :param schedule: of every ``w - 1`` over the run
    :raises UserError: for signals that are unknown, left out or named twice, if the model is unconditional, or if its
        training has not seen a context of the chain
    """

    def __init__(self, scales: Scale | Mapping[str, Scale] = 2.0, schedule: ScaleSchedule | None = None):
        groups = scales if isinstance(scales, Mapping) else {"all": scales}
        self.weights = {tuple(group.split("+")): CFG(scale, schedule) for group, scale in groups.items()}

    def check(self, encoder: ConditionEncoder, dropped: Collection[frozenset[str]] | None) -> None:
        missing, before = encoder.droppable, None
        if ("all",) not in self.weights:
            refuse_names([name for group in self.weights for name in group], missing)
        for group, weight in self.weights.items():
            if before is None and not weight.neutral_always:
                require_seen(missing, encoder, dropped, "guidance=none")
            if before is not None and weight.scales != before.scales:
                require_seen(missing, encoder, dropped, "guidance=cfg")
            missing, before = [name for name in missing if name not in group], weight

    def differences(self, view: GuidanceInput) -> list[tuple[float | Tensor, Context, Context]]:
        """``(w_j - 1, c_{j-1}, c_j)`` of the signals that were given: neighbours of the same scale as one, and without
        those that are off at this step."""
        strengths = {weight.scales: weight.strength(view) for weight in self.weights.values()}
        missing, steps = set(view.ctx.removable), []
        for group, weight in self.weights.items():
            given = missing if group == ("all",) else missing.intersection(group)
            if not given and group != ("all",):
                continue
            k, missing = strengths[weight.scales], missing - given
            if steps and _is_same(k, steps[-1][0]):
                steps.pop()
            steps.append((k, missing))
        if all(_is_same(k, 0.0) for k, _ in steps):
            return []
        contexts = [require_null(view.ctx), *(view.ctx.without(names) for _, names in steps)]
        return [(k, low, high) for (k, _), (low, high) in zip(steps, pairwise(contexts), strict=True)
                if not _is_same(k, 0.0)]

    def branches(self, view: GuidanceInput) -> Sequence[Branch]:
        return [Branch(ctx) for ctx in self.contexts(view)]

    def contexts(self, view: GuidanceInput) -> list[Context]:
        """Those that are evaluated besides the condition itself."""
        ends = {id(ctx): ctx for _, *ends in self.differences(view) for ctx in ends if ctx is not view.ctx}
        return list(ends.values())

    def delta(self, base: Estimate, outs: Sequence[Estimate], view: GuidanceInput) -> Estimate | None:
        estimates = {id(view.ctx): base} | {id(ctx): out for ctx, out in zip(self.contexts(view), outs, strict=True)}
        total = None
        for k, low, high in self.differences(view):
            change = k * (estimates[id(high)] - estimates[id(low)])
            total = change if total is None else total + change
        return total


def _is_same(a: float | Tensor, b: float | Tensor) -> bool:
    """Decided without a look at the device."""
    return a is b or (isinstance(a, float) and isinstance(b, float) and a == b)


def refuse_names(names: Sequence[str], droppable: Sequence[str]) -> None:
    """Refuse names that are not those of the signals, each once.

    :param droppable: the signals that can be dropped
    :raises UserError: naming the first
    """
    example = f"guidance.multi_cfg.scales='{{{', '.join(f'{name}: 2.0' for name in droppable)}}}'"
    wanted = f"each signal that can be dropped once: {', '.join(droppable) or 'this model has none'}"
    for name in dict.fromkeys([*names, *droppable]):
        if name not in droppable:
            raise UserError(f"guidance.multi_cfg.scales with {name}, which is no such signal of this model", wanted,
                            f"{closest(name, droppable)}" if droppable else "guidance=none")
        if names.count(name) != 1:
            raise UserError(f"guidance.multi_cfg.scales {'without' if name not in names else 'with two scales of'} "
                            f"{name}", wanted, example)
