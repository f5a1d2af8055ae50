"""How different the samples of one condition are from each other."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion.metrics.base import Metric, MetricInput
from diffusion.metrics.intervals import GROUPS, MetricValue, jackknife_groups, mean, share

CHUNK = 4096


def vendi(unit: Float[Tensor, "n d"]) -> float:
    """The Vendi score ``exp(-sum l_i ln l_i)``, l the eigenvalues of ``K / n``, K the cosine similarities: the number
    of different images that would be as diverse, between 1 and n (Friedman and Dieng 2022, arXiv 2210.02410, eq. 3).

    :param unit: features of length 1
    """
    n, d = unit.shape
    # The smaller of K and its dual; in float64, all at once, many images would need more memory than everything else.
    gram = unit.double() @ unit.double().mT if n <= d else sum(x.mT @ x for x in map(Tensor.double, unit.split(CHUNK)))
    assert isinstance(gram, Tensor)
    values = torch.linalg.eigvalsh(gram / n).clamp(min=0)
    return torch.special.entr(values).sum().exp().item()


def mean_similarity(unit: Float[Tensor, "n d"], diagonal: bool = True) -> float:
    """The mean of the matrix of cosine similarities (MSS; Sadat et al. 2023, arXiv 2310.17347, section 5).

    :param unit: features of length 1
    :param diagonal: with those of each image to itself, as the definition has it; else only pairs
    """
    n = len(unit)
    parts = unit.split(CHUNK)
    whole = torch.stack([part.double().sum(0) for part in parts]).sum(0).square().sum().item()
    own = sum(part.double().square().sum().item() for part in parts)
    return whole / n**2 if diagonal else (whole - own) / (n * (n - 1))


def per_condition(conditions: Int64[Tensor, " n"] | None, n: int) -> list[Int64[Tensor, " m"]]:
    """The rows of each condition; all rows are one where there are no conditions."""
    if conditions is None:
        return [torch.arange(n)]
    return [torch.nonzero(conditions == condition)[:, 0] for condition in conditions.unique()]


def too_few(conditions: Int64[Tensor, " n"] | None) -> str | None:
    """What is missing, in words, where no condition has three samples, of which one can be left out."""
    return "at least 3 samples of a condition" if conditions is not None and conditions.bincount().max() < 3 else None


class _OfSimilarities(Metric):
    """A mean over conditions of a statistic of cosine similarities."""

    name: str
    min_samples = 2 * GROUPS

    def statistic(self, unit: Float[Tensor, "n d"]) -> float:
        raise NotImplementedError

    def __call__(self, sets: MetricInput) -> dict[str, MetricValue]:
        unit = torch.nn.functional.normalize(sets.samples.values, dim=1)

        def average(rows: Int64[Tensor, " m"]) -> float:
            parts = per_condition(None if sets.conditions is None else sets.conditions[rows], len(rows))
            values = [self.statistic(unit[rows[part]]) for part in parts if len(part) > 1]
            return sum(values) / len(values)

        return {self.name: jackknife_groups(sets.groups, average)}

    def lacks(self, sets: MetricInput) -> str | None:
        return too_few(sets.conditions)


class Vendi(_OfSimilarities):
    """``vendi``: the mean over conditions of :func:`vendi`, of the cosine similarities of features. Higher is more
    diverse. It grows with the number of samples per condition: compare at equal numbers."""

    name = "vendi"

    def statistic(self, unit: Float[Tensor, "n d"]) -> float:
        return vendi(unit)


class MeanSimilarity(_OfSimilarities):
    """``mss``: the mean over conditions of :func:`mean_similarity`. Lower is more diverse.

    :param diagonal: with the similarity of each sample to itself
    """

    name = "mss"

    def __init__(self, diagonal: bool = True):
        self.diagonal = diagonal

    def statistic(self, unit: Float[Tensor, "n d"]) -> float:
        return mean_similarity(unit, self.diagonal)


class Agreement(Metric):
    """``agreement``: the share of the samples in which the judge, a classifier, sees the class that was asked for.

    Of a judge of several things at once, such as attributes, the mean over samples of the share that it sees as they
    were asked for; ``agreement: NAME``, for one of them; and, with ``, shuffled`` behind, the same against what was
    asked of other samples, which is chance."""

    of_features = False
    of_restorations = True

    def lacks(self, sets: MetricInput) -> str | None:
        if sets.right is not None:
            return None
        if sets.labels is None:
            return "classes of the samples"
        return "a classifier of these images" if sets.predictions is None else None

    def __call__(self, sets: MetricInput) -> dict[str, MetricValue]:
        if sets.right is not None:
            return self._of_questions(sets)
        assert sets.labels is not None
        assert sets.predictions is not None
        return {"agreement": share(sets.predictions == sets.labels)}

    def _of_questions(self, sets: MetricInput) -> dict[str, MetricValue]:
        found = {}
        for ending, right in (("", sets.right), (", shuffled", sets.right_shuffled)):
            if right is None:
                continue
            asked = ~right.isnan()
            found[f"agreement{ending}"] = mean(right[asked.any(1)].nanmean(1))
            for place, name in enumerate(sets.questions):
                if asked[:, place].any():
                    found[f"agreement: {name}{ending}"] = share(right[asked[:, place], place] > 0)
        return found
