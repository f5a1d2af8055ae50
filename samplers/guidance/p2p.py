"""Prompt-to-prompt: Hertz et al. 2022, arXiv 2208.01626."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from configs import UserError
from models.attention import AttentionCall, AttentionHook
from models.context import Context
from samplers.guidance.base import Hook
from samplers.guidance.sites import weights
from samplers.guidance.words import find_tokens, map_tokens, require_words
from samplers.protocol import Plan, Step, find_sources

MODES = ("replace", "refine")
MAPS = "maps of the words"
"""In ``step.memory``: who puts a table there gets the attention of every token summed over the steps, see
:func:`record`."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """What the captions of a batch say about the maps of its edits.

    :ivar sources: for each row the one that it is an edit of, or itself
    :ivar mapping: M, from the tokens of the source to the row's own
    :ivar taken: tokens whose maps are the source's
    :ivar factor: of each token
    :ivar ends: shares of the steps after which a token's map is the row's own
    """

    sources: Int[Tensor, " b"]
    mapping: Float[Tensor, "b 1 l l"]
    taken: Bool[Tensor, "b 1 1 l"]
    factor: Float[Tensor, "b 1 1 l"]
    ends: Float[Tensor, "b 1 1 l"]

    @property
    def edited(self) -> Bool[Tensor, "b 1 1 1"]:
        """Which rows are edits."""
        return (self.sources != torch.arange(len(self.sources), device=self.sources.device))[:, None, None, None]


class PromptToPrompt(Hook):
    """The rows of one sample are a source and its edits, by other captions (``from=`` and ``to=`` of ``sample.py``, or
    an index twice). For the first steps, the cross-attention maps of an edit are its source's, word by word,

    ``A = A_source M c`` for the words that have a partner, ``A_edit c`` for the others,

    with M from the words of one caption to those of the other (section 3.2): those in the same place (``replace``), or
    equal ones of an alignment (``refine``), and c a factor for each word. Nothing is normalised again. The maps of
    self-attention are the source's, too, where they are small: the layout stays. The null of the guidance is not
    edited, a branch with perturbed attention is. The source is what it is without edits.

    Nothing is edited in a sampler's last steps, so that the changed word can shape its own details. With both shares 0
    the edit is the sample of its own caption.

    :param cross_replace_steps: share of the steps with the source's cross-attention (the code's ``int(share (n + 1))``)
    :param self_replace_steps: share of the steps with its self-attention
    :param mode: ``replace`` for captions of equally many words, ``refine`` for words that are added or left out
    :param words: c by words of the edit's caption, such as ``{red: 2.0}``; the others are 1
    :param word_steps: in the place of ``cross_replace_steps`` for words of the edit's caption
    :param largest: pixels of the largest self-attention map that is replaced
    :raises UserError: for shares outside of [0, 1], a mode that there is not, a model without cross-attention or
        captions, a caption without edits, words that are not there, and other numbers of words for ``replace``
    """

    branches = "conditional"

    def __init__(self, cross_replace_steps: float = 0.8, self_replace_steps: float = 0.4, mode: str = "replace",
                 words: Mapping[str, float] | None = None, word_steps: Mapping[str, float] | None = None,
                 largest: int = 256):
        if mode not in MODES:
            raise UserError(f"mode={mode} of prompt-to-prompt", " or ".join(MODES), "guidance.p2p.mode=refine")
        self.mode, self.words, self.word_steps = mode, dict(words or {}), dict(word_steps or {})
        if not all(type(value) in (int, float) for value in (*self.words.values(), *self.word_steps.values())):
            raise UserError(f"words={self.words}, word_steps={self.word_steps} of prompt-to-prompt",
                            "a number for each word", "guidance.p2p.words='{red: 2.0}'")
        shares = (cross_replace_steps, self_replace_steps, *self.word_steps.values())
        if not all(0 <= share <= 1 for share in shares):
            raise UserError(f"prompt-to-prompt for the shares {', '.join(map(str, shares))} of the steps",
                            "shares in [0, 1]",
                            "guidance.p2p.cross_replace_steps=0.8 guidance.p2p.self_replace_steps=0.4")
        self.cross_replace_steps, self.self_replace_steps = cross_replace_steps, self_replace_steps
        self.largest = largest

    def check_plan(self, plan: Plan) -> None:
        require_edits(plan, "guidance=p2p")
        if not any(site.kind == "cross" for site in plan.sites):
            raise UserError("prompt-to-prompt with a network that does not attend to words",
                            "a network with cross-attention", "guidance=masactrl, or a run with text")
        if not plan.captions:
            raise UserError("prompt-to-prompt without captions", "a caption for the source and one for the edit",
                            'from="a red seven" to="a green seven"')
        for row, source in plan.edits:
            mine, theirs = plan.captions[source], plan.captions[row]
            map_tokens(mine, theirs, self.mode, max(len(mine), len(theirs)))
            require_words([*self.words, *self.word_steps], [theirs], "guidance.p2p.words")

    def attn(self, ctx: Context, step: Step | None) -> AttentionHook | None:
        if step is None or not step.captions:
            return None
        if self not in step.memory:
            step.memory[self] = self.align(step, ctx.tokens["main"].shape[1])
        told: Alignment = step.memory[self]
        copied = step.i < count_steps(self.self_replace_steps, step.n)
        # One more than there are steps, as the code counts them.
        on = torch.floor(told.ends * (step.n + 1) + 1e-6) > step.i
        maps, edits = step.memory.get(MAPS), bool(on.any())
        if not (copied or edits or maps is not None):
            return None

        def hook(call: AttentionCall) -> Tensor | None:
            if call.site.kind == "self":
                if not copied or call.q.shape[2] > self.largest:
                    return None
                return replace(call, q=call.q[told.sources], k=call.k[told.sources]).rest()
            own = weights(call)
            changed = own
            if edits:
                theirs = torch.where(told.taken, own[told.sources] @ told.mapping, own) * told.factor
                changed = torch.where(on & told.edited, theirs, own)
            if maps is not None:
                record(maps, changed, call, step)
            if not edits:
                return None
            other = told.edited & (changed != own).flatten(1).any(1)[:, None, None, None]  # the rest, bit for bit
            return torch.where(other, (changed @ call.v).to(call.v.dtype), call.rest())

        return hook

    def align(self, step: Step, length: int) -> Alignment:
        """What the captions of the batch say.

        :param length: tokens of the stream
        """
        rows = [self._align_row(step.captions[source], caption, length)
                for source, caption in zip(find_sources(step.streams.indices), step.captions, strict=True)]
        mapping, taken, factor, ends = (torch.stack(part).to(step.streams.device) for part in zip(*rows))
        wide = [each[:, None, None] for each in (taken, factor, ends)]
        return Alignment(step.sources, mapping[:, None], *wide)

    def _align_row(self, source: Sequence[str], caption: Sequence[str], length: int) -> tuple[Tensor, ...]:
        mapping, taken = map_tokens(source, caption, self.mode, length)
        factor, ends = torch.ones(length), torch.full((length,), float(self.cross_replace_steps))
        for values, table in ((factor, self.words), (ends, self.word_steps)):
            for word, value in table.items():
                values[find_tokens(caption, word)] = value
        return mapping, taken, factor, ends


def count_steps(share: float, n: int) -> int:
    """``int(share n)``, safe from rounding."""
    return int(share * n + 1e-6)


def record(maps: dict[str, Any], weight: Float[Tensor, "b h nq l"], call: AttentionCall, step: Step) -> None:
    """Adds the mean over the heads of a cross-attention to ``maps[site] = (step, size, sum (B, Nq, L))``: once a step,
    as the first branch, which is the base, has it."""
    last, _, total = maps.get(call.site.name, (-1, call.size, 0.0))
    if last != step.i:
        maps[call.site.name] = (step.i, call.size, total + weight.detach().float().mean(dim=1))


def require_edits(plan: Plan, who: str) -> None:
    """Refuse a batch in which nothing is an edit of anything.

    :param who: asks
    :raises UserError: with the way to have one
    """
    if not plan.edits:
        raise UserError(f"{who} without a source and an edit of it", "two captions",
                        'from="a red seven" to="a green seven", or twins=2 with two values of a signal')
