"""What a network is trained for: a loss per image, and the use that the trained network is put to."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from degradations.base import Degradation
from degradations.randomness import Draws
from diffusion.objectives.evaluator import Evaluator
from models.conditioning import ConditionEncoder
from models.context import Condition
from models.protocol import Network

E = TypeVar("E", bound=Evaluator)


@dataclass(frozen=True)
class Losses:
    """What the objective says about a batch.

    :ivar values: (B,) the weighted loss of each image
    :ivar t: (B,) the time that was drawn for it
    :ivar logs: by name, (B,) what else is logged, such as a part of the loss; the same names for every batch
    :ivar critics: by name, (B,) the losses of the criterion's own networks, see :attr:`Criterion.networks`
    """

    values: Tensor
    t: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    critics: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Rule(Protocol):
    """What optimizes a network. Optimizers of torch that are fused leave steps out without waiting for the device, see
    :func:`diffusion.training.guard.hold`.

    :ivar clip: largest gradient norm, None for no clipping
    """

    clip: float | None

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimizer of these parameters."""
        ...

    def rate(self, step: int, max_steps: int) -> float:
        """The learning rate of step ``step = 0, 1, ...`` of ``max_steps``."""
        ...


class Criterion(Generic[E]):
    """What a network is trained for: a loss, and the use that the trained network is put to.

    A criterion may have networks of its own that only the training needs, such as the discriminator of an autoencoder.
    They are trained beside the network, one backward pass for all: ``Losses.values`` asks them by
    :func:`call_constant`, which gives them no gradient, and the losses of their own see what the network has made
    detached.

    :ivar networks: own networks by name; checkpoints have them as ``critics.NAME``
    :ivar optimizers: by the same names, how these are optimized, such as by
        :class:`diffusion.training.optimization.AdamW`. One without is optimized together with the network
    """

    networks: Mapping[str, nn.Module] = {}
    optimizers: Mapping[str, Rule] = {}

    def __call__(self, evaluator: E, encoder: ConditionEncoder, degradation: Degradation,
                 x0: Float[Tensor, "b *rest"], condition: Condition, rng: Draws) -> Losses:
        """The loss of each image of a batch.

        :param evaluator: the network as what it is trained to be, as :meth:`use` has made it
        :param condition: all that is known about the images, whether the network is told or not
        """
        raise NotImplementedError

    def check(self, degradation: Degradation) -> None:
        """Refuse a degradation that one of the parts cannot treat.

        :raises UserError: from the part
        """

    def dropped(self, encoder: ConditionEncoder) -> set[frozenset[str]] | None:
        """The sets of signals that training drops together; None for one that does not say."""
        return None

    def check_encoder(self, encoder: ConditionEncoder) -> None:
        """Refuse a condition that the objective cannot treat.

        :raises UserError: saying why
        """

    def check_data(self, known: Collection[str]) -> None:
        """Refuse images of which too little is known.

        :param known: names of the signals that the images have
        :raises UserError: if one that the objective needs is not among them
        """

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse images that one of the parts cannot treat, when a training begins.

        :param shape: (C, H, W), of what the network sees
        :raises UserError: from the part
        """

    def finish_step(self, evaluator: E, rng: Draws, reduce: Callable[[Tensor], Tensor]) -> None:
        """After each optimizer step, without gradients: what of the network follows the batch by a rule of its own,
        such as a codebook. It has to be a buffer of the network: those of a step that is left out are put back.

        :param rng: of all rows of the batch, over the parts and ranks
        :param reduce: sums a tensor over the ranks; all of them have to call it alike
        """

    def use(self, network: Network, degradation: Degradation, precision: str) -> E:
        """The network as what it is trained to be."""
        raise NotImplementedError


def call_constant(network: nn.Module, *args: Any) -> Any:
    """``network(*args)`` with its weights as constants: gradients reach the arguments only."""
    weights = {name: value.detach() for name, value in network.named_parameters()}
    return functional_call(network, weights, args)
