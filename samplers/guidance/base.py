"""Guidance: a restorer around a restorer. Every sampler, hot or cold, takes every guidance.

Four kinds of part, in any number and order:

* :class:`Term`: extra evaluations (another context, attention hook or network) and what they add to the estimate;
* :class:`ConditionTransform`: changes the encoded condition before the network sees it;
* :class:`EstimateTransform`: a non-linear last step;
* :class:`Hook`: answers at the network's attention, in every branch or in those that carry the condition.

A part may hold a :class:`GuidingModel`, another trained model.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from degradations.base import Degradation, Estimate, State
from models.attention import AttentionHook, AttentionSite, chain, rows
from models.conditioning import ConditionEncoder
from models.context import Context
from models.readers import Reader
from samplers.protocol import Plan, Restorer, Step

ROWS = {"cpu": 8}
"""Rows of a batched evaluation up to which branches run together; more rows only cost cache on a CPU. Measured by
``scripts/benchmark.py guidance``: with 12, a network of 9 million parameters at 32 px is a fifth slower than apart; a
small one at 16 px would gain another tenth with 24."""
MANY_ROWS = 512
BASE = "base"
"""In ``step.memory``: the estimate without guidance, for callbacks."""


@dataclass(frozen=True)
class Branch:
    """One evaluation: a context, an attention hook, and the restorer (None: the guided one)."""

    ctx: Context
    attn: AttentionHook | None = None
    restorer: Restorer | None = None


@dataclass(frozen=True)
class GuidanceInput:
    """What a term may look at, and evaluate again.

    :ivar ctx: the condition, transformed; ``ctx.null`` is the one without, ``ctx.raw`` the condition as it was given
    """

    restorer: Restorer
    degradation: Degradation
    x_t: Tensor
    t: Tensor
    ctx: Context
    state: State
    step: Step | None

    @property
    def sites(self) -> Sequence[AttentionSite]:
        """The network's places of attention, in the order of their calls, as far as the restorer knows them."""
        return getattr(self.restorer, "sites", ())


class Part:
    """One part of the guidance: a term, a hook, or a transform of the condition or of the estimate.

    :cvar needs_measurement: whether it makes the images explain a measurement (``task=``), which is of pixels: a model
        of latents is refused
    """

    needs_measurement: bool = False

    @property
    def models(self) -> "Sequence[GuidingModel]":
        """The other trained models that it evaluates."""
        return ()

    def check(self, encoder: ConditionEncoder, dropped: Collection[frozenset[str]] | None) -> None:
        """Refuse a model whose signals it cannot use, before any work.

        :param encoder: of the guided model
        :param dropped: the sets of signals that its training has dropped together; None if that is not known
        :raises UserError: in subclasses
        """

    def check_plan(self, plan: Plan) -> None:
        """Refuse what it cannot work on, before any work.

        :raises UserError: in subclasses
        """


class Term(Part):
    """Adds ``delta`` to the estimate, computed from its own branches. Linear terms add ``k (base - branch)`` to x0 and
    state alike; a neutral one (k = 0 at this step) declares no branch and costs nothing."""

    def needs_grad(self, view: GuidanceInput) -> bool:
        """Whether, at this step, ``delta`` differentiates the base with respect to ``view.x_t``, which is then a leaf
        of the graph."""
        return False

    def branches(self, view: GuidanceInput) -> Sequence[Branch]:
        """The extra evaluations at this step."""
        return ()

    def watch(self, view: GuidanceInput) -> AttentionHook | None:
        """A hook that looks at the attention of the base, and answers None. ``view.step.memory`` takes what ``delta``
        needs of it."""
        return None

    def delta(self, base: Estimate, outs: Sequence[Estimate], view: GuidanceInput) -> Estimate | None:
        """What is added to ``base``, given the estimates of the branches in their order; None adds nothing."""
        raise NotImplementedError


class ConditionTransform(Part):
    """``transform(ctx, step) -> Context``."""

    def __call__(self, ctx: Context, step: Step | None) -> Context:
        raise NotImplementedError


class EstimateTransform(Part):
    """``finish(estimate, base, view) -> Estimate``: names the space that it works in, re-infers the state.

    :cvar pixels: whether it means pixels in [-1, 1]: models of latents leave it out
    """

    pixels: bool = False

    def __call__(self, estimate: Estimate, base: Estimate, view: GuidanceInput) -> Estimate:
        raise NotImplementedError


class Hook(Part):
    """Answers at the attention of the guided network, below a branch's own hook: prompt-to-prompt, shared attention.
    (:meth:`Term.watch` looks and does not answer.)

    :cvar branches: ``all``, or ``conditional``: the base and the branches that carry the condition as it is, such as
        one with perturbed attention; a null never sees it
    """

    branches: Literal["all", "conditional"] = "all"

    def attn(self, ctx: Context, step: Step | None) -> AttentionHook | None:
        """The hook of this step; None for none.

        :param ctx: the condition, transformed
        """
        raise NotImplementedError


class GuidingModel:
    """Another trained model, which a part of the guidance evaluates and names among its models. It encodes the
    condition by itself, from ``ctx.raw``; what is not there, as in ``ctx.null``, it is not told.
    """

    @property
    def readers(self) -> Mapping[str, Reader]:
        """The signals that it can be told of, by name."""
        return {}

    def check(self, config: dict[str, Any]) -> None:
        """Refuse to work beside a model of this config.

        :raises UserError: in subclasses
        """


