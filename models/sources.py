"""Signals that are made of the images themselves."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from configs.errors import UserError
from degradations.randomness import Draws
from models.context import Condition


class Source(nn.Module):
    """Makes a raw signal from the images themselves: edges, a low resolution, a hole. It is frozen, and lies in the
    checkpoint beside the signals.

    :cvar reads: the raw signals that it needs beside the images and the encoder's own; without them it makes nothing
    """

    reads: tuple[str, ...] = ()

    def train(self, mode: bool = True) -> "Source":
        """A source is never in training mode."""
        return super().train(False)

    def forward(self, images: Float[Tensor, "b c h w"], condition: Condition, rng: Draws) -> Tensor:
        """Raw values, batch first.

        :param images: in [-1, 1], as the network will see them: mirrored and augmented
        :param condition: what is known about the images besides, such as places from which a map is drawn: the raw
            signals of the encoder, and those that ``reads`` names
        :param rng: for sources that draw at random
        """
        raise NotImplementedError

    @classmethod
    def list_read(cls, arguments: Mapping[str, Any]) -> Sequence[str]:
        """What :attr:`reads` will be.

        :param arguments: of the constructor, as the config has them
        """
        return cls.reads

    @classmethod
    def check(cls, name: str, known: Collection[str], arguments: Mapping[str, Any]) -> None:
        """Refuse images of which too little is known.

        :param name: of the signal that it makes
        :param known: names of the signals that the images have
        :param arguments: of the constructor, as the config has them
        :raises UserError: if one that it reads is not among them
        """
        for read in cls.list_read(arguments):
            if read not in known:
                raise UserError(f"condition.sources.{name}, which makes {name} of {read}, for images without {read}",
                                f"images with {read}", f"data.signals=[{read}], of data that have it")

    def mirror(self, name: str, raw: Tensor, side: int) -> Tensor:
        """The raw values of a signal that it reads, of images that are mirrored left to right.

        :param name: of the signal, one of ``reads``
        :param side: of the images, in pixels
        :raises UserError: if the source does not say
        """
        raise UserError(f"data.flip=true with {name}, of which {type(self).__name__} does not say what it is of a "
                        "mirrored image", "images as they are",
                        f"data.flip=false, or a method mirror of {type(self).__name__}")
