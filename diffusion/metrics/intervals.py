"""How sure a number is: its value, a 95 % interval, and the pseudo-values from which both come.

Means of values of single images, or of pairs (the kernel distance), take Student's interval, corrected for skewness;
shares of images take Wilson's. A number that depends on how many images there are, or would count equal ones (Fréchet
distances, Vendi scores), takes a jackknife over disjoint groups of images, or disjoint splits. One that moves by leaps
(recall, coverage) is measured on halves of the images: without a single group it would move by too much. An interval is
about the images that were measured; the reference is taken as it is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy.linalg import hadamard
from scipy.special import ndtri, stdtrit
from torch import Tensor

from degradations.randomness import key

GROUPS = 10
"""Groups of images of which a jackknife leaves out one at a time."""
MOST_GROUPS = 16
"""Groups of images that halves are made of, at most; a power of two."""
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


def mean(values: Float[Tensor, " n"], root: bool = False) -> MetricValue:
    """The mean of a value of each image, or its square root, with an interval that is corrected for the skewness of the
    values (:func:`skewed_interval`). The pseudo-values of a root are its linearization:
    ``theta + (v_i - theta^2) / (2 theta)``.

    :param values: one for each image; beside infinite ones (the PSNR of equal images) the others say the lower end
    :param root: take the root of the mean
    """
    pseudo_values = values = values.double()
    value = values.mean().item()
    finite = values[values.isfinite()]
    low, high = skewed_interval(finite) if len(finite) else (value, value)
    if len(finite) < len(values):
        low, high = min(low, value), max(high, value)
    if root:
        theta = max(value, 0) ** 0.5
        pseudo_values = theta + (values - value) / (2 * theta) if theta > 0 else values
        value, low, high = theta, max(low, 0) ** 0.5, max(high, 0) ** 0.5
    return MetricValue(value, low, high, f"Hall, {len(values)} images", pseudo_values)


def skewed_interval(values: Float64[Tensor, " n"], pairs: float = 0.0) -> tuple[float, float]:
    """A 95 % interval of the mean of values that may be skewed (Hall 1992, "On the removal of skewness by
    transformation", J. R. Stat. Soc. B 54): ``T = (mean - mu) / (s / sqrt(n))`` is transformed to
    ``T + a T^2 + a^2 T^3 / 3 + b``, ``a = (2 skewness + 3 pairs) / (6 sqrt(n))``, ``b = (skewness + 3 pairs) /
    (6 sqrt(n))``, which is normal up to 1 / n. Student's quantiles stand for the normal ones, so that it is his
    interval where nothing is skewed. It holds the mean as often as a studentized bootstrap does, which also corrects to
    1 / n; it needs no random numbers, and is finite where many values are equal.

    :param values: of single images; of one alone nothing is known
    :param pairs: 0 for values of single images. Of the pseudo-values of a mean over pairs of images ``h(x, y)`` it is
        ``E g(X) g(Y) psi(X, Y) / (E g^2)^(3/2)``, ``g(x) = E h(x, Y) - E h``, ``psi(x, y) = h(x, y) - E h - g(x) -
        g(y)`` (Helmers 1991, Ann. Stat. 19, on the studentized U-statistic)
    """
    n, middle = len(values), values.mean().item()
    reach = _reach(values)
    if n < 3 or reach == 0:
        return middle - reach, middle + reach
    z = float(stdtrit(n - 1, (1 + LEVEL) / 2))
    around = values - middle
    skewness = (around**3).mean().item() / around.square().mean().item() ** 1.5 * (n * (n - 1)) ** 0.5 / (n - 2)
    a, b = ((share * skewness + 3 * pairs) / (6 * n**0.5) for share in (2, 1))

    def undo(g: float) -> float:
        # Without skewness the cubic is a line, of which its formula would divide 0 by 0.
        return (math.cbrt(1 + 3 * a * (g - b)) - 1) / a if abs(a) > 1e-9 else g - b

    return middle - undo(z) * reach / z, middle - undo(-z) * reach / z


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


def balanced_share(hits: Bool[Tensor, " n"], positive: Bool[Tensor, " n"]) -> MetricValue:
    """The mean of two shares: of the positive images of which something is true, and of the others (the balanced
    accuracy). Each has Wilson's interval, and the two are combined as by Newcombe 1998 (Stat. Med. 17, 873, method 10):
    ``value - sqrt(sum (p_i - low_i)^2) / 2``, and so above. The pseudo-values are the linearization of the two means.

    :param hits: of which images it is true
    :param positive: which images are of the first kind; both kinds must be there
    """
    parts = [share(hits[chosen]) for chosen in (positive, ~positive)]
    value = sum(part.value for part in parts) / 2
    below, above = (sum((part.value - end) ** 2 for part, end in zip(parts, ends)) ** 0.5 / 2
                    for ends in ([part.low for part in parts], [part.high for part in parts]))
    pseudo_values = torch.full((len(hits),), value, dtype=torch.float64)
    for chosen, part in zip((positive, ~positive), parts, strict=True):
        pseudo_values[chosen] += len(hits) / (2 * int(chosen.sum())) * (part.pseudo_values - part.value)
    return MetricValue(value, value - below, value + above, f"Newcombe, {len(hits)} images", pseudo_values)


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


def half_samples(hits: Bool[Tensor, " m"], one: Bool[Tensor, "h m"], other: Bool[Tensor, "h m"],
                 used: float = 1.0, seed: int = 0) -> MetricValue:
    """The share of m places, which are taken as they are, that a set of images hits, with the noise of the images, from
    the differences between two halves of them (half-sample replication, McCarthy 1969, Rev. Int. Stat. Inst. 37).

    Halves that have no image in common are independent, however the share depends on them, and their mean squared
    difference is twice the variance of a half. Of this, ``D = sum_j var(hit_j) / m^2`` is what the places would have if
    each was hit by itself, which does not depend on the number of images; the rest is due to images that hit several
    places, and half as much for twice as many images. So the variance of the whole is ``D + (V_half - D) / 2``. A
    pseudo-value is ``theta + sqrt(H) / 2 mean_j (1 + s_hj) (one_hj - other_hj)``, with random signs s, in which two
    places are independent: linear in the differences, so that those of two sets are compared one by one. Student's t.

    :param hits: places that the whole set hits
    :param one: those that a half hits, for each of H choices, made so that it is expected to hit as many
    :param other: those that the other half hits
    :param used: share of the images that lie in one of the halves
    :param seed: of the signs
    """
    value, differences = hits.double().mean().item(), one.double() - other.double()
    rng = torch.Generator().manual_seed(key(seed, "places") % 2**63)
    signs = 2 * torch.randint(2, differences.shape, generator=rng) - 1
    together, apart = differences.mean(dim=1), (signs * differences).mean(dim=1)
    count = len(differences)
    pseudo_values = value + count**0.5 / 2 * (used**0.5 * together + (2 - used) ** 0.5 * apart)
    reach = _reach(pseudo_values)
    return MetricValue(value, max(value - reach, 0.0), min(value + reach, 1.0), f"{count} pairs of halves",
                       pseudo_values)


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
        lengths = [len(a.pseudo_values), len(b.pseudo_values)]
        pseudo_values, how = torch.tensor([value], dtype=torch.float64), "two independent sets"
        reach = float("inf")
        if min(lengths) > 1:
            variances = [part.pseudo_values.var().item() / len(part.pseudo_values) for part in (a, b)]
            total = sum(variances)
            below = sum(v**2 / (n - 1) for v, n in zip(variances, lengths))
            freedom = total**2 / below if below > 0 else 1.0
            reach = float(stdtrit(freedom, (1 + LEVEL) / 2)) * total**0.5
    return MetricValue(value, value - reach, value + reach, how, pseudo_values)


def _reach(pseudo_values: Float64[Tensor, " g"]) -> float:
    n = len(pseudo_values)
    return (stdtrit(n - 1, (1 + LEVEL) / 2) * pseudo_values.std() / n**0.5).item() if n > 1 else float("inf")


def assign_groups(n: int, labels: Int64[Tensor, " n"] | None = None, seed: int = 0,
                  count: int = GROUPS) -> Int64[Tensor, " n"]:
    """A group in 0 .. ``count`` - 1 for each of n images, at random, of equal sizes, and within each class too: an
    image set is often sorted by class, or goes through the classes in turn.

    :param labels: classes of the images
    :param count: groups, no more than images
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(key(seed, "groups") % 2**63))
    if labels is not None:
        order = order[torch.argsort(labels[order], stable=True)]
    groups = torch.empty(n, dtype=torch.int64)
    groups[order] = torch.arange(n) % min(count, n)
    return groups


