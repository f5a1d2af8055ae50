"""The kernel distance."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import one_hot

from diffusion.metrics.base import Metric, MetricInput
from diffusion.metrics.intervals import MetricValue, skewed_interval

CHUNK = 2048


def kernel(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    """``(a . b / d + 1)^3``; the products in float32, of which errors average out, the rest in float64."""
    return ((a @ b.mT).double() / a.shape[1] + 1) ** 3


class KID(Metric):
    """``kid``: the unbiased squared maximum mean discrepancy with the kernel ``(a . b / d + 1)^3`` (Binkowski et al.
    2018, arXiv 1801.01401, eq. 4). Over all pairs at once: the usual mean over random subsets estimates the same, and
    adds the noise of their choice. It can be negative; with samples that go through the classes in turn, it tends to
    be, by a share of 1 / n, for they are more alike in this than independent samples. Of restorations it would be
    biased, since each is paired with its original.

    Its pseudo-values are those of a jackknife over single samples. Where samples have classes, these are taken as they
    are, and not as drawn: only what is different within a class is noise.
    """

    min_samples, min_reference = 4, 2

    def __call__(self, sets: MetricInput) -> dict[str, MetricValue]:
        x, y, groups = sets.samples.values, sets.reference.values, sets.groups
        n, m, count = len(x), len(y), int(groups.max()) + 1
        within = _sums(x, x, groups, count, same=True)
        # Each sample with itself is no pair.
        within[torch.arange(n), groups] -= _own(x)
        across = _sums(x, y, torch.zeros(m, dtype=torch.int64), 1)[:, 0] / m
        real = (_sums(y, y, torch.zeros(m, dtype=torch.int64), 1, same=True).sum() - _own(y).sum()) / (m * (m - 1))

        near = within.sum(dim=1) / (n - 1)
        # n theta - (n - 1) theta_i, of a mean over pairs.
        pseudo_values = (2 * (n - 1) * near - n * near.mean()) / (n - 2) + real - 2 * across
        value = pseudo_values.mean()
        noise = _within_classes(pseudo_values - value, sets.conditions)
        g = noise / 2
        # The sum of g_i g_j psi_ij over pairs of different samples, as g sums to nothing.
        pairs = _form(x, g) - (g.square() * (_own(x) - 2 * near + near.mean())).sum()
        scale = g.square().sum() / (n - 1)
        pairs = (pairs / (n * (n - 1) * scale**1.5)).item() if scale > 0 else 0.0
        noise = noise * _single_share(within, groups, noise, sets.conditions) ** 0.5
        low, high = skewed_interval(value + noise, pairs)
        return {"kid": MetricValue(value.item(), low, high, f"Hall, {n} images", value + noise)}


def _within_classes(noise: Float64[Tensor, " n"], labels: Int64[Tensor, " n"] | None) -> Float64[Tensor, " n"]:
    """What is left without the means of classes, at the scale of independent values. Classes of one image are taken as
    one, drawn as they are."""
    if labels is None:
        return noise
    _, classes, sizes = labels.unique(return_inverse=True, return_counts=True)
    _, classes, sizes = torch.where(sizes[classes] > 1, classes, -1).unique(return_inverse=True, return_counts=True)
    means = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, classes, noise) / sizes
    return (noise - means[classes]) * ((len(noise) - 1) / max(1, len(noise) - len(sizes))) ** 0.5


def _single_share(within: Float64[Tensor, "n g"], groups: Int64[Tensor, " n"], noise: Float64[Tensor, " n"],
                  labels: Int64[Tensor, " n"] | None) -> float:
    """The part of the variance of pseudo-values that is left, between a half and 1, when what only pairs of samples
    have is counted once: a jackknife counts it twice (Efron and Stein 1981, Ann. Stat. 9). It is seen in the means over
    pairs of groups, beside what each group has by itself.

    :param within: sums of the kernel of each sample with those of each group
    :param noise: pseudo-values about their mean
    """
    sizes = torch.bincount(groups)
    count, n = len(sizes), len(groups)
    if labels is not None:
        _, classes = labels.unique(return_inverse=True)
        shares = torch.stack([torch.bincount(classes[groups == g], minlength=int(classes.max()) + 1)
                              for g in range(count)])
        # Groups with other shares of the classes would differ in these, which are no noise.
        if (shares != shares[0]).any():
            return 1.0
    if count < 4 or not noise.any():
        return 1.0
    cells = torch.zeros(count, count, dtype=torch.float64).index_add_(0, groups, within) / sizes[:, None] / sizes
    others = 1 - torch.eye(count, dtype=torch.float64)
    rows = (cells * others).sum(dim=1) / (count - 1)
    effects = (rows - rows.mean()) * (count - 1) / (count - 2)
    rest = (cells - rows.mean() - effects[:, None] - effects) * others
    variance = rest.square().sum() / (count * (count - 3)) * (n / count) ** 2
    twice = noise.square().sum() / (n - 1) / n
    return max(0.5, 1 - (2 * variance / (n * (n - 1)) / twice).item())


def _form(x: Float[Tensor, "n d"], g: Float64[Tensor, " n"]) -> Float64[Tensor, ""]:
    """The sum of ``g_i g_j k(x_i, x_j)``."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(0, len(x), CHUNK):
        for j in range(i, len(x), CHUNK):
            part = g[i:i + CHUNK] @ kernel(x[i:i + CHUNK], x[j:j + CHUNK]) @ g[j:j + CHUNK]
            total += part if i == j else 2 * part
    return total


def _own(x: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    squares = torch.cat([part.double().square().sum(1) for part in x.split(CHUNK)])
    return (squares / x.shape[1] + 1) ** 3


def _sums(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], groups: Int64[Tensor, " m"], count: int,
          same: bool = False) -> Float64[Tensor, "n g"]:
    """Sums of the kernel of each row of x with the rows of y of each group.

    :param same: y is x
    """
    total = torch.zeros(len(x), count, dtype=torch.float64)
    members = one_hot(groups, count).double()
    for i in range(0, len(x), CHUNK):
        for j in range(i if same else 0, len(y), CHUNK):
            block = kernel(x[i:i + CHUNK], y[j:j + CHUNK])
            total[i:i + CHUNK] += block @ members[j:j + CHUNK]
            # A block beside the diagonal stands for its mirror image too.
            if same and j > i:
                total[j:j + CHUNK] += block.mT @ members[i:i + CHUNK]
    return total
