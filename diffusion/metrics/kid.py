"""The kernel distance."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from diffusion.metrics.base import Metric, MetricInput
from diffusion.metrics.intervals import MetricValue, jackknife

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
    """

    min_samples, min_reference = 4, 2

    def __call__(self, sets: MetricInput) -> dict[str, MetricValue]:
        x, y, groups = sets.samples.values, sets.reference.values, sets.groups
        count = int(groups.max()) + 1
        sizes = torch.bincount(groups, minlength=count).double()
        within = _sums(x, x, groups, count)
        # Each sample with itself is no pair.
        own = torch.zeros(count, dtype=torch.float64).index_add_(0, groups, _own(x))
        across = _sums(x, y, groups, count, paired=False)[:, 0]
        m = len(y)
        real = (_sums(y, y, torch.zeros(m, dtype=torch.int64), 1)[0, 0] - _own(y).sum()) / (m * (m - 1))

        def value(kept: Tensor) -> float:
            n = sizes[kept].sum()
            ours = (within[kept][:, kept].sum() - own[kept].sum()) / (n * (n - 1))
            return (ours + real - 2 * across[kept].sum() / (n * m)).item()

        every = torch.arange(count)
        return {"kid": jackknife(value(every), [value(every[every != g]) for g in range(count)])}


def _own(x: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    squares = torch.cat([part.double().square().sum(1) for part in x.split(CHUNK)])
    return (squares / x.shape[1] + 1) ** 3


def _sums(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], groups: Int64[Tensor, " n"], count: int,
          paired: bool = True) -> Float64[Tensor, "g h"]:
    """Sums of the kernel by groups of x and, if ``paired``, y is x and has the same groups; else one sum over y."""
    total = torch.zeros(count, count if paired else 1, dtype=torch.float64)
    for i in range(0, len(x), CHUNK):
        mine = groups[i:i + CHUNK]
        for j in range(i if paired else 0, len(y), CHUNK):
            theirs = groups[j:j + CHUNK] if paired else torch.zeros(len(y[j:j + CHUNK]), dtype=torch.int64)
            rows = torch.zeros(count, len(theirs), dtype=torch.float64).index_add_(
                0, mine, kernel(x[i:i + CHUNK], y[j:j + CHUNK]))
            block = torch.zeros(total.shape, dtype=torch.float64).index_add_(1, theirs, rows)
            # A block beside the diagonal stands for its mirror image too.
            total += block + block.mT if paired and j > i else block
    return total
