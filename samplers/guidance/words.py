"""The words of two captions and their tokens: which belong together, and where they are."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from configs import UserError
from configs.registry import closest


def split_tokens(caption: Sequence[str]) -> list[list[int]]:
    """The tokens of each word: those of "" belong to the word before."""
    found: list[list[int]] = []
    for place, word in enumerate(caption):
        if word or not found:
            found.append([])
        found[-1].append(place)
    return found


def find_tokens(caption: Sequence[str], word: str) -> list[int]:
    """The tokens of a word, wherever it stands in a caption."""
    return [place for places in split_tokens(caption) if caption[places[0]] == word.lower() for place in places]


def align_words(source: Sequence[str], target: Sequence[str]) -> list[tuple[int, int]]:
    """The places of equal words in a global alignment (match 1, mismatch -1, gap 0) of two sequences: the longest
    common subsequence, since two gaps cost less than a mismatch."""
    n, m = len(source), len(target)
    best = [[0] * (m + 1) for _ in range(n + 1)]
    for i in reversed(range(n)):
        for j in reversed(range(m)):
            same = source[i] == target[j]
            best[i][j] = 1 + best[i + 1][j + 1] if same else max(best[i + 1][j], best[i][j + 1])
    pairs, i, j = [], 0, 0
    while i < n and j < m:
        if source[i] == target[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def match_words(source: Sequence[str], target: Sequence[str], mode: str) -> list[tuple[list[int], list[int]]]:
    """The tokens of words that belong together.

    :param mode: ``replace``: each word and the one in its place; ``refine``: equal words of an alignment
    :raises UserError: for ``replace``, if one caption has more words
    """
    mine, theirs = split_tokens(source), split_tokens(target)
    if mode == "replace":
        if len(mine) != len(theirs):
            raise UserError(f"{count_words(source)} words, and {count_words(target)} in the place of them",
                            "as many words in both captions", "guidance.p2p.mode=refine, for words that are added")
        return list(zip(mine, theirs))
    words = [[caption[places[0]] for places in tokens] for caption, tokens in ((source, mine), (target, theirs))]
    return [(mine[i], theirs[j]) for i, j in align_words(*words)]


def map_tokens(source: Sequence[str], target: Sequence[str], mode: str,
               length: int) -> tuple[Float[Tensor, "l l"], Bool[Tensor, " l"]]:
    """``M`` in ``A_source M``, which puts the attention of the source's tokens to those of the target, and which tokens
    of the target get some. What the words of a pair get is divided among the tokens of the other, so that the rows of
    M sum to 1 where all words have a partner.

    :param length: of the streams
    """
    mapping, taken = torch.zeros(length, length), torch.zeros(length, dtype=torch.bool)
    for mine, theirs in match_words(source, target, mode):
        if len(mine) == len(theirs):
            mapping[mine, theirs] = 1.0
        else:
            for token in mine:
                mapping[token, theirs] = 1 / len(theirs)
        taken[theirs] = True
    return mapping, taken


def count_words(caption: Sequence[str]) -> int:
    """Words of a caption, without ``<bos>`` and ``<eos>``."""
    return sum(not (word.startswith("<") and word.endswith(">")) for word in caption if word)


def require_words(words: Sequence[str], captions: Sequence[Sequence[str]], key: str) -> None:
    """Refuse words of which one is in none of these captions.

    :param key: of the setting that names them
    :raises UserError: naming the first, with the nearest that is there
    """
    there = list(dict.fromkeys(word for caption in captions for word in caption if word and word[0] != "<"))
    for word in words:
        if not any(find_tokens(caption, word) for caption in captions):
            said = " / ".join(" ".join(w for w in caption if w and not w.startswith("<")) for caption in captions)
            raise UserError(f'{key}: "{word}", which is not in "{said}"', f"one of {', '.join(there)}",
                            f"{key}: {closest(word, there)}" if there else "another caption")
