"""Classifiers of several things at once, each with answers of its own: which digit, which colour, where."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from configs import UserError
from degradations.base import Degradation
from diffusion.objectives.classification import Classification, NetworkClassifier
from diffusion.objectives.times import TimeDistribution
from models.context import Context
from models.protocol import Network


class AnswerClassifier(NetworkClassifier):
    """A classifier that is asked several questions; its logits are those of the answers to the first, then to the
    second, and so on.

    :param network: with as many logits as there are answers, of all questions together
    :param precision: of the network
    :param words: the answers to each question, by its name
    """

    example = "experiment=judge_scenes_digits"
    signal = "answers"

    def __init__(self, network: Network, precision: str = "32", words: Mapping[str, Sequence[str]] | None = None):
        super().__init__(network, precision)
        self.words = {name: list(answers) for name, answers in (words or {}).items()}

    @property
    def questions(self) -> list[str]:
        return list(self.words)

    def grade_each(self, logits: Float[Tensor, "b k"], truth: Shaped[Tensor, "b *rest"]) -> Float64[Tensor, "b a"]:
        said = torch.stack([part.argmax(1) for part in split_answers(logits, self.words)], dim=1)
        return (said == truth).double().masked_fill(truth < 0, torch.nan)

    def try_out(self, x: Float[Tensor, "b ..."], ctx: Context) -> None:
        super().try_out(x, ctx)
        count, wanted = self(x, x.new_zeros(len(x))).logits.shape[1], sum(map(len, self.words.values()))
        if self.words and count != wanted:
            raise UserError(f"a network with {count} logits for {wanted} answers", "one for each",
                            f"model.classes={wanted}")


class AnswerClassification(Classification):
    """``E 1/A sum_a CE(p_a(. | x_t, t), answer_a)``: the mean cross-entropy of the answers to A questions about the
    image. Questions without an answer (-1) count nothing.

    :param times: distribution of t
    :param words: the answers to each question, by its name; None, which train.py replaces by the data's
    """

    signal = "answers"

    def __init__(self, times: TimeDistribution, words: Mapping[str, Sequence[str]] | None = None):
        super().__init__(times)
        self.words = words or {}

    def compare(self, logits: Float[Tensor, "b k"], truth: Shaped[Tensor, "b *rest"]) -> Float[Tensor, " b"]:
        parts = split_answers(logits, self.words)
        losses = [F.cross_entropy(part, truth[:, place], reduction="none", ignore_index=-1)
                  for place, part in enumerate(parts)]
        return torch.stack(losses).mean(0)

    def use(self, network: Network, degradation: Degradation, precision: str) -> AnswerClassifier:
        return AnswerClassifier(network, precision, self.words)


def split_answers(logits: Float[Tensor, "b k"], words: Mapping[str, Sequence[str]]) -> Sequence[Float[Tensor, "b _"]]:
    """The logits of the answers to each question."""
    return logits.split([len(answers) for answers in words.values()], dim=1)
