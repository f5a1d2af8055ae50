"""The best linear answer to a measurement, which a model has to beat."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from degradations.decomposition import Diagonal
from degradations.measurement import Measurement

MOST_VALUES = 3072
"""Values of an image up to which its covariance is computed."""
LEAST_NOISE = 1e-3
"""Standard deviation that a measurement without noise is given, so that the system can be solved."""


@dataclass(frozen=True)
class Wiener:
    """``m + C A^T (A C A^T + sigma^2 I)^-1 (y - A m)``, the linear estimate of least mean square error (Wiener 1949),
    with mean m and covariance C of images: what a model would say that knows no more of them than these.

    :ivar mean: (D,) of all values of an image
    :ivar covariance: (D, D)
    """

    mean: Float64[Tensor, " d"]
    covariance: Float64[Tensor, "d d"]

    @classmethod
    def fit(cls, images: Float[Tensor, "n c h w"], white: bool = False) -> "Wiener":
        """The filter for images such as these.

        :param white: take all values for independent and alike, with one mean and one variance: what a filter knows
            that has never seen an image
        """
        values = images.flatten(1).double()
        if white:
            d = values.shape[1]
            return cls(values.mean().expand(d), values.var() * torch.eye(d, dtype=torch.float64))
        return cls(values.mean(0), torch.cov(values.T))

    def __call__(self, known: Measurement) -> Float[Tensor, "b c h w"]:
        """The answer to each measurement, on the CPU."""
        n, shape = len(known.known), tuple(known.shape)
        mean = self.mean.float().reshape(shape).expand(n, *shape)
        residual = known.residual(mean).flatten(1).double()
        noise = max(known.noise, LEAST_NOISE) ** 2
        answer, gain, state = torch.empty(n, len(self.mean), dtype=torch.float64), None, None
        for i in range(n):
            one = known.rows(slice(i, i + 1))
            own = {name: one.state[name] for name in one.state}
            if gain is None or state is None or any(not torch.equal(own[name], state[name]) for name in own):
                gain, state = self._gain(self._matrix(one), noise), own  # often one operator for all
            answer[i] = self.mean + gain @ residual[i]
        return answer.float().reshape(n, *shape)

    def _gain(self, a: Tensor, noise: float) -> Tensor:
        """``C A^T (A C A^T + sigma^2 I)^-1``; rows of A that are 0 measure nothing."""
        seen = a.abs().amax(dim=1) > 0
        cross = self.covariance @ a[seen].T
        whole = a[seen] @ cross + noise * torch.eye(int(seen.sum()), dtype=torch.float64)
        gain = torch.zeros(len(self.mean), len(a), dtype=torch.float64)
        gain[:, seen] = torch.linalg.solve(whole, cross.T).T
        return gain

    def _matrix(self, known: Measurement) -> Tensor:
        """A of one image."""
        found = known.known_decomposition
        if isinstance(found, Diagonal):
            return torch.diag(found.values.expand(1, *known.shape).flatten().double())
        eye = torch.eye(len(self.mean), dtype=torch.float64).reshape(-1, *known.shape)
        return torch.cat([known.apply(x[None]).flatten(1) for x in eye]).T
