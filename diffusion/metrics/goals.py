"""What an edit is to make of images, by the answers of a judge that train.py has trained."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from configs import UserError
from diffusion.data.files.images import size
from diffusion.loading import load
from diffusion.model import Model
from diffusion.objectives.answers import AnswerClassifier, split_answers
from diffusion.objectives.asyrp import Goal
from diffusion.objectives.attributes import AttributeClassifier

NO, YES = "no", "yes"
"""The answers about an attribute."""


class Answers(Goal):
    """The cross-entropy of wanted answers, ``mean_q -log p_q(answer | x)``, by a classifier of answers or attributes. It
    is frozen, in no checkpoint, and looks at clean images.

    Take another run than the judge that evaluates, such as one with another seed: what is trained to please the judge
    is not measured by it.

    :param run: its folder, or its file
    :param target: the wanted answers by question: ``{colour: blue}``, ``{Smiling: true}``
    :param source: what the images show that are edited, of which it says this; all if nothing is said
    :param weights: ``ema`` or ``raw``
    :param step: which checkpoint; None takes the newest
    """

    def __init__(self, run: str | None = None, target: Mapping[str, str | bool] | None = None,
                 source: Mapping[str, str | bool] | None = None, weights: str = "ema", step: int | None = None):
        self.run, self.weights, self.step = run, weights, step
        self.target, self.source = dict(target or {}), dict(source or {})
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

    def check_shape(self, shape: Sequence[int]) -> None:
        if not self.target:
            raise UserError("an edit that wants nothing", "wanted answers", "'objective.goal.target={colour: blue}'")
        if tuple(shape) != self.model.image_shape:
            raise UserError(f"images of {size(shape)} for the judge {self.run}, trained on "
                            f"{size(self.model.image_shape)}", "images like those", "another objective.goal.run")
        for question, answer in (*self.target.items(), *self.source.items()):
            find_answer(self.model, question, answer)

    @torch.no_grad()
    def choose(self, x: Float[Tensor, "b c h w"]) -> Bool[Tensor, " b"]:
        return shows(self._on(x), self.answer(x), self.source)

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        return -log_probability(self._on(x), self.answer(x), self.target)

    def answer(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """The judge's logits about clean images."""
        model = self._on(x)
        return model.classifier(model.space.encode(x), x.new_zeros(len(x))).logits

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
                        f"{next(iter(known))}: ...")
    words = known[question]
    said = words[bool(answer)] if words == [NO, YES] and isinstance(answer, bool | int) else str(answer)
    if said not in words:
        raise UserError(f"{model.name} asked whether {question} is {answer}", f"one of {', '.join(words)}",
                        f"{question}: {words[-1]}")
    return words.index(said)


def split_questions(model: Model, logits: Float[Tensor, "n k"]) -> dict[str, Float[Tensor, "n _"]]:
    """The logits of the answers to each question; about an attribute, 0 and its log odds."""
    if isinstance(model.evaluator, AnswerClassifier):
        words = model.evaluator.words
        return dict(zip(words, split_answers(logits, words), strict=True))
    return {question: torch.stack([torch.zeros_like(column), column], dim=1)
            for question, column in zip(model.classifier.questions, logits.unbind(1), strict=True)}


def log_probability(model: Model, logits: Float[Tensor, "n k"],
                    wanted: Mapping[str, str | bool]) -> Float[Tensor, " n"]:
    """``mean_q log p_q(answer)`` of the wanted answers.

    :param logits: what the judge says about images
    """
    parts = split_questions(model, logits)
    return torch.stack([F.log_softmax(parts[question], dim=1)[:, find_answer(model, question, answer)]
                        for question, answer in wanted.items()]).mean(0)


def shows(model: Model, logits: Float[Tensor, "n k"], wanted: Mapping[str, str | bool]) -> Bool[Tensor, " n"]:
    """Whether these are the answers that the judge finds most probable."""
    parts, right = split_questions(model, logits), logits.new_ones(len(logits), dtype=torch.bool)
    for question, answer in wanted.items():
        right = right & (parts[question].argmax(1) == find_answer(model, question, answer))
    return right
