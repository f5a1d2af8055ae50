"""How well samples show what they were asked to, beyond classes: maps, numbers such as places, and identities."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion.metrics.base import Metric, MetricInput
from diffusion.metrics.evidence import Identities, MapPair, VectorPair, shuffle
from diffusion.metrics.intervals import MetricValue, mean, share, skewed_interval
from diffusion.metrics.likeness import measure_likeness

SHUFFLED = ", shuffled"
"""Behind the names of numbers that compare with what other samples were asked for: chance."""


class _OfConditions(Metric):
    """A metric of what samples were asked to show."""

    of_features = False
    of_conditions = True


class MapAgreement(_OfConditions):
    """``f1: NAME``, the mean over samples of :func:`overlap` of the map that was asked for by the signal NAME, such as
    edges, with that of the sample, pixel by pixel without tolerance; ``iou: NAME`` of the same, as is usual for masks.
    The maps of samples are those that the source of the signal finds (:meth:`models.sources.Source.find`). With
    ``, shuffled`` behind, the same with what was asked of other samples: chance."""

    def lacks(self, sets: MetricInput) -> str | None:
        return None if sets.evidence.maps else "maps that were asked for and can be found in the samples again"

    def __call__(self, sets: MetricInput) -> dict[str, MetricValue]:
        found = {}
        for name, maps in sets.evidence.maps.items():
            other = MapPair(maps.told[shuffle(len(maps.told))], maps.seen)
            for ending, pair in (("", maps), (SHUFFLED, other)):
                f1 = overlap(pair.told, pair.seen)
                found |= {f"f1: {name}{ending}": mean(f1), f"iou: {name}{ending}": mean(f1 / (2 - f1))}
        return found


def overlap(told: Bool[Tensor, "n h w"], seen: Bool[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """``F1 = 2 |a b| / (|a| + |b|)`` of the two sets of pixels of each image, also known as Dice's coefficient, from
    which ``IoU = |a b| / |a or b| = F1 / (2 - F1)``. Two empty sets agree: 1."""
    both, total = ((each).flatten(1).sum(1).double() for each in (told & seen, told.int() + seen.int()))
    return torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)


class VectorAgreement(_OfConditions):
    """``R2: NAME``, for each number of a vector that was asked for, such as the coordinates of landmarks:
    :func:`explain` of what the judge, a run of ``objective=regression``, sees in the samples. ``R2`` is the
    mean of these. With ``, shuffled`` behind, against what was asked of other samples: 0 or less."""

    def lacks(self, sets: MetricInput) -> str | None:
        return None if sets.evidence.vector else "a judge of numbers that were asked for, such as landmarks"

    def __call__(self, sets: MetricInput) -> dict[str, MetricValue]:
        vector = sets.evidence.vector
        assert vector is not None
        other = VectorPair(vector.told[shuffle(len(vector.told))], vector.seen, vector.mean, vector.words)
        return explain_each(vector) | explain_each(other, SHUFFLED)


def explain_each(vector: VectorPair, ending: str = "") -> dict[str, MetricValue]:
    """``R2: NAME`` of each number that is not constant, and their mean ``R2``.

    :param ending: of the names
    """
    each = {name: explain(vector.told[:, i], vector.seen[:, i], vector.mean[i].item())
            for i, name in enumerate(vector.words) if bool((vector.told[:, i] != vector.mean[i]).any())}
    if not each:
        return {}
    whole = torch.stack([number.pseudo_values for number in each.values()]).mean(0)
    return {f"R2{ending}": measure_mean(whole)} | {f"R2: {name}{ending}": number for name, number in each.items()}


def explain(told: Float[Tensor, " n"], seen: Float[Tensor, " n"], middle: float) -> MetricValue:
    """The coefficient of determination against a fixed guess: ``R2 = 1 - sum (y_i - f_i)^2 / sum (y_i - m)^2``, 1 for
    what is seen exactly, 0 for the guess, below for worse. The pseudo-values are its linearization,
    ``R2 - (e_i^2 - (1 - R2) d_i^2) / mean d^2``.

    :param told: the truth y
    :param seen: f
    :param middle: the guess m, such as the mean of the training; some y must differ from it
    """
    error, spread = (told - seen).double().square(), (told - middle).double().square()
    ratio = error.mean() / spread.mean()
    return measure_mean(1 - ratio - (error - ratio * spread) / spread.mean())


def measure_mean(pseudo_values: Float[Tensor, " n"]) -> MetricValue:
    """The mean of pseudo-values of images."""
    low, high = skewed_interval(pseudo_values)
    return MetricValue(pseudo_values.mean().item(), low, high, f"linearized, {len(pseudo_values)} images",
                       pseudo_values)


class IdentityAgreement(_OfConditions):
    """Whether samples show the things whose references they were told, by :func:`diffusion.metrics.likeness.
    measure_likeness` and an embedding that did not train the model, for the signal NAME: ``cosine: NAME`` with the
    reference; ``cosine with others: NAME`` of its class; ``above 95 % of others: NAME``, the share of samples that are
    more alike to their reference than to 95 % of these. With ``, shuffled`` behind, the same with the references of
    other samples."""

    def lacks(self, sets: MetricInput) -> str | None:
        return None if sets.evidence.identities else "references that were told, and an embedding to judge by"

    def __call__(self, sets: MetricInput) -> dict[str, MetricValue]:
        found: dict[str, MetricValue] = {}
        for name, told in sets.evidence.identities.items():
            other = shuffle(len(told.z))
            found |= compare_identities(told, name)
            found |= compare_identities(Identities(told.z, told.r[other], told.source[other], told.label[other],
                                                   told.gallery), f"{name}{SHUFFLED}")
        return found


def compare_identities(told: Identities, name: str) -> dict[str, MetricValue]:
    """The numbers of :class:`IdentityAgreement` by name; those about others are of the samples that have some."""
    likeness = measure_likeness(told.z, told.r, told.source, told.label, told.gallery)
    known = ~likeness.others.isnan()
    found = {f"cosine: {name}": mean(likeness.own)}
    if known.any():
        found |= {f"cosine with others: {name}": mean(likeness.others[known]),
                  f"above 95 % of others: {name}": share(likeness.above[known])}
    return found
