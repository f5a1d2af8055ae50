"""Perturbed-attention guidance: Ahn et al. 2024, arXiv 2403.17377; soft: arXiv 2506.10978."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from configs import UserError
from models.attention import AttentionCall
from samplers.guidance.base import Branch, GuidanceInput
from samplers.guidance.scales import Contrast, Scale
from samplers.guidance.schedules import ScaleSchedule
from samplers.guidance.sites import matching, weights
from samplers.protocol import Step


class Perturbation:
    """``perturbation(call, step)``: what a self-attention answers in the perturbed evaluation."""

    def __call__(self, call: AttentionCall, step: Step | None) -> Float[Tensor, "b h nq d"]:
        raise NotImplementedError


class IdentityAttention(Perturbation):
    """Every pixel attends to itself alone: the values. Their weights are not computed."""

    def __call__(self, call: AttentionCall, step: Step | None) -> Float[Tensor, "b h nq d"]:
        return call.v


class SoftAttention(Perturbation):
    """``(1 - a) A + a I``.

    :param amount: a in [0, 1], for all heads or one per head; 1 is :class:`IdentityAttention`, 0 changes nothing
    """

    def __init__(self, amount: float | Sequence[float] = 0.5):
        self.amount = (amount,) if isinstance(amount, int | float) else tuple(amount)
        if not all(0 <= a <= 1 for a in self.amount):
            raise UserError(f"a soft perturbation with amount={amount}", "numbers in [0, 1]", "amount=0.5")

    def __call__(self, call: AttentionCall, step: Step | None) -> Float[Tensor, "b h nq d"]:
        heads = call.q.shape[1]
        if len(self.amount) not in (1, heads):
            raise UserError(f"{len(self.amount)} amounts for the {heads} heads of {call.site.name}", "one for each",
                            f"amount={[self.amount[0]] * heads}, or one number for all")
        return torch.lerp(call.rest(), call.v, call.v.new_tensor(self.amount)[:, None, None])


class UniformAttention(Perturbation):
    """Every pixel attends to all alike: the mean of the values."""

    def __call__(self, call: AttentionCall, step: Step | None) -> Float[Tensor, "b h nq d"]:
        return call.v.mean(dim=2, keepdim=True).expand_as(call.v)


class Mapped(Perturbation):
    """The attention map with errors, for plain attention: ``change(A) v``."""

    def __call__(self, call: AttentionCall, step: Step | None) -> Float[Tensor, "b h nq d"]:
        return self.change(weights(call), call, step) @ call.v

    def change(self, a: Float[Tensor, "b h nq nk"], call: AttentionCall,
               step: Step | None) -> Float[Tensor, "b h nq nk"]:
        """The changed map."""
        raise NotImplementedError


class MaskedAttention(Perturbation):
    """A share of the weights is taken out before the softmax, which makes up for it; never a pixel's own.

    :param rate: the share, in [0, 1]; 1 is :class:`IdentityAttention`
    """

    def __init__(self, rate: float = 0.5):
        self.rate = check_rate(rate)

    def __call__(self, call: AttentionCall, step: Step | None) -> Float[Tensor, "b h nq d"]:
        keep = draw_uniform(call, step) >= self.rate
        keep = keep | torch.eye(keep.shape[-1], dtype=torch.bool, device=keep.device)
        mask = keep if call.mask is None else keep & call.mask
        return weights(replace(call, mask=mask)) @ call.v


class DroppedAttention(Mapped):
    """A share of the weights is set to zero after the softmax, and nothing makes up for it.

    :param rate: the share, in [0, 1]
    """

    def __init__(self, rate: float = 0.5):
        self.rate = check_rate(rate)

    def change(self, a: Float[Tensor, "b h nq nk"], call: AttentionCall,
               step: Step | None) -> Float[Tensor, "b h nq nk"]:
        return a * (draw_uniform(call, step) >= self.rate)


class NoisyAttention(Mapped):
    """Normal noise on the weights.

    :param std: of the noise
    """

    def __init__(self, std: float = 0.1):
        self.std = std

    def change(self, a: Float[Tensor, "b h nq nk"], call: AttentionCall,
               step: Step | None) -> Float[Tensor, "b h nq nk"]:
        return a + self.std * require_step(step).streams.normal(f"pag/{call.site.name}", a.shape)


class BlurredAttention(Mapped):
    """The map, seen as an image, under a Gaussian of 5 x 5.

    :param std: of the Gaussian, in weights
    """

    def __init__(self, std: float = 1.0):
        self.std = std

    def change(self, a: Float[Tensor, "b h nq nk"], call: AttentionCall,
               step: Step | None) -> Float[Tensor, "b h nq nk"]:
        line = torch.softmax(-torch.arange(-2.0, 3, device=a.device) ** 2 / (2 * self.std**2), dim=0)
        kernel = (line[:, None] * line).to(a.dtype).expand(a.shape[1], 1, 5, 5)
        return F.conv2d(F.pad(a, [2] * 4, mode="replicate"), kernel, groups=a.shape[1])


class PooledAttention(Mapped):
    """The map, seen as an image, averaged over 3 x 3."""

    def change(self, a: Float[Tensor, "b h nq nk"], call: AttentionCall,
               step: Step | None) -> Float[Tensor, "b h nq nk"]:
        return F.avg_pool2d(a, 3, stride=1, padding=1, count_include_pad=False)


def check_rate(rate: float) -> float:
    """The rate.

    :raises UserError: if it is no share
    """
    if not 0 <= rate <= 1:
        raise UserError(f"a perturbation with rate={rate:g}", "a share in [0, 1]", "rate=0.5")
    return rate


def require_step(step: Step | None) -> Step:
    """The step, from whose streams is drawn.

    :raises ValueError: outside of a loop, where there is none
    """
    if step is None:
        raise ValueError("a random perturbation needs the step of a loop")
    return step


def draw_uniform(call: AttentionCall, step: Step | None) -> Float[Tensor, "b h nq nk"]:
    """A number in [0, 1) for every weight."""
    b, h, nq, _ = call.q.shape
    return require_step(step).streams.uniform(f"pag/{call.site.name}", (b, h, nq, call.k.shape[2]))


@dataclass(frozen=True)
class Perturbed:
    """The hook of the perturbed evaluation: the perturbation at the named sites."""

    names: tuple[str, ...]
    perturbation: Perturbation
    step: Step | None

    def __call__(self, call: AttentionCall) -> Tensor | None:
        return self.perturbation(call, self.step) if call.site.name in self.names else None


class PAG(Contrast):
    """``estimate + s (estimate - estimate_perturbed)``, the latter with the self-attention maps of some sites replaced
    by the identity, so that the network no longer sees how the parts of an image hang together. For any model, with or
    without a condition.

    :param scale: s; 0 is off and costs nothing. (The official code's ``guide_scale`` is ours plus 1.)
    :param sites: see :func:`samplers.guidance.sites.matching`
    :param perturbation: in place of the identity
    :param schedule: of s over the run
    :raises UserError: for sites that the network does not have
    """

    def __init__(self, scale: Scale = 3.0, sites: Sequence[str] = ("mid",), perturbation: Perturbation | None = None,
                 schedule: ScaleSchedule | None = None):
        super().__init__(scale, schedule)
        self.sites, self.perturbation = tuple(sites), perturbation or IdentityAttention()

    def branch(self, view: GuidanceInput) -> Branch | None:
        names = matching(view.sites, self.sites)
        return Branch(view.ctx, Perturbed(names, self.perturbation, view.step)) if names else None
