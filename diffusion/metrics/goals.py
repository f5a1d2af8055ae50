"""What an edit is to make of images, by the answers of a judge that train.py has trained."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from configs import UserError
from degradations.affine import Affine
from degradations.base import Degradation
from degradations.types import Times
from diffusion.data.base import ImageSet
from diffusion.data.files.images import size
from diffusion.data.pixels import to_float
from diffusion.loading import load
from diffusion.model import Model
from diffusion.objectives.answers import AnswerClassifier, split_answers
from diffusion.objectives.asyrp import Goal
from diffusion.objectives.attributes import AttributeClassifier
from diffusion.objectives.classification import Classification
from diffusion.objectives.times import CleanTimes

CHUNK = 64
"""Images that a judge is asked about at a time."""
NO, YES = "no", "yes"
"""The answers about an attribute."""


class Answers(Goal):
    """``-log p(target | x') + others sum_q KL(p_q(. | x) | p_q(. | x'))`` of an answer to a question, by a classifier
    of answers or attributes, with the sum over all other questions: an edit x' of x is to change nothing else. Without
    it, the answer is won most easily by what shows nothing at all. The judge is frozen and in no checkpoint. One that
    was trained on clean images looks at the estimates, one that was trained under noise at the noisy images: what the
    noise hides does not please it.

    Take another run than the judge that evaluates, such as one with another seed: what is trained to please the judge
    is not measured by it.

    :param run: its folder, or its file
    :param question: such as ``colour`` or ``Smiling``
    :param target: the answer that is wanted, such as ``blue``; of an attribute ``true`` or ``false``
    :param source: the answer that is changed: other images are left out; None takes all
    :param others: weight of the other answers, at least 0
    :param weights: ``ema`` or ``raw``
    :param step: which checkpoint; None takes the newest
    """

    def __init__(self, run: str | None = None, question: str = "", target: str | bool | int = "",
                 source: str | bool | int | None = None, others: float = 1.0, weights: str = "ema",
                 step: int | None = None):
        if not others >= 0:
            raise UserError(f"objective.goal.others={others:g}", "a number of at least 0", "objective.goal.others=1.0")
        self.run, self.weights, self.step = run, weights, step
        self.question, self.target, self.source, self.others = question, target, source, others
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        """The judge, loaded when it is first needed: what was trained with it needs it no more.

        :raises UserError: if there is no such run, or it is no judge of answers or attributes
        """
        if self._model is None:
            if self.run is None:
                raise UserError("an edit without the judge that says what is wanted", "a run folder",
                                "objective.goal.run=RUN, of python train.py experiment=judge_scenes_digits")
            model = load(self.run, weights=self.weights, step=self.step, device="cpu")
            require_judge(model)
            self._model = model
        return self._model

    @property
    def noisy(self) -> bool:
        times = self.model.objective.times if isinstance(self.model.objective, Classification) else None
        return not isinstance(times, CleanTimes)

    def check(self, degradation: Degradation) -> None:
        if not self.noisy:
            return
        own, t = self.model.degradation, torch.linspace(0, 1, 5)
        pairs = [one.coefficients(t, t[:, None]) if isinstance(one, Affine) else None for one in (own, degradation)]
        if None in pairs or not all(torch.allclose(a, b, atol=1e-3) for a, b in zip(*pairs)):
            raise UserError(f"the judge {self.run}, trained on other noisy images", "one that was trained with the "
                            "degradation of the run, or on clean images", "objective.goal.run=RUN of another judge")

    def check_shape(self, shape: Sequence[int]) -> None:
        if not self.question:
            raise UserError("an edit that wants nothing", "an answer to a question", "objective.goal.question=colour "
                            "objective.goal.target=blue")
        if tuple(shape) != self.model.image_shape:
            raise UserError(f"images of {size(shape)} for the judge {self.run}, trained on "
                            f"{size(self.model.image_shape)}", "images like those", "another objective.goal.run")
        for answer in (self.target, self.source):
            if answer is not None:
                find_answer(self.model, self.question, answer)

    @torch.no_grad()
    def choose(self, x: Float[Tensor, "b c h w"]) -> Bool[Tensor, " b"]:
        if self.source is None:
            return x.new_ones(len(x), dtype=torch.bool)
        return shows(self._on(x), self.judge(x), self.question, self.source)

    def __call__(self, x: Float[Tensor, "b c h w"], base: Float[Tensor, "b c h w"],
                 t: Times | None = None) -> Float[Tensor, " b"]:
        model, edited = self._on(x), self.judge(x, t)
        loss = -log_probability(model, edited, self.question, self.target)
        if not self.others:
            return loss
        before, after = (split_questions(model, logits) for logits in (self.judge(base, t).detach(), edited))
        changed = [measure_divergence(before[name], after[name]) for name in before if name != self.question]
        return loss + self.others * torch.stack(changed).sum(0)

    def judge(self, x: Float[Tensor, "b c h w"], t: Times | None = None) -> Float[Tensor, "b k"]:
        """The judge's logits about images at a time; None for clean ones."""
        model = self._on(x)
        return model.classifier(model.space.encode(x), x.new_zeros(len(x)) if t is None else t).logits

    def _on(self, x: Tensor) -> Model:
        return self.model if self.model.device == x.device else self.model.to(x.device)


