"""Classifier guidance: Dhariwal and Nichol 2021, arXiv 2105.05233."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from configs import UserError
from degradations.affine import Affine
from degradations.base import Estimate
from degradations.shapes import expand_like
from degradations.types import Images, Times
from samplers.guidance.base import GuidanceInput, GuidingModel
from samplers.guidance.scales import Scale, Scaled
from samplers.guidance.schedules import ScaleSchedule


class GuidingClassifier(GuidingModel):
    """A classifier of degraded images."""

    def logits(self, x_t: Images, t: Times) -> Float[Tensor, "b k"]:
        """Unnormalised log probabilities of the classes."""
        raise NotImplementedError


class ClassifierGuidance(Scaled):
    """Towards what a classifier takes for the class y (algorithm 2, the form for deterministic samplers):
    ``z - g sigma grad``, ``grad = d log p(y | x_t) / d x_t``, and with it ``x0 + g sigma^2 / alpha grad``.

    Stochastic samplers take the same estimate; the paper's algorithm 1 shifts their mean by the posterior's variance
    instead. Where ``alpha = 0``, x_t says nothing about the image, and nothing is added. A cold degradation has no
    score: ``x0 + g grad``, which is ours, not the paper's.

    The guided model may be unconditional: the class is read from the condition as it was given.

    :param classifier: of images as degraded as x_t is
    :param scale: g; 0 is off and costs nothing
    :param schedule: of g over the run
    :raises UserError: for samples without a class
    """

    def __init__(self, classifier: GuidingClassifier, scale: Scale = 1.0, schedule: ScaleSchedule | None = None):
        super().__init__(scale, schedule)
        self.classifier = classifier

    @property
    def models(self) -> Sequence[GuidingModel]:
        return [self.classifier]

    def delta(self, base: Estimate, outs: Sequence[Estimate], view: GuidanceInput) -> Estimate | None:
        if self.off(view):
            return None
        if "label" not in view.ctx.raw:
            raise UserError("classifier guidance without a class", "the class to guide to", "label=3")
        k, gradient = self.strength(view), self.gradient(view, view.ctx.raw["label"])
        gradient = gradient * (expand_like(k, gradient) if isinstance(k, Tensor) else k)
        if not isinstance(view.degradation, Affine):
            return Estimate(gradient, base.state * 0.0)
        alpha, sigma = view.degradation.coefficients(view.t, view.x_t)
        known = alpha > 0
        return Estimate(torch.where(known, sigma**2 / alpha.where(known, 1) * gradient, 0.0),
                        (base.state * 0.0).replace(z=torch.where(known, -sigma * gradient, 0.0)))

    def gradient(self, view: GuidanceInput, label: Tensor) -> Images:
        """``d log p(label | x_t) / d x_t``, also where the loop computes no gradients."""
        outside = torch.is_grad_enabled()
        with torch.enable_grad():
            x = view.x_t if view.x_t.requires_grad else view.x_t.detach().requires_grad_()
            log_p = F.log_softmax(self.classifier.logits(x, view.t), dim=1)
            # The sum over the batch keeps the samples apart.
            total = log_p.gather(1, label[:, None].long()).sum()
        return torch.autograd.grad(total, x, create_graph=outside)[0]
