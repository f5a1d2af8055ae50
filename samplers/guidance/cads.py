"""Condition-annealed sampling: Sadat et al. 2023, arXiv 2310.17347."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from configs import UserError
from degradations.shapes import expand_like, flatten_rows
from models.conditioning import ConditionEncoder
from models.context import Context
from samplers.guidance.base import ConditionTransform
from samplers.guidance.schedules import check_ramp, ramp
from samplers.protocol import Step


class CADS(ConditionTransform):
    """Noise on the condition, more of it the earlier in the run, for more diverse samples (algorithm 1):

    ``y' = sqrt(gamma) y + s sqrt(1 - gamma) n``, brought back to the mean and spread of y, and mixed,
    ``psi rescaled + (1 - psi) y'``. ``gamma`` is 1 for ``t <= tau1``, where y is returned as it is, and 0 for
    ``t >= tau2``. The noise is new at each step.

    y is what a signal's own encoding is: the vector of a class before it joins those of the others, the tokens of a
    text, the map of an image, also one for a control branch alone. Mean and spread are those of each sample, and of the
    real tokens alone; pads stay as they are. A signal that was not given has no noise, nor has ``ctx.null``, nor what
    other runs are told; the contexts of ``ctx.nulls`` have the noise of the condition itself. A context that does not
    know its parts is one signal.

    :param scale: s
    :param tau1: time below which the condition is whole
    :param tau2: time above which it is noise alone
    :param psi: share of the rescaled condition, in [0, 1]; less is more diverse and less safe
    :param signals: names of the signals that are disturbed; None takes all that guidance can take away
    :param power: gamma is the ramp to this power; 1 is the paper's choice
    :raises UserError: for a signal that the model does not have
    """

    def __init__(self, scale: float = 0.1, tau1: float = 0.6, tau2: float = 0.9, psi: float = 1.0,
                 signals: Sequence[str] | None = None, power: float = 1.0):
        check_ramp(tau1, tau2)
        if not 0 <= psi <= 1:
            raise UserError(f"CADS with psi={psi:g}", "a share in [0, 1]", "psi=1.0")
        self.scale, self.tau1, self.tau2, self.psi = scale, tau1, tau2, psi
        self.signals, self.power = signals if signals is None else tuple(signals), power

    def check(self, encoder: ConditionEncoder, dropped: Collection[frozenset[str]] | None) -> None:
        self._refuse_unknown(encoder.signals)

    def _refuse_unknown(self, known: Iterable[str]) -> None:
        known = list(known)
        for name in self.signals or ():
            if name not in known:
                raise UserError(f"guidance.cads.signals with {name}, which is no signal of this model",
                                f"names among {', '.join(known) or 'none: it is unconditional'}, or null for all",
                                "guidance.cads.signals=null")

    def gamma(self, t: float) -> float:
        """Share of the condition at time t."""
        return ramp(t, self.tau1, self.tau2) ** self.power

    def __call__(self, ctx: Context, step: Step | None) -> Context:
        if step is None:
            raise ValueError("CADS needs the step of a loop")
        gamma = self.gamma(step.t)
        if gamma == 1:
            return ctx
        self._refuse_unknown(ctx.parts)
        if not ctx.parts:
            return self.disturb(ctx, step, gamma, Counter())
        signals = ctx.removable if self.signals is None else [name for name in self.signals if name in ctx.raw]
        changed, before = {}, Counter()
        for name, part in ctx.parts.items():
            if name in signals:
                changed[name] = self.disturb(part, step, gamma, before)
            before.update(emb=part.emb is not None, tokens=len(part.tokens), spatial=part.spatial is not None,
                          extra=len(part.extra))
        return ctx.change_parts(changed)

    def disturb(self, part: Context, step: Step, gamma: float, before: Counter[str]) -> Context:
        """The context of one signal with noise.

        :param before: numbers of tensors in each field of the signals before it, which are part of the noise's key
        """

        def noisy(y: Tensor, field: str, i: int = 0, real: Tensor | None = None) -> Tensor:
            noise = step.streams.normal(f"cads/{field}/{before[field] + i}", y.shape)
            return self.mixed(y.float(), noise, gamma, real).to(y.dtype)

        return part.replace(
            emb=None if part.emb is None else noisy(part.emb, "emb"),
            tokens={key: noisy(tokens, "tokens", i, part.mask.get(key))
                    for i, (key, tokens) in enumerate(part.tokens.items())},
            spatial=None if part.spatial is None else noisy(part.spatial, "spatial"),
            extra={key: noisy(value, "extra", i) if value.is_floating_point() else value
                   for i, (key, value) in enumerate(part.extra.items())})

    def mixed(self, y: Float[Tensor, "b *rest"], noise: Float[Tensor, "b *rest"], gamma: float,
              real: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b *rest"]:
        """The condition with noise; where nothing is left that could be rescaled, its mean.

        :param real: which tokens of y (b, l, d) are no pads; None for all
        """
        noisy = gamma**0.5 * y + self.scale * (1 - gamma) ** 0.5 * noise
        if self.psi != 0:
            (mean, std), (mean_y, std_y) = _moments(noisy, real), _moments(y, real)
            rescaled = (noisy - mean) / std.where(std > 0, 1) * std_y + mean_y
            noisy = self.psi * rescaled + (1 - self.psi) * noisy
        return noisy if real is None else torch.where(real[..., None], noisy, y)


def _moments(y: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    if real is None:
        rows = flatten_rows(y)
        return expand_like(rows.mean(dim=1), y), expand_like(rows.std(dim=1, correction=0), y)
    weight = real[..., None] / (real.sum(dim=1) * y.shape[2])[:, None, None]
    mean = (y * weight).sum(dim=(1, 2), keepdim=True)
    return mean, ((y - mean).square() * weight).sum(dim=(1, 2), keepdim=True).sqrt()
