"""Classifiers: what they are trained for, and what a trained one is asked."""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from configs import UserError
from degradations.base import Degradation
from degradations.randomness import Draws
from degradations.types import Images, Times
from diffusion.objectives.base import Criterion, Losses
from diffusion.objectives.evaluator import Evaluator
from diffusion.objectives.times import TimeDistribution
from models.conditioning import ConditionEncoder
from models.context import Condition, Context
from models.protocol import ClassifierNetwork, Network


class Answer(NamedTuple):
    """What a classifier says about a batch, float32.

    :ivar logits: (B, K), unnormalised log probabilities of the classes; log odds, where it predicts attributes
    :ivar features: (B, F), of which the logits are made
    """

    logits: Tensor
    features: Tensor


class NetworkClassifier(Evaluator):
    """``classifier(x_t, t) -> Answer(logits, features)`` from one network evaluation. Gradients flow.

    :cvar signal: what it predicts: the name of a signal of the images
    :cvar scored: what :meth:`grade_logits` gives a share of, for messages
    :param network: with ``features(x, t)`` and ``head(features)`` besides its call
    :param precision: of the network, see :class:`diffusion.objectives.evaluator.Evaluator`
    """

    task = "classify"
    example = "experiment=classifier_digits"
    signal: str = "label"
    scored: ClassVar[str] = "right"
    network: ClassifierNetwork

    def __call__(self, x_t: Float[Tensor, "b ..."], t: Times) -> Answer:
        with self.computing(x_t.device):
            features = self.network.features(x_t, t)
            logits = self.network.head(features)
        return Answer(logits.float(), features.float())

    def grade_logits(self, logits: Float[Tensor, "b k"], truth: Shaped[Tensor, "b *rest"]) -> Float64[Tensor, " b"]:
        """Which part of the truth about each image the logits get right, from 0 to 1.

        :param truth: the signal of the images, on the device of the logits
        """
        return self.grade_each(logits, truth).nanmean(1)

    @property
    def questions(self) -> list[str]:
        """What it predicts: the names of the columns of :meth:`grade_each`."""
        return [self.signal]

    def grade_each(self, logits: Float[Tensor, "b k"], truth: Shaped[Tensor, "b *rest"]) -> Float64[Tensor, "b a"]:
        """What of the truth about each image the logits get right: 1 or 0 for each thing that is predicted, and not a
        number where the truth is not known; arguments as for :meth:`grade_logits`."""
        return (logits.argmax(1) == truth).double()[:, None]

    def try_out(self, x: Float[Tensor, "b ..."], ctx: Context) -> None:
        if not isinstance(self.network, ClassifierNetwork):
            raise UserError(f"a classification by {type(self.network).__name__}",
                            "a network with features and a head for the classes", "model=classifier")
        if ctx.emb is not None or ctx.tokens or ctx.spatial is not None:
            raise UserError("a classifier with a condition", "one that is told nothing but the time", "condition=none")
        self(x, torch.ones(len(x), device=x.device))


class Classification(Criterion[NetworkClassifier]):
    """``E CE(p(. | x_t, t), label)``: the cross-entropy of the class of the image, given what is left of it.

    With ``times=clean`` the classifier that judges images; over all times the one that guides (Dhariwal and Nichol
    2021, arXiv 2105.05233, section 4.1), for any degradation.

    :param times: distribution of t
    :param smoothing: share of the probability that is spread over all classes (Szegedy et al. 2015, arXiv 1512.00567,
        section 7)
    :cvar signal: that it learns to predict
    """

    signal: str = "label"

    def __init__(self, times: TimeDistribution, smoothing: float = 0.0):
        if not 0 <= smoothing < 1:
            raise UserError(f"objective.smoothing={smoothing:g}", "a share of the probability, in [0, 1)",
                            "objective.smoothing=0.1")
        self.times, self.smoothing = times, smoothing

    def __call__(self, evaluator: NetworkClassifier, encoder: ConditionEncoder, degradation: Degradation, x0: Images,
                 condition: Condition, rng: Draws) -> Losses:
        t = self.times(x0.shape[0], degradation, rng)
        x_t = degradation.forward(x0, t, degradation.draw(x0.shape, rng))
        logits = evaluator.output(x_t, t, encoder(condition))
        return Losses(self.compare(logits, condition[self.signal]), t)

    def compare(self, logits: Float[Tensor, "b k"], truth: Shaped[Tensor, "b *rest"]) -> Float[Tensor, " b"]:
        """The loss of each image.

        :param truth: the signal of the images
        """
        return F.cross_entropy(logits, truth, reduction="none", label_smoothing=self.smoothing)

    def check(self, degradation: Degradation) -> None:
        self.times.check(degradation)

    def use(self, network: Network, degradation: Degradation, precision: str) -> NetworkClassifier:
        return NetworkClassifier(network, precision)
