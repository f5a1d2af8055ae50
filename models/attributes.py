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


class AttributeReader(Reader):
    """Attributes by their names: those that are asked for are true, all others are not.

    :param words: names of the A attributes, in their order
    """

    def __init__(self, words: Sequence[str]):
        self.words = list(words)

    def read(self, values: Sequence[Any]) -> Float[Tensor, "b a"]:
        asked = [[value] if isinstance(value, str) else value for value in values]
        for names in asked:
            several = names if isinstance(names, list | tuple) else [names]
            strangers = [name for name in several if name not in self.words]
            if strangers:
                raise UserError(f"{self.name}={strangers[0]}", "names of what is to be true, all else is not: "
                                f"{', '.join(self.words)}; or none",
                                f"{self.name}=[{closest(str(strangers[0]), self.words)}]")
        return torch.tensor([[float(word in names) for word in self.words] for names in asked])

    def is_single(self, value: Any) -> bool:
        return not isinstance(value, list | tuple) or not any(isinstance(each, list | tuple) for each in value)

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
