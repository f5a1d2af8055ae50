"""Local blending: Hertz et al. 2022 (prompt-to-prompt), arXiv 2208.01626, section 3.2 and the code."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from configs import UserError
from samplers.guidance.p2p import MAPS, PromptToPrompt, count_steps
from samplers.guidance.words import find_tokens, require_words
from samplers.protocol import Callback, Captions, LoopState, Plan

LARGEST = 256
"""Pixels of the largest cross-attention maps that say where a word is."""


class LocalBlend(Callback):
    """After each step an edit is its source, except where one of these words is: ``x_source + m (x - x_source)``.

    The mask m is 1 where the maps of the words are above a share of their greatest value, in the edit or in its source:
    of the cross-attention with the most pixels, up to 16 x 16, the sum over the steps so far, the mean over its places
    and heads, and the greatest of 3 x 3 neighbours. ``guidance=p2p`` keeps these maps.

    :param words: of both captions, those that change and those that stand for them; null is off
    :param threshold: the share; at 1 the mask is empty, and the edit its source
    :param begin: share of the steps before which nothing is blended
    :raises UserError: for shares outside of [0, 1], words that are in no caption, or without ``guidance=p2p``
    """

    def __init__(self, words: Sequence[str] | None = None, threshold: float = 0.3, begin: float = 0.2):
        if not (0 <= threshold <= 1 and 0 <= begin <= 1):
            raise UserError(f"threshold={threshold:g}, begin={begin:g} of a local blend", "shares in [0, 1]",
                            "edit.local_blend.threshold=0.3 edit.local_blend.begin=0.2")
        self.words, self.threshold, self.begin = tuple(words or ()), threshold, begin

    def check_plan(self, plan: Plan) -> None:
        if not self.words:
            return
        if not any(isinstance(part, PromptToPrompt) for part in plan.parts):
            raise UserError("edit=local_blend, and nothing that knows where the words are", "prompt-to-prompt",
                            "guidance=p2p, or method=p2p")
        for row, source in plan.edits:
            require_words(self.words, [plan.captions[source], plan.captions[row]], "edit.local_blend.words")

    def before(self, frame: LoopState) -> None:
        if self.words:
            frame.step.memory.setdefault(MAPS, {})

    def after(self, frame: LoopState) -> None:
        step, x_s = frame.step, frame.x_s
        if not self.words or step.i < count_steps(self.begin, step.n):
            return
        assert x_s is not None
        mask, sources = self.find_mask(frame), step.sources
        frame.x_s = torch.where(mask | mask[sources], x_s, x_s[sources])

    def find_mask(self, frame: LoopState) -> Bool[Tensor, "b 1 h w"]:
        """Where the words are, by the maps of each row, at the size of its image."""
        assert frame.x_s is not None
        where = sum_maps(frame.step.memory[MAPS], frame.step.captions, self.words)
        where = F.interpolate(F.max_pool2d(where, 3, 1, 1), frame.x_s.shape[-2:])
        return where > self.threshold * where.amax(dim=(1, 2, 3), keepdim=True)


def sum_maps(maps: Mapping[str, Any], captions: Captions, words: Sequence[str]) -> Float[Tensor, "b 1 h w"]:
    """The attention to some words in each row, summed over them and over the steps: of the sites with the most pixels,
    but at most 16 x 16, the mean.

    :param maps: of :func:`samplers.guidance.p2p.record`
    """
    sizes = sorted({size for _, size, _ in maps.values()}, key=prod)
    size = next((size for size in reversed(sizes) if prod(size) <= LARGEST), sizes[0])
    total = torch.stack([total for _, here, total in maps.values() if here == size]).mean(dim=0)
    said = torch.zeros(len(total), total.shape[2], device=total.device)
    for row, caption in enumerate(captions):
        said[row, [place for word in words for place in find_tokens(caption, word)]] = 1.0
    return torch.einsum("bnl,bl->bn", total, said).unflatten(1, size)[:, None]
