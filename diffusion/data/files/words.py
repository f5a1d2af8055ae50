"""Words and their numbers."""

import re
from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

SPECIAL = ("<pad>", "<bos>", "<eos>", *(f"<s{number}>" for number in range(8)))
"""The first words of every vocabulary: pads, the ends of a text, and eight that wait for a meaning."""
_WORD = re.compile(r"<\w+>|[\w'-]+")


def split(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


class Words:
    """Texts as numbers.

    :param words: the vocabulary, in the order of the numbers
    :param length: L of all texts
    """

    def __init__(self, words: Sequence[str], length: int):
        self.length, self.numbers = length, {word: number for number, word in enumerate(words)}

    def encode(self, texts: Sequence[str]) -> Int64[Tensor, "n length"]:
        """``<bos> words <eos> <pad>...`` of each text."""
        rows = torch.zeros(len(texts), self.length, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            numbers = [1, *(self.numbers[word] for word in split(text)), 2]
            row[: len(numbers)] = torch.tensor(numbers)
        return rows