def list_models(parts: Iterable[Part]) -> list[GuidingModel]:
    """The other trained models that these parts evaluate."""
    return [model for part in parts for model in part.models]


class Guided:
    """The guided restorer. A hook that is handed to it acts in every branch, below the branch's own.

    :param restorer: what is guided
    :param degradation: what is undone
    :param parts: terms, hooks, transforms of the condition and of the estimate, in the order in which they act
    """

    def __init__(self, restorer: Restorer, degradation: Degradation, parts: Iterable[Part]):
        parts = list(parts)
        self.restorer, self.degradation = restorer, degradation
        self.terms = [part for part in parts if isinstance(part, Term)]
        self.transforms = [part for part in parts if isinstance(part, ConditionTransform)]
        self.hooks = [part for part in parts if isinstance(part, Hook)]
        self.estimate_transforms = [part for part in parts if isinstance(part, EstimateTransform)]

    @property
    def sites(self) -> Sequence[AttentionSite]:
        """Those of the guided restorer."""
        return getattr(self.restorer, "sites", ())

    def __call__(self, x_t: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], ctx: Context, *, state: State,
                 step: Step | None, attn: AttentionHook | None = None) -> Estimate:
        for transform in self.transforms:
            ctx = transform(ctx, step)
        view = GuidanceInput(self.restorer, self.degradation, x_t, t, ctx, state, step)
        grad, outside = any(term.needs_grad(view) for term in self.terms), torch.is_grad_enabled()
        if grad and not x_t.requires_grad:
            view = replace(view, x_t=x_t.detach().requires_grad_())
        wanted = [list(term.branches(view)) for term in self.terms]
        watch = chain(*(term.watch(view) for term in self.terms))
        asked = [Branch(ctx, watch), *(branch for branches in wanted for branch in branches)]
        hooks = [(hook.branches, hook.attn(ctx, step)) for hook in self.hooks]
        chains: dict[tuple[int, bool, bool], AttentionHook | None] = {}  # equal branches keep equal hooks

        def below(branch: Branch) -> AttentionHook | None:
            own, told = branch.restorer is None or branch.restorer is self.restorer, branch.ctx is ctx
            at = (id(branch.attn), own, told)
            if at not in chains:
                mine = [hook for kind, hook in hooks if own and (kind == "all" or told)]
                chains[at] = chain(branch.attn, *mine, attn)
            return chains[at]

        asked = [replace(branch, attn=below(branch)) for branch in asked]
        if grad:
            # The other branches need no graph, which would cost their memory.
            with torch.enable_grad():
                outs = evaluate(view, asked[:1])
            outs += evaluate(view, asked[1:])
        else:
            outs = evaluate(view, asked)
        base, rest = outs[0], outs[1:]
        estimate = base
        if step is not None:
            step.memory[BASE] = base
        for term, branches in zip(self.terms, wanted):
            mine, rest = rest[:len(branches)], rest[len(branches):]
            delta = term.delta(base, mine, view)
            estimate = estimate if delta is None else estimate + delta
        if grad and not outside:
            base, estimate = base.detach(), estimate.detach()
        for transform in self.estimate_transforms:
            estimate = transform(estimate, base, view)
        return estimate


@dataclass
class _Group:
    restorer: Restorer
    members: list[int] = field(default_factory=list)


def evaluate(view: GuidanceInput, branches: Sequence[Branch]) -> list[Estimate]:
    """The branches' estimates: those of one restorer as one batch while it stays within the row limit, and the same
    branch of several terms once. Contexts with other entries of ``extra`` are no one batch."""
    groups: dict[tuple[int, frozenset[str]], _Group] = {}
    same = [(id(branch.ctx), id(branch.attn), id(branch.restorer)) for branch in branches]
    first_of = [same.index(key) for key in same]
    for i in dict.fromkeys(first_of):
        restorer = branches[i].restorer or view.restorer
        alike = id(restorer), frozenset(branches[i].ctx.extra)
        groups.setdefault(alike, _Group(restorer)).members.append(i)
    results: dict[int, Estimate] = {}
    b = view.x_t.shape[0]
    together = max(1, ROWS.get(view.x_t.device.type, MANY_ROWS) // b)
    for group in groups.values():
        for first in range(0, len(group.members), together):
            chunk = group.members[first:first + together]
            out = _batched(view, group.restorer, [branches[i] for i in chunk])
            results |= {i: out.rows(slice(k * b, (k + 1) * b)) for k, i in enumerate(chunk)}
    return [results[i] for i in first_of]


def _batched(view: GuidanceInput, restorer: Restorer, branches: Sequence[Branch]) -> Estimate:
    n, b = len(branches), view.x_t.shape[0]
    if n == 1:
        branch = branches[0]
        return restorer(view.x_t, view.t, branch.ctx, state=view.state, step=view.step, attn=branch.attn)
    hooked = any(branch.attn for branch in branches)
    return restorer(torch.cat([view.x_t] * n), torch.cat([view.t] * n), Context.cat([br.ctx for br in branches]),
                    state=view.state.repeat(n), step=view.step,
                    attn=rows([(b, branch.attn) for branch in branches]) if hooked else None)
