"""Classifiers of attributes: several truths about an image at once."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from configs import UserError
from degradations.base import Degradation
from diffusion.objectives.classification import Classification, NetworkClassifier
from diffusion.objectives.times import TimeDistribution
from models.context import Context
from models.protocol import Network


class AttributeClassifier(NetworkClassifier):
    """A classifier whose logits are the log odds of A attributes, ``log p_a / (1 - p_a)``: above 0 it sees one.

    :param network: with A logits
    :param precision: of the network
    :param words: names of the attributes, in their order
    """

    example = "experiment=classifier_celeba64"
    signal = "attributes"

    def __init__(self, network: Network, precision: str = "32", words: Sequence[str] | None = None):
        super().__init__(network, precision)
        self.words = list(words or ())

    @property
    def questions(self) -> list[str]:
        return self.words

    def grade_each(self, logits: Float[Tensor, "b k"], truth: Shaped[Tensor, "b *rest"]) -> Float64[Tensor, "b a"]:
        return ((logits > 0) == (truth > 0)).double()

    def try_out(self, x: Float[Tensor, "b ..."], ctx: Context) -> None:
        super().try_out(x, ctx)
        count = self(x, x.new_zeros(len(x))).logits.shape[1]
        if self.words and count != len(self.words):
            raise UserError(f"a network with {count} logits for {len(self.words)} attributes", "one for each",
                            f"model.classes={len(self.words)}")


class AttributeClassification(Classification):
    """``E 1/A sum_a -y_a log p_a - (1 - y_a) log(1 - p_a)``, ``p = sigmoid(logits)``: the binary cross-entropy of A
    attributes of the image, such as CelebA's 40 (Liu et al. 2015, arXiv 1411.7766), the mean over them.

    :param times: distribution of t
    :param words: names of the attributes; None, which train.py replaces by the data's
    """

    signal = "attributes"

    def __init__(self, times: TimeDistribution, words: Sequence[str] | None = None):
        super().__init__(times)
        self.words = words

    def compare(self, logits: Float[Tensor, "b k"], truth: Shaped[Tensor, "b *rest"]) -> Float[Tensor, " b"]:
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)

    def use(self, network: Network, degradation: Degradation, precision: str) -> AttributeClassifier:
        return AttributeClassifier(network, precision, self.words)
