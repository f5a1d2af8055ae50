"""What a network is trained for: a loss per image, and the use that the trained network is put to."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from degradations.base import Degradation
from degradations.randomness import Draws
from diffusion.objectives.evaluator import Evaluator
from models.conditioning import ConditionEncoder
from models.context import Condition
from models.protocol import Network


@runtime_checkable
class Forward(Protocol):
    """One evaluation of the network, float32: :meth:`diffusion.objectives.evaluator.Evaluator.output`."""

    def __call__(self, x_t: Tensor, t: Tensor, ctx, attn=None) -> Tensor: ...


@dataclass(frozen=True)
class Losses:
    """What the objective says about a batch.

    :ivar values: (B,) the weighted loss of each image
    :ivar t: (B,) the time that was drawn for it
    """

    values: Tensor
    t: Tensor


class Criterion:
    """What a network is trained for: a loss, and the use that the trained network is put to."""

    def __call__(self, forward: Forward, encoder: ConditionEncoder, degradation: Degradation,
                 x0: Float[Tensor, "b *rest"], condition: Condition, rng: Draws) -> Losses:
        """The loss of each image of a batch.

        :param condition: all that is known about the images, whether the network is told or not
        """
        raise NotImplementedError

    def check(self, degradation: Degradation) -> None:
        """Refuse a degradation that one of the parts cannot treat.

        :raises UserError: from the part
        """

    def check_encoder(self, encoder: ConditionEncoder) -> None:
        """Refuse a condition that the objective cannot treat.

        :raises UserError: saying why
        """

    def use(self, network: Network, degradation: Degradation, precision: str) -> Evaluator:
        """The network as what it is trained to be."""
        raise NotImplementedError
