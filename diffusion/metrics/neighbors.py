"""Metrics by nearest neighbours: precision, recall, density, coverage, and the nearest image of the training set."""

import math
from itertools import pairwise

import torch
from jaxtyping import Bool, Float64
from scipy.special import digamma
from torch import Tensor
from torch.nn.functional import pad

from configs import UserError
from diffusion.metrics.base import Metric, MetricInput
from diffusion.metrics.distances import blocks, nearest, radii
from diffusion.metrics.intervals import (
    MetricValue,
    assign_groups,
    count_groups,
    draw_halves,
    half_samples,
    mean,
    share,
    sort_groups,
)


class Neighbors(Metric):
    """``precision``, the share of the samples inside a ball around a real image, and ``recall``, the share of the real
    images inside a ball around a sample; a ball reaches to the k-th neighbour in its own set (Kynkäänniemi et al. 2019,
    arXiv 1904.06991, eq. 1, with <=). ``density``, in how many balls around real images a sample lies, over k, which
    may exceed 1, and ``coverage``, the share of those balls that hold a sample (Naeem et al. 2020, arXiv 2002.09797).

    Precision is a share and density a mean, over samples. The other two take the differences between halves of the
    samples. In a half, balls around samples hold twice the share of what surrounds them; balls around real images are
    enlarged until they do too, so that a half covers as much as the whole.

    :param k: neighbours, for precision and recall
    :param density_k: neighbours, for density and coverage
    """

    def __init__(self, k: int = 3, density_k: int = 5):
        if min(k, density_k) < 1:
            raise UserError(f"k={k}, density_k={density_k}", "at least one neighbour", "k=3, density_k=5")
        self.k, self.density_k = k, density_k
        # In half of the samples, k others must be left; how balls grow is seen in those of twice as many neighbours.
        self.min_samples, self.min_reference = 2 * (k + 1), max(k, 2 * density_k) + 1

    def __call__(self, sets: MetricInput) -> dict[str, MetricValue]:
        n, real = len(sets.samples), sets.reference.values
        count = count_groups(n, self.k + 1)
        order, bounds = sort_groups(assign_groups(n, sets.conditions, count=count))
        fake, used = sets.samples.values[order], bounds[-2] / bounds[-1]
        halves = draw_halves(count)
        # What is left over is in neither half.
        one, other = pad(halves, (0, 1)), pad(~halves, (0, 1))
        whole = torch.ones(1, count + 1, dtype=torch.bool)

        around_real = radii(real, max(self.k, 2 * self.density_k), [0, len(real)], whole[:, :1])[0]
        small, large = around_real[:, self.k - 1], around_real[:, self.density_k - 1]
        larger = large * _growth(around_real, self.density_k, 2 / used)
        inside = torch.zeros(n, dtype=torch.bool)
        held = torch.zeros(n, dtype=torch.float64)
        closest = torch.full((count + 1, len(real)), torch.inf, dtype=torch.float64)
        for rows, distances in blocks(fake, real):
            inside[rows] = (distances <= small).any(dim=1)
            held[rows] = (distances <= large).sum(dim=1).double()
            for g, (low, high) in enumerate(pairwise(bounds)):
                part = distances[max(0, low - rows.start):max(0, high - rows.start)]
                if len(part):
                    closest[g] = torch.minimum(closest[g], part.amin(dim=0))
        covered = [closest[part].amin(dim=0) <= larger for part in (*one, *other)]

        around_fake = radii(fake, self.k, bounds, torch.cat([whole, one, other]))[..., -1]
        owner = torch.repeat_interleave(torch.arange(count + 1), torch.tensor(bounds).diff())
        of_one, of_other = around_fake[1:].chunk(2)
        radius = torch.where(one[:, owner], of_one, of_other)
        reached, in_halves = [], []
        for _, distances in blocks(real, fake):
            reached.append((distances <= around_fake[0]).any(dim=1))
            in_halves.append(_reach(distances, radius, bounds, one, other))

        by_one, by_other = torch.cat(in_halves, dim=-1)
        covers_one, covers_other = torch.stack(covered).chunk(2)
        original = torch.argsort(order)
        return {"precision": share(inside[original]),
                "recall": half_samples(torch.cat(reached), by_one, by_other, used),
                "density": mean(held[original] / self.density_k),
                "coverage": half_samples(closest.amin(dim=0) <= large, covers_one, covers_other, used)}


def _growth(radius: Float64[Tensor, "n k"], k: int, share: float) -> float:
    """By which factor balls to the k-th neighbour grow to hold ``share`` times as much. The share of a set that a ball
    to the k-th neighbour holds has the mean logarithm ``digamma(k) + const``, so that those to the 2 k-th tell the
    dimension (Levina and Bickel 2004)."""
    near, far = radius[:, k - 1], radius[:, 2 * k - 1]
    grown = (far / near)[near > 0].log()
    if len(grown) == 0:
        return 1.0
    return math.exp(grown.mean().item() * math.log(share) / (digamma(2 * k) - digamma(k)))


def _reach(distances: Float64[Tensor, "r n"], radius: Float64[Tensor, "h n"], bounds: list[int],
           one: Bool[Tensor, "h g"], other: Bool[Tensor, "h g"]) -> Bool[Tensor, "2 h r"]:
    """Whether each row lies in a ball around some sample of one half, and of the other."""
    answers = []
    for reach, *halves in zip(radius, one, other, strict=True):
        near = distances <= reach
        by_group = torch.stack([near[:, low:high].any(dim=1) for low, high in pairwise(bounds)])
        answers.append(torch.stack([by_group[half].any(dim=0) for half in halves]))
    return torch.stack(answers, dim=1)


class Memorization(Metric):
    """How near the samples are to images of the training set, by the nearest one, beside held-out real images.
    ``train distance`` is the mean distance over that of held-out images: near 1 for samples as new as those, 0 for
    copies. ``copied`` is the share of the samples that are nearer than all but ``rare`` of the held-out images: about
    ``rare`` if none is copied. Ends of scales of features differ: look at the picture of the nearest ones too.

    :param rare: share of the held-out images that count as surprisingly near
    """

    of_train = True

    def __init__(self, rare: float = 0.01):
        if not 0 < rare < 1:
            raise UserError(f"rare={rare:g}", "a share in (0, 1)", "rare=0.01")
        self.rare = rare

    def lacks(self, sets: MetricInput) -> str | None:
        return "the images of the training and held-out ones" if sets.train is None or sets.held_out is None else None

    def __call__(self, sets: MetricInput) -> dict[str, MetricValue]:
        assert sets.train is not None
        assert sets.held_out is not None
        distances, _ = sets.nearest_train
        real, _ = nearest(sets.held_out.values, sets.train.values)
        limit = torch.quantile(real, self.rare)
        return {"train distance": mean(distances / real.mean()),
                "copied": share(distances < limit)}
