"""Embeddings: two pictures of one thing are brought together, those of different things apart."""

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from configs import UserError
from degradations.base import Degradation
from degradations.randomness import Draws
from degradations.types import Images
from diffusion.data.pixels import to_float
from diffusion.objectives.base import Criterion, Losses
from diffusion.objectives.evaluator import Evaluator
from models.conditioning import ConditionEncoder
from models.context import Condition, Context
from models.embedder import Embedder
from models.protocol import Network

SHARPEST = 100.0
"""The largest 1 / tau that is learned, as in CLIP."""


class NetworkEmbedder(Evaluator):
    """``embedder(x) -> (B, D)``: the embeddings of clean images, of length 1. Gradients flow.

    :param network: such as :class:`models.embedder.Embedder`
    :param precision: of the network, see :class:`diffusion.objectives.evaluator.Evaluator`
    """

    task = "embed"
    example = "experiment=embed_scenes"

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.output(x, x.new_zeros(len(x)), Context())

    def try_out(self, x: Float[Tensor, "b ..."], ctx: Context) -> None:
        if not isinstance(self.network, Embedder):
            raise UserError(f"an embedding by {type(self.network).__name__}", "a network that makes unit vectors",
                            "model=embedder_small")
        if ctx.emb is not None or ctx.tokens or ctx.spatial is not None:
            raise UserError("an embedding with a condition", "one that is told nothing", "condition=none")
        self(x)


class Temperature(nn.Module):
    """A temperature that is learned, as its distance ``log(start / tau)`` from where it starts.

    :param start: of the temperature
    """

    def __init__(self, start: float):
        super().__init__()
        self.start = start
        self.sharper = nn.Parameter(torch.zeros(()))

    def forward(self) -> Float[Tensor, ""]:
        """1 / tau, at most :data:`SHARPEST`."""
        return (self.sharper.exp() / self.start).clamp(max=SHARPEST)


class Contrastive(Criterion[NetworkEmbedder]):
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748, equation 4) between the embeddings ``z_i`` of the images and
    ``r_i`` of the raw signal ``reference``, another picture of the same thing, in both directions as in CLIP (Radford
    et al. 2021, arXiv 2103.00020, figure 3): with ``s_ij = <z_i, r_j> / tau``,

    ``L_i = -1/2 (log softmax_j(s_ij)[i] + log softmax_j(s_ji)[i])``.

    Pictures of one thing (equal numbers in the raw signal ``source``, where it is known) are no negatives of each
    other. The negatives are those of the same part of the batch: with several processes, or ``accumulate``, each part
    has a loss of its own, with fewer negatives.

    :param temperature: tau, in (0, 1]; cosines are in [-1, 1]
    :param learned: whether tau, which starts there, is trained with the network, down to 1 / :data:`SHARPEST`
    :raises UserError: for another temperature
    """

    def __init__(self, temperature: float = 0.1, learned: bool = False):
        lowest = 1 / SHARPEST
        if not lowest <= temperature <= 1 or not math.isfinite(temperature):
            raise UserError(f"objective.temperature={temperature:g}", f"a number in [{lowest:g}, 1]",
                            "objective.temperature=0.1")
        self.temperature, self.networks = temperature, {"temperature": Temperature(temperature)} if learned else {}

    def __call__(self, evaluator: NetworkEmbedder, encoder: ConditionEncoder, degradation: Degradation, x0: Images,
                 condition: Condition, rng: Draws) -> Losses:
        z, r = evaluator(torch.cat([x0, to_float(condition["reference"])])).chunk(2)
        sharpness = self.networks["temperature"]() if self.networks else 1 / self.temperature
        scores = mask_alike(sharpness * z @ r.T, condition.get("source"))
        first = scores.argmax(1) == torch.arange(len(scores), device=scores.device)
        return Losses(compare_pairs(scores), x0.new_zeros(len(x0)), {"found": first.float()})

    def check_data(self, known: Collection[str]) -> None:
        if "reference" not in known:
            raise UserError("an embedding of images without a reference, another picture of what each shows",
                            "images with one", "data=scenes data.signals=[label,source,reference]")

    def use(self, network: Network, degradation: Degradation, precision: str) -> NetworkEmbedder:
        return NetworkEmbedder(network, precision)


def mask_alike(scores: Float[Tensor, "b b"], source: Int[Tensor, " b"] | None) -> Float[Tensor, "b b"]:
    """The scores, of which those between different pictures of one thing are minus infinity.

    :param source: a number for each image, equal for pictures of one thing; None: all are different
    """
    if source is None:
        return scores
    alike = (source[:, None] == source) & ~torch.eye(len(source), dtype=torch.bool, device=source.device)
    return scores.masked_fill(alike, -math.inf)


def compare_pairs(scores: Float[Tensor, "b b"]) -> Float[Tensor, " b"]:
    """The mean of the cross-entropies of image i among the references and of reference i among the images.

    :param scores: of image i with reference j
    """
    pairs = torch.arange(len(scores), device=scores.device)
    one, other = (F.cross_entropy(each, pairs, reduction="none") for each in (scores, scores.T))
    return (one + other) / 2
