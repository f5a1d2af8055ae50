"""How much a network is helped by what it is told: the loss with the right condition, another one, and none."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from configs import UserError
from degradations.randomness import Streams
from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_float
from diffusion.metrics.base import ModelMetric
from diffusion.metrics.evidence import shuffle
from diffusion.metrics.intervals import MetricValue, mean
from diffusion.model import Model
from diffusion.objectives.restoration import Objective
from models.context import Condition, Context
from models.control import ControlledNet
from models.readers import is_number
from samplers.guidance.control import ControlStrength

RIGHT = "right"
COLUMN = "loss"


class ConditionLoss(ModelMetric):
    """``loss t A-B``: the training loss of held-out images at times in (A, B], told what is right. ``, shuffled``
    behind is with the conditions of other images, ``, NAME shuffled`` with one signal of others, ``, none`` with the
    null of all signals that have one, and ``, control 0``, of a controlled network, the base alone
    (:class:`models.control.ControlledNet`). Times and noise are the same for all of these, and a function of the seed
    and of the place of the image among these.

    ``- right`` behind these is the mean over images of the difference with ``loss t A-B``: above 0 the condition helps.
    ``in sigmas`` is this mean over its standard error ``s / sqrt(n)``, s the standard deviation of the differences.

    A model with a hint, which is never left out, beside signals that can be has another column, without these:
    ``loss, text=none``.

    :param intervals: pairs of times ``[A, B]``, ``0 <= A < B <= 1``
    :param draws: times and noises of each image, whose losses are averaged
    :raises UserError: for other values
    """

    def __init__(self, intervals: Sequence[Sequence[float]] = ((0.6, 1.0),), draws: int = 2):
        for pair in intervals or [()]:
            if len(pair) != 2 or not all(map(is_number, pair)) or not 0 <= pair[0] < pair[1] <= 1:
                raise UserError(f"an interval of times {list(pair)}", "two times in [0, 1], the lower one first",
                                "'metrics.condition_loss.intervals=[[0.6,1]]'")
        if draws < 1:
            raise UserError(f"metrics.condition_loss.draws={draws}", "at least 1", "metrics.condition_loss.draws=2")
        self.intervals, self.draws = [(float(low), float(high)) for low, high in intervals], draws

    def lacks(self, model: Model) -> str | None:
        if not isinstance(model.objective, Objective):
            return "a loss at given times"
        return None if model.readers() else "a condition"

    @torch.no_grad()
    def __call__(self, model: Model, images: ImageSet, condition: Condition, *, seed: int,
                 batch: int) -> Mapping[str, Mapping[str, MetricValue]]:
        readers, droppable = model.readers(), model.weights.encoder.droppable
        told = {name: raw for name, raw in condition.items() if name in readers}
        kept = {name: raw for name, raw in told.items() if name not in droppable}
        columns = {COLUMN: told}
        if kept and len(kept) < len(told):
            columns[", ".join([COLUMN, *(f"{name}=none" for name in told if name not in kept)])] = kept
        rows = torch.arange(len(images)).split(batch)
        found = {}
        for column, given in columns.items():
            parts = [self._measure(model, images, given, some, seed) for some in rows]
            losses = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if given else {}
            found[column] = dict(number for low, high in self.intervals
                                 for number in compare_losses(f"loss t {low:g}-{high:g}", {
                                     how: values for (a, b, how), values in losses.items() if (a, b) == (low, high)
                                 }).items())
        return {column: numbers for column, numbers in found.items() if numbers}

    def _measure(self, model: Model, images: ImageSet, given: Condition, rows: Int64[Tensor, " b"],
                 seed: int) -> dict[tuple[float, float, str], Float64[Tensor, " b"]]:
        """The losses of some images, by interval and by what the network is told."""
        assert isinstance(model.objective, Objective)
        other = shuffle(len(images))[rows]
        contexts = list_contexts(model, *({name: raw[some].to(model.device) for name, raw in given.items()}
                                          for some in (rows, other)))
        x0 = model.space.encode(to_float(images.batch(rows)[0]).to(model.device))
        sums: dict[tuple[float, float, str], Tensor] = defaultdict(lambda: torch.zeros(len(rows), dtype=torch.float64))
        for draw in range(self.draws):
            streams = Streams(seed, tuple(rows.tolist()), model.device, draw)
            state, u = model.degradation.draw(x0.shape, streams), streams.uniform("time", (len(rows),))
            for low, high in self.intervals:
                t = high - (high - low) * u
                x_t = model.degradation.forward(x0, t, state)
                for how, ctx in contexts.items():
                    losses = model.objective.measure(model.restorer, model.degradation, x0, x_t, t, state, ctx)
                    sums[low, high, how] += losses.double().cpu() / self.draws
        return sums


def list_contexts(model: Model, told: Condition, other: Condition) -> dict[str, Context]:
    """What the network is told of the same images, in several ways, by name.

    :param told: the right raw signals of b images
    :param other: those of b other ones
    """
    encoder, n = model.weights.encoder, len(next(iter(told.values())))
    right = encoder.with_null(told, n)
    contexts = {RIGHT: right, "shuffled": encoder(other, n=n)}
    if len(told) > 1:
        contexts |= {f"{name} shuffled": encoder({**told, name: other[name]}, n=n) for name in told}
    if right.null is not None and right.removable:
        contexts["none"] = right.null
    if isinstance(model.weights.net, ControlledNet):
        contexts["control 0"] = ControlStrength(0.0)(right, None)
    return contexts


def compare_losses(name: str, losses: Mapping[str, Float64[Tensor, " n"]]) -> dict[str, MetricValue]:
    """The numbers of :class:`ConditionLoss` for one interval.

    :param name: of the loss
    :param losses: of each image, by what the network was told; :data:`RIGHT` among them
    """
    found = {name: mean(losses[RIGHT])}
    for how, values in losses.items():
        if how == RIGHT:
            continue
        step = values - losses[RIGHT]
        error = (step.std() / len(step) ** 0.5).item()
        found |= {f"{name}, {how}": mean(values), f"{name}, {how} - right": measure_difference(step, error),
                  f"{name}, {how} - right, in sigmas": measure_difference(step / (error or 1.0), error)}
    return found


def measure_difference(step: Float64[Tensor, " n"], error: float) -> MetricValue:
    """The mean of paired differences, or of their multiples.

    :param error: the standard error of the differences, for the record
    """
    number = mean(step)
    return MetricValue(number.value, number.low, number.high,
                       f"{number.how}, in pairs, standard error {error:.3g}", step)
