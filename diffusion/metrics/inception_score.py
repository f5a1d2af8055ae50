"""The Inception Score, of any classifier."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.metrics.base import Metric, MetricInput
from diffusion.metrics.intervals import GROUPS, MetricValue, splits


def inception_score(logits: Float[Tensor, "n k"]) -> float:
    """``exp E KL(p(y | x) || p(y))`` (Salimans et al. 2016, arXiv 1606.03498, section 4), between 1 and K."""
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    marginal = p.mean(0)
    # A class that no image has at all adds nothing: 0 log 0 = 0.
    return (torch.special.xlogy(p, p).sum(1) - torch.special.xlogy(p, marginal).sum(1)).mean().exp().item()


class InceptionScore(Metric):
    """``is``: the mean of :func:`inception_score` over ten disjoint splits, as is usual; the splits are random, and
    have equal shares of each class. Fewer images in a split make it lower."""

    min_samples = 2 * GROUPS

    def lacks(self, sets: MetricInput) -> str | None:
        return "an extractor that knows classes" if sets.samples.logits is None else None

    def __call__(self, sets: MetricInput) -> dict[str, MetricValue]:
        logits = sets.samples.logits
        assert logits is not None
        return {"is": splits([inception_score(logits[sets.groups == g]) for g in range(GROUPS)])}
