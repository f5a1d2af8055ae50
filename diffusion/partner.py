"""Other runs that take part in guidance: a weaker model, an unconditional one, a classifier of degraded images."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from configs import UserError
from degradations.base import Estimate, State
from diffusion.model import Model, load
from models.attention import AttentionHook
from models.conditioning import Context
from samplers.base import Step
from samplers.guidance.base import Partner
from samplers.guidance.classifier import ClassifierPartner

SAME = ("degradation", "space")
"""Parts of two configs that must agree for one model to understand the other's x_t."""


class RunPartner(Partner):
    """What comes from a run folder. It is a checkpoint like any other: nothing in it can run code.

    :param run: the folder that train.py wrote
    :param weights: ``ema`` or ``raw``
    :param step: which checkpoint; None takes the newest
    :raises UserError: if there is no such run or checkpoint
    """

    def __init__(self, run: str, weights: str = "ema", step: int | None = None):
        self.run = run
        self.model: Model = load(run, weights=weights, step=step, device="cpu")

    def check(self, config: dict[str, Any]) -> None:
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


class RunRestorer(RunPartner):
    """The restorer of another run, for the branch of a term. It encodes the condition itself, and leaves it out where
    the guided model is not told either; an unconditional run always does.

    :param run: see :class:`RunPartner`
    """

    def __init__(self, run: str, weights: str = "ema", step: int | None = None):
        super().__init__(run, weights, step)
        self.model.restorer  # noqa: B018 (refuses a classifier)
        self.classes = self.model.num_classes

    def __call__(self, x_t: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], ctx: Context, *, state: State,
                 step: Step | None, attn: AttentionHook | None = None) -> Estimate:
        model = self.at(x_t.device)
        raw = ctx.alt.get("raw")
        own = model.weights.encoder(raw.extra) if raw is not None else model.weights.encoder.null(len(x_t), x_t.device)
        return model.restorer(x_t, t, own, state=state, step=step, attn=attn)


class RunClassifier(RunPartner, ClassifierPartner):
    """The classifier of another run, trained with ``objective/times=uniform`` on images that are degraded alike.

    :param run: see :class:`RunPartner`
    :raises UserError: if the run restores images, or its classifier has seen clean ones alone
    """

    def __init__(self, run: str, weights: str = "ema", step: int | None = None):
        super().__init__(run, weights, step)
        self.model.classifier  # noqa: B018 (refuses a restorer)
        self.classes = self.model.config["model"]["classes"]
        times = self.model.config["objective"]["times"]["_target_"]
        if times.endswith(".Clean"):
            raise UserError(f"{run}, a classifier that has seen clean images alone, as a guide",
                            "one that was trained on degraded images",
                            "python train.py experiment=noisy_classifier_digits")

    def logits(self, x_t: Float[Tensor, "b *rest"], t: Float[Tensor, " b"]) -> Float[Tensor, "b k"]:
        return self.at(x_t.device).classifier(x_t, t).logits
