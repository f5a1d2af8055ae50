"""A discriminator beside an autoencoder."""

import torch
from jaxtyping import Float
from torch import Tensor

from configs import UserError
from degradations.shapes import flatten_rows
from diffusion.objectives.base import Rule, call_constant
from models.autoencoder.discriminator import PatchDiscriminator

LIMIT = 1e4


class Adversarial:
    """The adversarial part of an autoencoder's loss (Esser et al. 2020, arXiv 2012.09841, section 3.1): ``g = -mean
    D(x_rec)`` for the autoencoder, and for the discriminator D the hinge loss ``1/2 (mean relu(1 - D(x)) + mean relu(1
    + D(x_rec)))``, both zero before step ``start``.

    The weight of g follows the gradients of both parts with respect to the decoder's last weight, see
    :func:`balance_gradients`, in each part of a batch and on each device by itself: with it ``accumulate`` is not the
    same to the last digits.

    :param network: D
    :param optimizer: of D
    :param weight: of g in the loss, after the balance
    :param start: optimizer step, from 0, at which D begins to learn and to be heard
    :param adaptive: false leaves the balance out
    :raises UserError: for a negative weight or start
    """

    def __init__(self, network: PatchDiscriminator, optimizer: Rule, weight: float = 0.5, start: int = 0,
                 adaptive: bool = True):
        for name, value in (("weight", weight), ("start", start)):
            if value < 0:
                raise UserError(f"objective.discriminator.{name}={value:g}", "0 or more",
                                f"objective.discriminator.{name}=0")
        self.network, self.optimizer = network, optimizer
        self.weight, self.start, self.adaptive = weight, start, adaptive

    def check_side(self, side: int) -> None:
        """Refuse images that are smaller than the patches.

        :raises UserError: naming both
        """
        if self.network.field > side:
            raise UserError(f"a discriminator of patches of {self.network.field} px for images of {side} px",
                            "patches within the image: 16, 34, 70 px for 1, 2, 3 layers",
                            "objective.discriminator.network.layers=1" if side >= 16 else
                            "objective/discriminator=null")

    def fool(self, made: Float[Tensor, "b c h w"], error: Float[Tensor, " b"],
             last: Tensor) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """``weight g`` of each image, balanced, and the weight.

        :param made: reconstructions
        :param error: what the autoencoder minimises besides
        :param last: the decoder's last weight
        """
        g = -flatten_rows(call_constant(self.network, made)).mean(1)
        weight = g.new_tensor(self.weight)
        if self.adaptive:
            weight = weight * balance_gradients(error.mean(), g.mean(), last)
        return weight * g, weight.expand(len(g))

    def judge(self, x0: Float[Tensor, "b c h w"], made: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """The hinge loss of D for each image and its reconstruction."""
        real, fake = (flatten_rows(self.network(x)) for x in (x0, made.detach()))
        return (torch.relu(1 - real).mean(1) + torch.relu(1 + fake).mean(1)) / 2

    def wait(self, count: int) -> Float[Tensor, " b"]:
        """The loss of D for so many images before the start: zero, with a gradient of zero, which processes exchange
        whether there is one or not."""
        return sum((p.sum() * 0 for p in self.network.parameters()), torch.zeros(())).expand(count)


def balance_gradients(error: Float[Tensor, ""], g: Float[Tensor, ""], last: Tensor) -> Float[Tensor, ""]:
    """``clamp(|grad error| / (|grad g| + 1e-4), 0, 1e4)`` with respect to ``last``, as a constant."""
    ours, theirs = (torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (error, g))
    return (ours / (theirs + 1e-4)).clamp(0, LIMIT).detach()