def count_groups(n: int, least: int) -> int:
    """Of how many groups, a power of two, halves are made, so that each holds ``least`` of n images at least; 2 * least
    images are enough."""
    count = MOST_GROUPS
    while count > 2 and n // count * count // 2 < least:
        count //= 2
    return count


def sort_groups(groups: Int64[Tensor, " n"]) -> tuple[Int64[Tensor, " n"], list[int]]:
    """The rows group by group, in groups of one size, then what is left over; and where each of these begins and ends.

    :param groups: of each row, all of sizes that differ by one at most
    """
    sizes = torch.bincount(groups)
    size = int(sizes.min())
    order = torch.argsort(groups, stable=True)
    place = torch.arange(len(groups)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    order = torch.cat([order[place < size], order[place >= size]])
    return order, [*range(0, len(sizes) * size + 1, size), len(groups)]


def draw_halves(count: int) -> Bool[Tensor, "h {count}"]:
    """Choices of half of the groups, ``count`` - 1 of them, any two of which share half of their groups, so that what
    they say is uncorrelated: rows of a matrix of Hadamard (Plackett and Burman 1946).

    :param count: groups, a power of two
    """
    return torch.from_numpy(hadamard(count)[1:] > 0)


def jackknife_groups(groups: Int64[Tensor, " n"], statistic: Callable[[Int64[Tensor, " m"]], float]) -> MetricValue:
    """The jackknife of a statistic of chosen rows.

    :param statistic: from indices of rows to the number
    """
    rows = torch.arange(len(groups))
    return jackknife(statistic(rows), [statistic(rows[groups != g]) for g in range(int(groups.max()) + 1)])
