"""The Fréchet distance."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
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
    def of(cls, features: Float[Tensor, "n d"]) -> "Moments":
        """Of all rows, a few thousand at a time."""
        width = features.shape[1]
        total = cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64))
        for chunk in features.split(CHUNK):
            x = chunk.double()
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
    """A Gaussian to which distances are taken; the root of its covariance is found once."""

    def __init__(self, moments: Moments):
        self.mean, self.trace = moments.mean, moments.cov.trace()
        values, vectors = torch.linalg.eigh(moments.cov)
        self.root = vectors @ (values.clamp(min=0).sqrt()[:, None] * vectors.mT)

    def distance(self, other: Moments) -> float:
        cross = torch.linalg.eigvalsh(self.root @ other.cov @ self.root).clamp(min=0).sqrt().sum()
        distance = (self.mean - other.mean).square().sum() + self.trace + other.cov.trace() - 2 * cross
        return max(0.0, distance.item())


def frechet(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Fréchet distance of two sets of features, each taken as a Gaussian: ``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a
    S_b)^(1/2))`` (Heusel et al. 2017, arXiv 1706.08500, eq. 6). Covariances with n - 1, float64; the trace of the root
    by the eigenvalues of ``S_b^(1/2) S_a S_b^(1/2)``, which need no imaginary parts to be dropped.
    """
    return _Reference(Moments.of(b)).distance(Moments.of(a))


class Frechet(Metric):
    """``fd``: :func:`frechet`, with a jackknife. Biased upwards for few samples, the more so the more features there
    are, so that it is compared at equal counts only; the interval is about the noise, not the bias."""

    min_samples, min_reference = 4, 2
    of_restorations = True

    def __call__(self, sets: MetricInput) -> dict[str, MetricValue]:
        reference = _Reference(Moments.of(sets.reference.values))
        parts = [Moments.of(sets.samples.values[sets.groups == g]) for g in range(int(sets.groups.max()) + 1)]
        whole = parts[0]
        for part in parts[1:]:
            whole += part
        without = [reference.distance(whole - part) for part in parts]
        return {"fd": jackknife(reference.distance(whole), without, min_value=0)}
