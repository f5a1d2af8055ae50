"""The objective of a restorer: draw t and z, degrade, restore, compare."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from configs import UserError
from degradations.base import Degradation, State
from degradations.randomness import Draws
from degradations.shapes import flatten_rows
from degradations.types import Images, Times
from diffusion.objectives.base import Criterion, Losses
from diffusion.objectives.evaluator import NetworkRestorer
from diffusion.objectives.parameterization import Parameterization
from diffusion.objectives.times import TimeDistribution
from diffusion.objectives.weighting import Weighting
from models.conditioning import ConditionEncoder
from models.context import Condition, Context
from models.protocol import Network
from models.readers import is_number

ERRORS = {"l1": torch.abs, "l2": torch.square}


class Objective(Criterion[NetworkRestorer]):
    """``E |output - target|`` over images, times and states.

    Hot and cold are two settings of it: ``configs/objective/ddpm.yaml`` and ``cold.yaml``.

    :param parameterization: what the network's output means; gives the target
    :param times: distribution of t
    :param weighting: weight of each time, on the error of the network's output
    :param error: ``l1`` or ``l2``, averaged over all values of an image; weights by SNR mean ``l2``
    :param drop: share of the samples whose condition is replaced by its null: a number for all signals together, or a
        share for each of several disjoint events, such as ``{text: 0.05, hint: 0.1, text+hint: 0.05, all: 0.1}``
    """

    def __init__(self, parameterization: Parameterization, times: TimeDistribution, weighting: Weighting,
                 error: str = "l2", drop: float | Mapping[str, float] = 0.1):
        if error not in ERRORS:
            raise UserError(f"objective.error={error}", f"one of {', '.join(ERRORS)}", "objective.error=l2")
        events = drop if isinstance(drop, Mapping) else {"all": drop}
        if not all(map(is_number, events.values())) or min([0, *events.values()]) < 0 or sum(events.values()) > 1:
            raise UserError(f"objective.drop={drop}", "shares of the samples, in [0, 1], together at most 1",
                            "objective.drop=0.1")
        self.parameterization, self.times, self.weighting = parameterization, times, weighting
        self.error, self.drop = ERRORS[error], dict(events)

    def __call__(self, evaluator: NetworkRestorer, encoder: ConditionEncoder, degradation: Degradation, x0: Images,
                 condition: Condition, rng: Draws) -> Losses:
        t = self.times(x0.shape[0], degradation, rng)
        state = degradation.draw(x0.shape, rng)
        x_t = degradation.forward(x0, t, state)
        ctx = encoder(condition, self.draw_drops(condition, x0.shape[0], rng), n=x0.shape[0])
        values = self.measure(evaluator, degradation, x0, x_t, t, state, ctx)
        if "weight" in condition:
            values = values * condition["weight"]
        return Losses(values, t)

    def measure(self, evaluator: NetworkRestorer, degradation: Degradation, x0: Images, x_t: Images, t: Times,
                state: State, ctx: Context) -> Float[Tensor, " b"]:
        """The weighted loss of images that are degraded already.

        :param x_t: what the state and the time have made of x0
        :param ctx: what the network is told
        """
        out = evaluator.output(x_t, t, ctx)
        target = self.parameterization.target(x0, t, state, degradation)
        weight = self.weighting(t, degradation, self.parameterization)
        return weight * flatten_rows(self.error(out - target)).mean(dim=1)

    def dropped(self, encoder: ConditionEncoder) -> set[frozenset[str]]:
        return {frozenset(encoder.droppable if event == "all" else event.split("+"))
                for event, share in self.drop.items() if share > 0}

    def check_encoder(self, encoder: ConditionEncoder) -> None:
        for event in self.drop:
            unknown = [name for name in event.split("+") if name not in encoder.droppable]
            if event != "all" and unknown:
                raise UserError(f"objective.drop.{event}, and no signal {unknown[0]} that can be dropped",
                                f"all, or names joined by + of {', '.join(encoder.droppable) or 'none'}",
                                "objective.drop=0.1")

    def check(self, degradation: Degradation) -> None:
        for part in (self.parameterization, self.times, self.weighting):
            part.check(degradation)

    def use(self, network: Network, degradation: Degradation, precision: str) -> NetworkRestorer:
        return NetworkRestorer(network, degradation, self.parameterization, precision)

    def draw_drops(self, condition: Condition, n: int, rng: Draws) -> dict[str, Bool[Tensor, " b"]] | None:
        """Which samples lose which signals: one uniform number per sample falls on one of the events, or on none."""
        if not condition or not any(self.drop.values()):
            return None
        u, masks, low = rng.uniform("drop", (n,)), {}, 0.0
        for event, share in self.drop.items():
            hit = (u >= low) & (u < low + share)
            low += share
            for name in condition if event == "all" else event.split("+"):
                masks[name] = masks[name] | hit if name in masks else hit
        return masks
