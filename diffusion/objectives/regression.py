"""Regressions: what of a vector, such as the places of landmarks, can be read in an image."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from configs import UserError
from degradations.base import Degradation
from degradations.types import Times
from diffusion.data.base import Data
from diffusion.objectives.classification import Answer, Classification, NetworkClassifier
from diffusion.objectives.times import TimeDistribution
from models.context import Context
from models.protocol import Network


class VectorRegressor(NetworkClassifier):
    """``f_k(x_t, t) = m_k + s_k h_k(x_t, t)``, the K numbers of a vector that it sees in an image: h is the network's
    answer, m and s are mean and standard deviation of the numbers in the training. In the place of logits it gives f.

    :param network: with K answers
    :param precision: of the network
    :param signal: the name of the vector
    :param mean: m; None for 0
    :param spread: s; None for 1
    :param words: a name for each number; None counts them
    """

    example = "objective=regression objective.signal=SIGNAL"
    scored = "explained"

    def __init__(self, network: Network, precision: str = "32", signal: str = "landmarks",
                 mean: Sequence[float] | None = None, spread: Sequence[float] | None = None,
                 words: Sequence[str] | None = None):
        super().__init__(network, precision)
        self.signal, self.mean, self.spread = signal, torch.tensor(mean or [0.0]), torch.tensor(spread or [1.0])
        self.words = list(words or map(str, range(len(self.mean))))

    def __call__(self, x_t: Float[Tensor, "b ..."], t: Times) -> Answer:
        answer = super().__call__(x_t, t)
        mean, spread = self.mean.to(x_t.device), self.spread.to(x_t.device)
        return Answer(mean + spread * answer.logits, answer.features)

    @property
    def questions(self) -> list[str]:
        return self.words

    def grade_each(self, logits: Float[Tensor, "b k"], truth: Shaped[Tensor, "b *rest"]) -> Float64[Tensor, "b k"]:
        """``1 - (y_k - f_k)^2 / s_k^2``, whose mean over images is the share of the variance that is explained."""
        return 1 - ((truth.flatten(1) - logits) / self.spread.to(logits.device)).double().square()

    def try_out(self, x: Float[Tensor, "b ..."], ctx: Context) -> None:
        count = self.output(x, x.new_zeros(len(x)), ctx).shape[1]
        if count != len(self.words):
            raise UserError(f"a network with {count} answers for {len(self.words)} numbers of {self.signal}",
                            "one for each", f"model.classes={len(self.words)}")
        super().try_out(x, ctx)


class VectorRegression(Classification):
    """``E 1/K sum_k ((y_k - m_k) / s_k - h_k(x_t, t))^2``: the squared error of the K numbers of a vector, in units of
    their spread, so that none is learned at the cost of the others; of a Gaussian with this spread the negative log
    likelihood, up to constants.

    :param times: distribution of t
    :param signal: the name of the vector, a signal of the images, such as ``landmarks``; all its axes are one list
    :param mean: m, of each number; None, which train.py replaces by the mean of the training images
    :param spread: s; None, which train.py replaces by the standard deviation, 1 where there is none
    :param words: a name for each number, for tables; None counts them
    """

    def __init__(self, times: TimeDistribution, signal: str = "landmarks", mean: Sequence[float] | None = None,
                 spread: Sequence[float] | None = None, words: Sequence[str] | None = None):
        super().__init__(times)
        lengths = {len(each) for each in (mean, spread, words) if each}
        if len(lengths) > 1 or (spread and min(spread) <= 0):
            raise UserError("objective.mean, spread and words that do not fit together",
                            "as many of each as there are numbers, spreads above 0", "objective.words=null")
        self.signal, self.mean, self.spread, self.words = signal, mean, spread, words

    def compare(self, logits: Float[Tensor, "b k"], truth: Shaped[Tensor, "b *rest"]) -> Float[Tensor, " b"]:
        mean, spread = (logits.new_tensor(each or [default]) for each, default in ((self.mean, 0), (self.spread, 1)))
        return ((truth.flatten(1) - mean) / spread - logits).square().mean(1)

    def check_data(self, known: Collection[str]) -> None:
        if self.signal not in known:
            raise UserError(f"a regression of {self.signal} for images without", f"images with {self.signal}",
                            f"data.signals=[{self.signal}], of data that have it")

    def use(self, network: Network, degradation: Degradation, precision: str) -> VectorRegressor:
        return VectorRegressor(network, precision, self.signal, self.mean, self.spread, self.words)


def describe_vector(config: Mapping[str, Any], data: Data) -> dict[str, dict[str, Any]]:
    """What the data say about their signals, and ``mean`` and ``spread`` (the standard deviation, 1 where there is
    none) of the numbers of the one that the criterion names: they scale a regression.

    :param config: of a training
    :raises UserError: for images that may be mirrored, of which nobody would say where the numbers are then
    """
    described, signal = data.described, config["objective"].get("signal")
    if signal not in described:
        return described
    if data.flip:
        raise UserError(f"data.flip=true of a regression of {signal}", "images as they are", "data.flip=false")
    numbers = data.split("train").signals[signal].flatten(1).double()
    spread = numbers.std(0, correction=0)
    scale = {"mean": numbers.mean(0).tolist(), "spread": spread.where(spread > 0, 1.0).tolist()}
    return described | {signal: {**described[signal], **scale}}
