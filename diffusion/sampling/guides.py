"""Other runs that take part in guidance: a weaker model, an unconditional one, a classifier of degraded images."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from configs import UserError
from degradations.base import Estimate, State
from degradations.types import Images, Times
from diffusion.loading import load
from diffusion.model import Model
from diffusion.objectives.times import CleanTimes
from models.attention import AttentionHook
from models.context import Context
from models.readers import ClassReader, Reader
from samplers.guidance.base import GuidingModel
from samplers.guidance.classifier import GuidingClassifier
from samplers.protocol import Step

SAME = ("degradation", "space")
"""Parts of two configs that must agree for one model to understand the other's x_t."""


class RunModel(GuidingModel):
    """What comes from a run folder or file, loaded when it is first needed. Its checkpoint is one like any other:
    nothing in it can run code.

    :param run: the folder that train.py wrote, or the file of scripts/export.py
    :param weights: ``ema`` or ``raw``
    :param step: which checkpoint; None takes the newest
    """

    def __init__(self, run: str | None = None, weights: str = "ema", step: int | None = None):
        self.run, self.weights, self.step = run, weights, step

    @cached_property
    def model(self) -> Model:
        """The other model.

        :raises UserError: if there is no such run or checkpoint
        """
        if self.run is None:
            raise UserError(f"guidance by another run ({type(self).__name__}) without its name", "a run folder",
                            "guidance.autoguidance.weak.run=RUN, guidance.cfg.unconditional.run=RUN or "
                            "guidance.classifier.classifier.run=RUN")
        return load(self.run, weights=self.weights, step=self.step, device="cpu")

    def check(self, config: dict[str, Any]) -> None:
        """Refuse a run that means other images by x_t.

        :raises UserError: with the difference
        """
        mine = self.model.config
        for key in (*SAME, "shape"):
            here, there = ([c["data"]["size"], c["data"]["channels"]] if key == "shape" else c[key]
                           for c in (mine, config))
            if here != there:
                raise UserError(f"{self.run}, whose {key} is {here}, beside a run with {there}", f"the same {key}",
                                "another run")

    def at(self, device: torch.device) -> Model:
        """The model, on this device from now on."""
        return self.model if self.model.device == device else self.model.to(device)


class RunRestorer(RunModel):
    """The restorer of another run, for the branch of a term. It encodes the condition itself, and leaves it out where
    the guided model is not told either; an unconditional run always does.

    :param run: see :class:`RunModel`
    """

    @property
    def readers(self) -> Mapping[str, Reader]:
        return self.model.weights.encoder.readers

    def __call__(self, x_t: Images, t: Times, ctx: Context, *, state: State, step: Step | None,
                 attn: AttentionHook | None = None) -> Estimate:
        model = self.at(x_t.device)
        own = model.weights.encoder(ctx.raw, n=len(x_t))
        return model.restorer(x_t, t, own, state=state, step=step, attn=attn)


class RunClassifier(RunModel, GuidingClassifier):
    """The classifier of another run, trained with ``objective/times=uniform`` on images that are degraded alike.

    :param run: see :class:`RunModel`
    """

    @property
    def readers(self) -> Mapping[str, Reader]:
        if "classes" not in self.model.config["model"] or self.model.classifier.signal != "label":
            return {}
        reader = ClassReader(self.model.config["model"]["classes"])
        reader.name = "label"
        return {reader.name: reader}

    def check(self, config: dict[str, Any]) -> None:
        """Refuse what is no classifier of images that are degraded like the guided model's.

        :raises UserError: saying what it is
        """
        predicted = self.model.classifier.signal
        if predicted != "label":
            raise UserError(f"{self.run}, a classifier of {predicted}, as a guide to a class", "one of classes",
                            "python train.py experiment=noisy_classifier_digits")
        super().check(config)
        if self.model.config["objective"]["times"]["_target_"] == f"{CleanTimes.__module__}.{CleanTimes.__name__}":
            raise UserError(f"{self.run}, a classifier that has seen clean images alone, as a guide",
                            "one that was trained on degraded images",
                            "python train.py experiment=noisy_classifier_digits")

    def logits(self, x_t: Images, t: Times) -> Float[Tensor, "b k"]:
        return self.at(x_t.device).classifier(x_t, t).logits
