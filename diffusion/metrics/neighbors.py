"""Metrics by nearest neighbours: precision, recall, density, coverage, and the nearest image of the training set."""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from configs import UserError
from diffusion.metrics.base import Metric, MetricInput
from diffusion.metrics.distances import blocks, nearest, radii
from diffusion.metrics.intervals import MetricValue, bootstrap, jackknife, share


class Neighbors(Metric):
    """``precision``, the share of the samples inside a ball around a real image, and ``recall``, the share of the real
    images inside a ball around a sample; a ball reaches to the k-th neighbour in its own set (Kynkäänniemi et al. 2019,
    arXiv 1904.06991, eq. 1, with <=). ``density``, in how many balls around real images a sample lies, over k, which
    may exceed 1, and ``coverage``, the share of those balls that hold a sample (Naeem et al. 2020, arXiv 2002.09797).

    Precision is a share and density a mean, over samples; the other two take the jackknife.

    :param k: neighbours, for precision and recall
    :param density_k: neighbours, for density and coverage
    """

    def __init__(self, k: int = 3, density_k: int = 5):
        if min(k, density_k) < 1:
            raise UserError(f"k={k}, density_k={density_k}", "at least one neighbour", "k=3, density_k=5")
        self.k, self.density_k = k, density_k
        # Without a group of at most a half, k others must be left.
        self.min_samples, self.min_reference = 2 * (k + 1), max(k, density_k) + 1

    def __call__(self, sets: MetricInput) -> dict[str, MetricValue]:
        order = torch.argsort(sets.groups, stable=True)
        fake, real = sets.samples.values[order], sets.reference.values
        bounds = [0, *torch.bincount(sets.groups).cumsum(0).tolist()]
        groups = list(pairwise(bounds))

        around_real = radii(real, max(self.k, self.density_k), [0, len(real)])[0]
        small, large = around_real[:, self.k - 1], around_real[:, self.density_k - 1]
        inside = torch.zeros(len(fake), dtype=torch.bool)
        held = torch.zeros(len(fake), dtype=torch.float64)
        covered = torch.zeros(len(groups), len(real), dtype=torch.bool)
        for rows, distances in blocks(fake, real):
            inside[rows] = (distances <= small).any(dim=1)
            near = distances <= large
            held[rows] = near.sum(dim=1).double()
            for g, (low, high) in enumerate(groups):
                covered[g] |= near[max(0, low - rows.start):max(0, high - rows.start)].any(dim=0)

        around_fake = radii(fake, self.k, bounds)[..., -1]
        reached = torch.cat([_reached(distances, around_fake, groups)
                             for _, distances in blocks(real, fake)], dim=1).double().mean(dim=1).tolist()
        times = covered.sum(dim=0)
        without = [((times - covered[g].long()) > 0).double().mean().item() for g in range(len(groups))]
        original = torch.argsort(order)
        return {"precision": share(inside[original]),
                "recall": jackknife(reached[0], reached[1:], max_value=1, min_value=0),
                "density": bootstrap(held[original] / self.density_k),
                "coverage": jackknife((times > 0).double().mean().item(), without, max_value=1, min_value=0)}


def _reached(distances: Float64[Tensor, "r n"], radius: Float64[Tensor, "g n"],
             groups: list[tuple[int, int]]) -> Bool[Tensor, "g r"]:
    """Whether each row lies in a ball around some sample: of all samples, and of those without each group, whose balls
    reach further."""
    answers = [(distances <= radius[0]).any(dim=1)]
    for (low, high), wider in zip(groups, radius[1:]):
        near = distances <= wider
        near[:, low:high] = False
        answers.append(near.any(dim=1))
    return torch.stack(answers)


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
        return {"train distance": bootstrap(distances / real.mean()),
                "copied": share(distances < limit)}
