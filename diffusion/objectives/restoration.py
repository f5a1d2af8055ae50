"""The objective of a restorer: draw t and z, degrade, restore, compare."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from configs import UserError
from degradations.base import Degradation
from degradations.randomness import Draws
from degradations.shapes import flat
from diffusion.objectives.base import Criterion, Forward, Losses
from diffusion.objectives.evaluator import NetworkRestorer
from diffusion.objectives.parameterization import Parameterization
from diffusion.objectives.times import TimeDistribution
from diffusion.objectives.weighting import Weighting
from models.conditioning import Condition, ConditionEncoder
from models.protocol import Network

ERRORS = {"l1": torch.abs, "l2": torch.square}


class Objective(Criterion):
    """``E |output - target|`` over images, times and states.

    Hot and cold are two settings of it: ``configs/objective/ddpm.yaml`` and ``cold.yaml``.

    :param parameterization: what the network's output means; gives the target
    :param times: distribution of t
    :param weighting: weight of each time, on the error of the network's output
    :param error: ``l1`` or ``l2``, averaged over all values of an image; weights by SNR mean ``l2``
    :param drop: share of the samples whose condition is replaced by its null, all signals together
    """

    def __init__(self, parameterization: Parameterization, times: TimeDistribution, weighting: Weighting,
                 error: str = "l2", drop: float = 0.1):
        if error not in ERRORS:
            raise UserError(f"objective.error={error}", f"one of {', '.join(ERRORS)}", "objective.error=l2")
        if not 0 <= drop <= 1:
            raise UserError(f"objective.drop={drop:g}", "a share of the samples, in [0, 1]", "objective.drop=0.1")
        self.parameterization, self.times, self.weighting = parameterization, times, weighting
        self.error, self.drop = ERRORS[error], drop

    def __call__(self, forward: Forward, encoder: ConditionEncoder, degradation: Degradation,
                 x0: Float[Tensor, "b *rest"], condition: Condition, rng: Draws) -> Losses:
        t = self.times(x0.shape[0], degradation, rng)
        state = degradation.draw(x0.shape, rng)
        x_t = degradation.forward(x0, t, state)
        out = forward(x_t, t, encoder(condition, self.dropped(condition, x0.shape[0], rng)))
        target = self.parameterization.target(x0, t, state, degradation)
        weight = self.weighting(t, degradation, self.parameterization)
        return Losses(weight * flat(self.error(out - target)).mean(dim=1), t)

    def check(self, degradation: Degradation) -> None:
        for part in (self.parameterization, self.times, self.weighting):
            part.check(degradation)

    def use(self, network: Network, degradation: Degradation, precision: str) -> NetworkRestorer:
        return NetworkRestorer(network, degradation, self.parameterization, precision)

    def dropped(self, condition: Condition, n: int, rng: Draws) -> dict[str, Bool[Tensor, " b"]] | None:
        """Which samples lose their condition."""
        if not condition or not self.drop:
            return None
        mask = rng.uniform("drop", (n,)) < self.drop
        return dict.fromkeys(condition, mask)
