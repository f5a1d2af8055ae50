"""From captions to the numbers of their words."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from configs.errors import UserError
from models.text import BOS, EOS, PAD, RESERVED, list_words, split_words

logger = logging.getLogger(__name__)

LONGEST = 77
"""Tokens of a caption, ``<bos>`` and ``<eos>`` among them, as of CLIP's (Radford et al. 2021, arXiv 2103.00020)."""
MOST_WORDS = 2**16
"""Words that a vocabulary may have."""
FIRST = EOS + 1
"""The first word of a vocabulary that a caption may have: pads and ends come before it."""


@dataclass(frozen=True)
class Encoded:
    """Captions as numbers.

    :ivar words: the vocabulary, in the order of the numbers
    :ivar length: L, of all captions
    :ivar tokens: a row for each caption
    """

    words: list[str]
    length: int
    tokens: Int64[Tensor, "n length"]


def check_captions(words: int | Sequence[str], length: int | None) -> None:
    """Refuse settings of captions that mean nothing.

    :raises UserError: naming the first
    """
    if isinstance(words, int) and not 1 <= words <= MOST_WORDS:
        raise UserError(f"data.words={words}", f"1 to {MOST_WORDS} words, or a list of them", "data.words=4096")
    if not isinstance(words, int) and (isinstance(words, str) or tuple(words[: len(RESERVED)]) != RESERVED
                                       or len(words) > MOST_WORDS or len({*words}) < len(words)):
        raise UserError("data.words, which is no vocabulary", f"a number of words, or a list of different ones that "
                        f"begins with {', '.join(RESERVED)}",
                        "data.words=4096, or data.words='${of:RUN,condition.signals.text.words}'")
    if length is not None and not 2 <= length <= 1024:
        raise UserError(f"data.length={length}", "2 to 1024 tokens for each caption, or null for as many as the "
                        f"longest one has, at most {LONGEST}", "data.length=null")


def encode_captions(captions: Sequence[str], words: int | Sequence[str], length: int | None, where: str) -> Encoded:
    """The captions as numbers, ``<bos> words <eos> <pad>...``, with the vocabulary that they make.

    The vocabulary is :data:`models.text.RESERVED`, and then the words of the captions, the most frequent first and the
    equally frequent in the order of the alphabet. What is not in it is left out of the captions, and what is longer
    than L is cut, both with a warning.

    :param words: how many words of the captions are taken at most, or the vocabulary itself
    :param length: L; None is that of the longest caption, at most ``LONGEST``
    :param where: what the captions are of, for the log
    """
    parts = [split_words(caption) for caption in captions]
    if isinstance(words, int):
        counts = Counter(word for part in parts for word in part)
        ordered = sorted((word for word in counts if word not in RESERVED), key=lambda word: (-counts[word], word))
        words = list_words(ordered[:words])
    known = set(words[FIRST:])
    kept = [[word for word in part if word in known] for part in parts]
    _warn(where, parts, kept, known)
    length = length or min(LONGEST, max(map(len, kept), default=0) + 2)
    cut = sum(len(part) > length - 2 for part in kept)
    if cut:
        logger.warning("%s: %d captions of more than %d words are cut", where, cut, length - 2)
    places = {word: place for place, word in enumerate(words)}
    tokens = np.full((len(kept), length), PAD, np.int64)
    for row, part in zip(tokens, kept, strict=True):
        numbers = [BOS, *(places[word] for word in part[: length - 2]), EOS]
        row[: len(numbers)] = numbers
    return Encoded(list(words), length, torch.from_numpy(tokens))


def join_words(tokens: Sequence[int], words: Sequence[str]) -> str:
    """The caption of a row of tokens, as far as the vocabulary has its words."""
    return " ".join(words[number] for number in tokens if number >= FIRST)


def _warn(where: str, parts: Sequence[Sequence[str]], kept: Sequence[Sequence[str]], known: set[str]) -> None:
    changed = sum(len(a) < len(b) for a, b in zip(kept, parts, strict=True))
    if changed:
        strangers = sorted({word for part in parts for word in part} - known)
        logger.warning("%s: %d words such as %s, which the vocabulary does not have, are left out of %d captions",
                       where, len(strangers), strangers[0], changed)
