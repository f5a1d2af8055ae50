"""The Fréchet distance."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from diffusion.metrics.base import Metric, MetricInput
from diffusion.metrics.intervals import MetricValue, jackknife

CHUNK = 4096


@dataclass(frozen=True)
class Moments:
    """Number, mean and scatter ``sum (x - mean)(x - mean)^T`` of vectors, in float64. The moments of two sets are
    added, in any order and split (Chan, Golub and LeVeque 1979), and those of a part taken away."""

    n: int
    mean: Float64[Tensor, " d"]
    scatter: Float64[Tensor, "d d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"], change: Callable[[Tensor], Tensor] = torch.Tensor.double) -> "Moments":
        """Of all rows, a few thousand at a time.

        :param change: what is made of some rows; its moments are taken
        """
        width = change(features[:0]).shape[1]
        total = cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64))
        for chunk in features.split(CHUNK):
            x = change(chunk)
            mean = x.mean(0)
            total += cls(len(x), mean, (x - mean).mT @ (x - mean))
        return total

    def __add__(self, other: "Moments") -> "Moments":
        n, step = self.n + other.n, other.mean - self.mean
        if n == 0:
            return self
        return Moments(n, self.mean + step * (other.n / n),
                       self.scatter + other.scatter + step.outer(step) * (self.n * other.n / n))

    def __sub__(self, part: "Moments") -> "Moments":
        n = self.n - part.n
        mean = self.mean + (self.mean - part.mean) * (part.n / n)
        step = part.mean - mean
        return Moments(n, mean, self.scatter - part.scatter - step.outer(step) * (n * part.n / self.n))

    @property
    def cov(self) -> Float64[Tensor, "d d"]:
        """The covariance, with n - 1."""
        return self.scatter / (self.n - 1)


class _Reference:
    """A Gaussian to which distances are taken. A factor of its covariance, ``S_b = F F^T`` with F of r columns, is
    found once: the trace of ``(S_a S_b)^(1/2)`` is the sum of the singular values of ``X_a F``, ``S_a = X_a^T X_a``.

    :param features: whose mean and covariance it takes
    """

    def __init__(self, features: Float[Tensor, "m d"]):
        count, width = features.shape
        if count <= width:
            x = features.double()
            self.mean = x.mean(0)
            self.factor = (x - self.mean).mT / (count - 1) ** 0.5
            self.rank = count - 1
        else:
            moments = Moments.of(features)
            self.mean, self.rank = moments.mean, width
            self.factor, failed = torch.linalg.cholesky_ex(moments.cov)
            if failed:  # features that are always 0, or depend on others
                values, vectors = torch.linalg.eigh(moments.cov)
                self.factor = vectors * values.clamp(min=0).sqrt()
        self.trace = self.factor.square().sum()

    def measure(self, features: Float[Tensor, "n d"], groups: Int64[Tensor, " n"]) -> tuple[float, list[float]]:
        """The distance of all rows, and without each of the groups. The smaller of the number of rows and of the
        columns of F is the size of the matrices whose eigenvalues are found.

        :param groups: that of each row, 0, 1, ...
        """
        members = [groups == g for g in range(int(groups.max()) + 1)]
        offsets = [_sum_up(features[rows], self.mean) for rows in members]
        left = range(len(members)) if len(members) > 1 else ()  # without a single group nothing would be left
        sums = [[sum(values) for values in zip(*offsets)]]
        sums += [[all_ - one for all_, one in zip(sums[0], offsets[g])] for g in left]
        if len(features) > self.factor.shape[1]:
            parts = [Moments.of(features[rows], self.project) for rows in members]
            whole = sum(parts[1:], parts[0])
            moments = [whole, *(whole - parts[g] for g in left)]
            covs = (each.cov for each in moments)
        else:
            y = self.project(features)
            y = y - y.mean(0)
            gram = y @ y.mT
            covs = (_center(gram[rows][:, rows]) / (int(rows.sum()) - 1)
                    for rows in (groups >= 0, *(groups != g for g in left)))
        value, *without = [self._distance(n, offset, square, cov)
                           for (n, offset, square), cov in zip(sums, covs, strict=True)]
        return value, without

    def project(self, features: Float[Tensor, "n d"]) -> Float64[Tensor, "n r"]:
        """``(x - mu_b) F``."""
        return (features.double() - self.mean) @ self.factor

    def _distance(self, n: Any, offset: Any, square: Any, product: Float64[Tensor, "k k"]) -> float:
        """:param offset: the sum of ``x - mu_b`` over n rows, and of its square
        :param product: has the eigenvalues of ``S_a S_b``, beside zeros
        """
        step = (offset / n).square().sum()
        rank = min(n - 1, self.rank)  # of those beyond it, only rounding would be summed
        cross = torch.linalg.eigvalsh(product)[-rank:].clamp(min=0).sqrt().sum()
        return max(0.0, (step + self.trace + (square - n * step) / (n - 1) - 2 * cross).item())


def _sum_up(features: Float[Tensor, "n d"], mean: Float64[Tensor, " d"]) -> tuple[int, Tensor, Tensor]:
    """The number of rows, the sum of ``x - mean``, and that of its square."""
    chunks = [chunk.double() - mean for chunk in features.split(CHUNK)]
    zero = torch.zeros((), dtype=torch.float64)
    return len(features), sum((chunk.sum(0) for chunk in chunks), zero), \
        sum((chunk.square().sum() for chunk in chunks), zero)


def _center(gram: Float64[Tensor, "n n"]) -> Float64[Tensor, "n n"]:
    """The Gram matrix of vectors without their mean."""
    line = gram.mean(0)
    return gram - line - line[:, None] + line.mean()


def frechet(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Fréchet distance of two sets of features, each taken as a Gaussian: ``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a
    S_b)^(1/2))`` (Heusel et al. 2017, arXiv 1706.08500, eq. 6). Covariances with n - 1, float64; the trace of the root
    by the eigenvalues of ``F^T S_a F``, ``S_b = F F^T``, or of the Gram matrix that has the same but for zeros, which
    need no imaginary parts to be dropped.
    """
    return _Reference(b).measure(a, torch.zeros(len(a), dtype=torch.long))[0]


class Frechet(Metric):
    """``fd``: :func:`frechet`, with a jackknife. Biased upwards for few samples, the more so the more features there
    are, so that it is compared at equal counts only; the interval is about the noise, not the bias."""

    min_samples, min_reference = 4, 2
    of_restorations = True

    def __call__(self, sets: MetricInput) -> dict[str, MetricValue]:
        value, without = _Reference(sets.reference.values).measure(sets.samples.values, sets.groups)
        return {"fd": jackknife(value, without, min_value=0)}
