"""Several truths about an image at once, such as CelebA's attributes, as a condition."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from configs.errors import UserError
from configs.registry import closest
from models.conditioning import VectorSignal
from models.context import Context
from models.readers import Reader

TRUTHS = {"1": True, "true": True, "0": False, "false": False}
"""How it is said whether an attribute is true, in any case."""


class AttributeReader(Reader):
    """Attributes by their names: ``Smiling``, ``[Smiling, Young]`` or ``"Smiling=1,Male=0"``. Those that are not named
    are not true.

    :param words: names of the A attributes, in their order
    """

    def __init__(self, words: Sequence[str]):
        self.words = list(words)

    def read(self, values: Sequence[Any]) -> Float[Tensor, "b a"]:
        asked = [self.parse(value) for value in values]
        return torch.tensor([[float(truths.get(word, False)) for word in self.words] for truths in asked])

    def parse(self, value: Any) -> dict[str, bool]:
        """What is said of each attribute that is named: a name alone is true.

        :raises UserError: for a name that is not known, a value that is none of ``TRUTHS``, and a contradiction
        """
        truths: dict[str, bool] = {}
        whole = not isinstance(value, str) or value in self.words
        for part in value if isinstance(value, list | tuple) else [value] if whole else value.split(","):
            name, equals, said = (part, "", "1") if part in self.words else self._split(part)
            if name not in self.words:
                near = closest(str(name), self.words)
                near = near if near in self.words else self.words[0]
                raise UserError(f"{self.name}={part}", "names of what is to be true, or NAME=1 and NAME=0, of "
                                f"{', '.join(self.words)}; or none",
                                f'{self.name}="{near}={said}"' if equals else f"{self.name}=[{near}]")
            truth = TRUTHS.get(said.lower())
            if truth is None:
                raise UserError(f"{self.name}={part}", "1, 0, true or false", f'{self.name}="{name}=1"')
            if truths.setdefault(name, truth) != truth:
                raise UserError(f"{self.name}={value}: {name} is 1 and 0", "one of them, or a list with texts",
                                f'{self.name}=["{name}=1","{name}=0"]')
        return truths

    @staticmethod
    def _split(part: Any) -> tuple[str, str, str]:
        """``Male=0`` as name, equals sign and value; a name alone is true."""
        name, equals, said = str(part).partition("=")
        return name.strip(), equals, said.strip() if equals else "1"

    def is_single(self, value: Any) -> bool:
        """A list of names is what is true of one sample. One with lists, or with texts such as ``Male=0``, has one for
        each."""
        return not isinstance(value, list | tuple) or all(
            each in self.words or not (isinstance(each, list | tuple) or "=" in str(each)) for each in value)

    def write(self, raw: Tensor) -> list[list[str]]:
        return [[word for word, value in zip(self.words, row, strict=True) if value > 0] for row in raw.tolist()]

    def caption(self, value: Any) -> str:
        return ", ".join(value)


class AttributeSignal(AttributeReader, VectorSignal):
    """Attributes, 1 for what is true of an image and 0 for what is not, through a two-layer perceptron of ``2 y - 1``.
    They are the same of a mirrored image.

    :param words: names of the A attributes, in their order
    :param dim: length E of the embedding
    """

    def __init__(self, words: Sequence[str], dim: int):
        VectorSignal.__init__(self, len(words), dim)
        AttributeReader.__init__(self, words)

    def forward(self, value: Float[Tensor, "b a"]) -> Context:
        return super().forward(2 * value - 1)

    def mirror(self, raw: Tensor, side: int) -> Tensor:
        return raw
