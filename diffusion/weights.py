"""All that a run has learned, as one module: what checkpoints hold."""

from collections.abc import Mapping

from torch import Tensor, nn

from diffusion.priors import Prior
from diffusion.spaces.base import Space
from models.conditioning import ConditionEncoder
from models.frozen import Frozen


class Weights(nn.Module):
    """All that is learned, here or before: the network, the encoder of its condition, the space, the prior, and the
    criterion's own networks."""

    def __init__(self, net: nn.Module, encoder: ConditionEncoder, space: Space, prior: Prior,
                 critics: Mapping[str, nn.Module]):
        super().__init__()
        self.net, self.encoder, self.space, self.prior = net, encoder, space, prior
        self.critics = nn.ModuleDict(critics)

    @property
    def fitted(self) -> list[nn.Module]:
        """What is made before the training and does not change in it."""
        frozen = [part for part in self.encoder.modules() if isinstance(part, Frozen)]
        made = (self.space, self.prior, self.encoder.sources, *frozen)
        return [part for part in made if not any(value.requires_grad for value in part.parameters())]

    def split(self, ema: Mapping[str, Tensor] | None = None) -> dict[str, dict[str, Tensor]]:
        """The weights as a checkpoint holds them: ``raw`` and ``ema`` what the training changes, ``frozen`` the rest.

        :param ema: the average of the weights; None takes the weights themselves
        """
        raw, trained = self.state_dict(), {name for name, value in self.named_parameters() if value.requires_grad}
        fitted = self.fitted
        places = {f"{name}." for name, module in self.named_modules() if module in fitted}
        frozen = {name for name, _ in self.named_parameters()} | {name for name in raw if name.startswith((*places,))}
        frozen -= trained
        whole = {"raw": raw, "ema": raw if ema is None else ema}
        return {**{kind: {name: value for name, value in state.items() if name not in frozen}
                   for kind, state in whole.items()},
                "frozen": {name: value for name, value in raw.items() if name in frozen}}
