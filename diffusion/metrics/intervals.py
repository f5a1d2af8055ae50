"""How sure a number is: its value, a 95 % interval, and the pseudo-values from which both come.

Means of values of single images are bootstrapped, shares of images take Wilson's interval. A number that sampling with
replacement would bias, because it counts equal images or depends on how many there are (Fréchet and kernel distances,
neighbours, Vendi scores), takes a jackknife over disjoint groups of images, or disjoint splits. An interval is about
the images that were measured; the reference is taken as it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy.special import ndtri, stdtrit
from torch import Tensor

from degradations.randomness import key

GROUPS = 10
"""Groups of images of which a jackknife leaves out one at a time."""
RESAMPLES = 1000
"""Resamplings of a bootstrap."""
LEVEL = 0.95


@dataclass(frozen=True)
class MetricValue:
    """A number with its interval.

    :ivar value: the number
    :ivar low: lower end of the 95 % interval
    :ivar high: upper end
    :ivar how: where the interval comes from, in words
    :ivar pseudo_values: one for each image, group or split: they average to the value (after a jackknife, up to its
        bias), and are as good as independent
    """

    value: float
    low: float
    high: float
    how: str
    pseudo_values: Float64[Tensor, " g"]

    def plain(self) -> dict[str, Any]:
        """As plain data, without the pseudo-values."""
        return {"value": self.value, "low": self.low, "high": self.high, "how": self.how}


def bootstrap(values: Float[Tensor, " n"], root: bool = False, seed: int = 0) -> MetricValue:
    """The mean of a value of each image, or its square root, with the quantiles of ``RESAMPLES`` resampled sets (Efron
    1979). The pseudo-values of a root are its linearization: ``theta + (v_i - theta^2) / (2 theta)``.

    :param values: one for each image
    :param root: take the root of the mean
    :param seed: of the resampling
    """
    values = values.double()
    mean = values.mean()
    pseudo_values = values
    if root:
        theta = mean.clamp(min=0).sqrt()
        pseudo_values = theta + (values - mean) / (2 * theta) if theta > 0 else values
    rng = torch.Generator().manual_seed(key(seed, "bootstrap") % 2**63)
    n = len(values)
    means = torch.stack([values[torch.randint(n, (n,), generator=rng)].mean() for _ in range(RESAMPLES)])
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    # An infinite value (the PSNR of equal images) has no quantiles between itself and the others.
    low, high = torch.quantile(means, tails, interpolation="nearest").tolist()
    if root:
        mean, low, high = mean.clamp(min=0).sqrt(), max(low, 0) ** 0.5, max(high, 0) ** 0.5
    return MetricValue(mean.item(), low, high, f"bootstrap over {n} images", pseudo_values)


def share(hits: Bool[Tensor, " n"]) -> MetricValue:
    """The share of images of which something is true, with the score interval of Wilson (1927): unlike a bootstrap, it
    knows that 200 of 200 does not mean always.

    :param hits: of which images it is true
    """
    pseudo_values, n, z = hits.double(), len(hits), float(ndtri((1 + LEVEL) / 2))
    p = pseudo_values.mean().item()
    middle, reach = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = ((middle + sign * reach) / (1 + z**2 / n) for sign in (-1, 1))
    return MetricValue(p, max(0.0, min(low, p)), min(1.0, max(high, p)), f"Wilson, {n} images", pseudo_values)


def jackknife(value: float, without: Sequence[float], max_value: float = float("inf"),
              min_value: float = float("-inf")) -> MetricValue:
    """A number and what it is without each group in turn (Quenouille 1956, Tukey 1958): pseudo-values
    ``G theta - (G - 1) theta_g``, Student's t with G - 1 degrees of freedom.

    :param value: of all images
    :param without: of all but the g-th group
    :param max_value: the number cannot be higher, and so neither is the interval
    :param min_value: nor lower
    """
    left = torch.tensor(without, dtype=torch.float64)
    pseudo_values = len(left) * value - (len(left) - 1) * left
    reach = _reach(pseudo_values)
    low, high = max(value - reach, min_value), min(value + reach, max_value)
    return MetricValue(value, low, high, f"jackknife over {len(left)} groups", pseudo_values)


def splits(values: Sequence[float]) -> MetricValue:
    """The mean over disjoint splits, Student's t."""
    pseudo_values = torch.tensor(values, dtype=torch.float64)
    value, reach = pseudo_values.mean().item(), _reach(pseudo_values)
    return MetricValue(value, value - reach, value + reach, f"{len(pseudo_values)} disjoint splits", pseudo_values)


def difference(a: MetricValue, b: MetricValue, paired: bool) -> MetricValue:
    """``a - b``. It exceeds the noise if the interval does not contain 0.

    :param paired: the pseudo-values of both stand for the same images (or draws), one by one; else the two are
        independent and the degrees of freedom are Welch's (1947)
    """
    value = a.value - b.value
    if paired:
        pseudo_values = a.pseudo_values - b.pseudo_values
        reach, how = _reach(pseudo_values), f"{len(pseudo_values)} pairs"
    else:
        variances = [part.pseudo_values.var().item() / len(part.pseudo_values) for part in (a, b)]
        lengths = [len(a.pseudo_values), len(b.pseudo_values)]
        total = sum(variances)
        below = sum(v**2 / (n - 1) for v, n in zip(variances, lengths))
        freedom = total**2 / below if below > 0 else 1.0
        pseudo_values = torch.tensor([value], dtype=torch.float64)
        reach, how = float(stdtrit(freedom, (1 + LEVEL) / 2)) * total**0.5, "two independent sets"
    return MetricValue(value, value - reach, value + reach, how, pseudo_values)


def _reach(pseudo_values: Float64[Tensor, " g"]) -> float:
    n = len(pseudo_values)
    return (stdtrit(n - 1, (1 + LEVEL) / 2) * pseudo_values.std() / n**0.5).item() if n > 1 else float("inf")


def assign_groups(n: int, labels: Int64[Tensor, " n"] | None = None, seed: int = 0) -> Int64[Tensor, " n"]:
    """A group in 0 .. ``GROUPS`` - 1 for each of n images, at random, of equal sizes, and within each class too: an
    image set is often sorted by class, or goes through the classes in turn.

    :param labels: classes of the images
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(key(seed, "groups") % 2**63))
    if labels is not None:
        order = order[torch.argsort(labels[order], stable=True)]
    groups = torch.empty(n, dtype=torch.int64)
    groups[order] = torch.arange(n) % min(GROUPS, n)
    return groups


def jackknife_groups(groups: Int64[Tensor, " n"], statistic: Callable[[Int64[Tensor, " m"]], float]) -> MetricValue:
    """The jackknife of a statistic of chosen rows.

    :param statistic: from indices of rows to the number
    """
    rows = torch.arange(len(groups))
    return jackknife(statistic(rows), [statistic(rows[groups != g]) for g in range(int(groups.max()) + 1)])