def require_judge(model: Model) -> None:
    """Refuse what answers no questions about images.

    :raises UserError: if it is no classifier of answers or attributes
    """
    if not isinstance(model.evaluator, AnswerClassifier | AttributeClassifier):
        raise UserError(f"{model.name} as a judge of edits", "a classifier of answers or attributes",
                        f"one of python train.py {AnswerClassifier.example}, or {AttributeClassifier.example}")


def list_questions(model: Model) -> dict[str, list[str]]:
    """The answers that a judge knows, by question; those about attributes are :data:`NO` and :data:`YES`."""
    if isinstance(model.evaluator, AnswerClassifier):
        return model.evaluator.words
    return {question: [NO, YES] for question in model.classifier.questions}


def find_answer(model: Model, question: str, answer: str | bool | int) -> int:
    """The place of an answer among those to its question.

    :raises UserError: for a question or an answer that the judge does not know
    """
    known = list_questions(model)
    if question not in known:
        raise UserError(f"{model.name} asked about {question}", f"one of {', '.join(known)}",
                        f"question={next(iter(known))}")
    words = known[question]
    said = words[bool(answer)] if words == [NO, YES] and isinstance(answer, bool | int) else str(answer)
    if said not in words:
        raise UserError(f"{model.name} asked whether {question} is {answer}", f"one of {', '.join(words)}",
                        f"target={words[-1]}")
    return words.index(said)


def split_questions(model: Model, logits: Float[Tensor, "n k"]) -> dict[str, Float[Tensor, "n _"]]:
    """The logits of the answers to each question; about an attribute, 0 and its log odds."""
    if isinstance(model.evaluator, AnswerClassifier):
        words = model.evaluator.words
        return dict(zip(words, split_answers(logits, words), strict=True))
    return {question: torch.stack([torch.zeros_like(column), column], dim=1)
            for question, column in zip(model.classifier.questions, logits.unbind(1), strict=True)}


def log_probability(model: Model, logits: Float[Tensor, "n k"], question: str,
                    answer: str | bool | int) -> Float[Tensor, " n"]:
    """``log p(answer)`` of each image.

    :param logits: what the judge says about images
    """
    part = split_questions(model, logits)[question]
    return F.log_softmax(part, dim=1)[:, find_answer(model, question, answer)]


def shows(model: Model, logits: Float[Tensor, "n k"], question: str, answer: str | bool | int) -> Bool[Tensor, " n"]:
    """Whether this is the answer that the judge finds most probable."""
    part = split_questions(model, logits)[question]
    return part.argmax(1) == find_answer(model, question, answer)


def find_images(model: Model, images: ImageSet, question: str, answer: str | bool | int) -> Iterator[int]:
    """The rows of images of which the judge gives this answer, as they come."""
    for rows in torch.arange(len(images)).split(CHUNK):
        said = model.classify(to_float(images.batch(rows)[0])).logits
        yield from rows[shows(model, said, question, answer)].tolist()


def measure_divergence(before: Float[Tensor, "n k"], after: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """``KL(p | q)`` of the distributions p and q whose logits these are."""
    p, q = F.log_softmax(before, dim=1), F.log_softmax(after, dim=1)
    return (p.exp() * (p - q)).sum(1)
