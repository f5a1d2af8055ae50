"""What an autoencoder is trained for."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from configs import UserError
from degradations.base import Degradation
from degradations.randomness import Draws
from degradations.shapes import flatten_rows
from degradations.types import Images
from diffusion.objectives.adversarial import Adversarial
from diffusion.objectives.autoencoder import NetworkAutoencoder
from diffusion.objectives.base import Criterion, Losses
from diffusion.objectives.perceptual import Perceptual
from models.autoencoder.base import Moments
from models.autoencoder.quantizer import list_vectors, measure_perplexity
from models.autoencoder.vq import VQAutoencoder
from models.conditioning import ConditionEncoder
from models.context import Condition
from models.protocol import Network

ERRORS: dict[str, Callable[[Tensor], Tensor]] = {"l1": torch.abs, "l2": torch.square}


class Seen(NamedTuple):
    """The latents of one part of a batch, until its optimizer step ends.

    :ivar step: the optimizer step
    :ivar first: which row of the batch the first image is; the others follow it
    :ivar z: (b, D, H, W)
    :ivar counted: (K, 1 + D), see :meth:`models.autoencoder.quantizer.Quantizer.count`
    """

    step: int
    first: int
    z: Tensor
    counted: Tensor

    def take(self, image: Int64[Tensor, " k"], place: Int64[Tensor, " k"]) -> Float[Tensor, "k d"]:
        """The vectors at these places of these images of the batch; zeros for images of other parts."""
        row = image - self.first
        inside = (row >= 0) & (row < len(self.z))
        return self.z.flatten(2)[row.clamp(0, len(self.z) - 1), :, place] * inside[:, None]


class Autoencoding(Criterion[NetworkAutoencoder]):
    """The first stage of latent diffusion (Rombach et al. 2022, arXiv 2112.10752, section 3.1 and appendix G):

    ``mean |x - x_rec| + w_p perceptual(x, x_rec) + regularizer + w_d g``, ``x_rec = decode(z)``,

    a mean over pixels, where the authors take sums: a term that they sum beside the error and weigh by w has ``w /
    numel(x)`` here, and one that they add to each pixel, as LPIPS, has w.

    * An autoencoder with a distribution of latents: ``z = mean + std n`` and ``kl_weight KL``, ``KL = 1/2 sum(mean^2 +
      std^2 - 1 - log std^2)``. With ``kl_reduction=mean`` the KL term is a mean over the latent's numbers; ``sum`` is
      the authors' sum, over ``numel(x)`` as all is. So the authors' weight w is ``kl_weight=w kl_reduction=sum``, or
      ``kl_weight = w numel(z) / numel(x)`` as a mean: their 1e-6 is 2e-8 for 4 channels at an 8th of 3 x 256 px.
    * One with a codebook: ``z = mean`` and the commitment ``commitment mean |sg(z_q) - z|^2`` (van den Oord et al.
      2017, arXiv 1711.00937, equation 3: beta on this term). The codes follow the encoder by themselves, see
      :class:`models.autoencoder.quantizer.Quantizer`, once for each optimizer step.

    What is logged: ``error`` and each term without its weight; of a codebook the share of codes that a part of the
    batch uses (``codes``) and their perplexity, which depend on its size; of a discriminator its loss and the weight
    of g.

    :param error: ``l1`` or ``l2``
    :param kl_weight: of the KL term; 0 leaves it out, for a network whose latents are points
    :param kl_reduction: ``mean`` or ``sum``
    :param commitment: beta
    :param perceptual: compares images; None is no such term
    :param perceptual_weight: w_p
    :param discriminator: see :class:`diffusion.objectives.adversarial.Adversarial`
    :raises UserError: for other words, and negative weights
    """

    def __init__(self, error: str = "l1", kl_weight: float = 1e-6, kl_reduction: str = "sum", commitment: float = 0.25,
                 perceptual: Perceptual | None = None, perceptual_weight: float = 1.0,
                 discriminator: Adversarial | None = None):
        for name, word, words in (("error", error, list(ERRORS)), ("kl_reduction", kl_reduction, ["mean", "sum"])):
            if word not in words:
                raise UserError(f"objective.{name}={word}", " or ".join(words), f"objective.{name}={words[0]}")
        for name, value in (("kl_weight", kl_weight), ("commitment", commitment),
                            ("perceptual_weight", perceptual_weight)):
            if not value >= 0:
                raise UserError(f"objective.{name}={value:g}", "0 or more", f"objective.{name}=0")
        self.error, self.kl_weight, self.kl_reduction, self.commitment = error, kl_weight, kl_reduction, commitment
        self.perceptual, self.perceptual_weight, self.discriminator = perceptual, perceptual_weight, discriminator
        if discriminator is not None:
            self.networks = {"discriminator": discriminator.network}
            self.optimizers = {"discriminator": discriminator.optimizer}
        self._seen: list[Seen] = []

    def __call__(self, evaluator: NetworkAutoencoder, encoder: ConditionEncoder, degradation: Degradation, x0: Images,
                 condition: Condition, rng: Draws) -> Losses:
        moments, vq = evaluator.encode(x0), isinstance(evaluator.network, VQAutoencoder)
        z = moments.mean if vq else moments.mean + moments.std * rng.normal("latent", moments.mean.shape)
        made = evaluator.decode(z)
        values = error = flatten_rows(ERRORS[self.error](x0 - made)).mean(1)
        logs = {"error": error}
        if self.perceptual is not None:
            logs["perceptual"] = self.perceptual(x0, made)
            values = values + self.perceptual_weight * logs["perceptual"]
        matched = values
        if isinstance(evaluator.network, VQAutoencoder):
            logs |= self._quantize(evaluator.network, z, rng)
            values = values + self.commitment * logs["commitment"]
        elif self.kl_weight:
            logs["kl"] = measure_kl(moments).sum(1) / x0[0].numel() if self.kl_reduction == "sum" \
                else measure_kl(moments).mean(1)
            values = values + self.kl_weight * logs["kl"]
        critics = {}
        if self.discriminator is not None:
            g, logs["g_weight"], critics["discriminator"] = self._discriminate(evaluator, x0, made, matched, rng)
            values = values + g
        return Losses(values, torch.ones_like(values), logs, critics)

    def _quantize(self, network: VQAutoencoder, z: Float[Tensor, "b d h w"], rng: Draws) -> dict[str, Tensor]:
        """The commitment, and how many codes are in use. The latents are kept for the end of the step."""
        codes, quantizer = network.codes(z), network.quantizer
        counted = quantizer.count(list_vectors(z.detach()), codes.flatten())
        if z.requires_grad:
            self._seen = [part for part in self._seen if part.step == rng.step]
            self._seen.append(Seen(rng.step, rng.indices[0], z.detach(), counted))
        used, perplexity = (counted[:, 0] > 0).float().mean(), measure_perplexity(counted[:, 0])
        return {"commitment": flatten_rows((quantizer.look_up(codes) - z).square()).mean(1),
                "codes": used.expand(len(z)), "perplexity": perplexity.expand(len(z))}

    def _discriminate(self, evaluator: NetworkAutoencoder, x0: Images, made: Images, error: Float[Tensor, " b"],
                      rng: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """``w_d g``, ``w_d`` and the discriminator's own loss."""
        assert self.discriminator is not None
        if rng.step < self.discriminator.start:
            return torch.zeros_like(error), torch.zeros_like(error), self.discriminator.wait(len(error))
        last = evaluator.network.last.weight
        return *self.discriminator.fool(made, error, last), self.discriminator.judge(x0, made)

    @torch.no_grad()
    def finish_step(self, evaluator: NetworkAutoencoder, rng: Draws, reduce: Callable[[Tensor], Tensor]) -> None:
        """Has the codebook follow the batch."""
        if not isinstance(evaluator.network, VQAutoencoder) or not self._seen:
            return
        quantizer, parts = evaluator.network.quantizer, self._seen
        k, total, places = len(quantizer.codebook), len(rng.indices), parts[0].z[0, 0].numel()
        # One for each code, of which only those are used that are dead: how many is known on the device alone.
        picks = rng.integers("revived codes", total * places, (total, -(-k // total))).flatten()[:k]
        fresh = torch.stack([part.take(picks // places, picks % places) for part in parts]).sum(0)
        counted = torch.stack([part.counted for part in parts]).sum(0)
        both = reduce(torch.cat([counted, fresh], dim=1))
        quantizer.update(*both.split([counted.shape[1], fresh.shape[1]], dim=1))
        self._seen = []

    def check_shape(self, shape: Sequence[int]) -> None:
        if self.perceptual is not None:
            self.perceptual.check_shape(shape)
        if self.discriminator is not None:
            self.discriminator.check_side(min(shape[1:]))

    def use(self, network: Network, degradation: Degradation, precision: str) -> NetworkAutoencoder:
        return NetworkAutoencoder(network, precision)


def measure_kl(moments: Moments) -> Float[Tensor, "b n"]:
    """``KL(N(mean, std^2) | N(0, 1))`` of each number of the latents, ``1/2 (mean^2 + std^2 - 1 - log std^2)``."""
    mean, std = (flatten_rows(value) for value in moments)
    return (mean.square() + std.square() - 1) / 2 - std.log()
