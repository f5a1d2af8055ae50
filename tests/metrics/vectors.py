"""Random vectors as if they were features, and the sets of a metric made of them."""

import torch

from diffusion.data.base import ImageSet
from diffusion.metrics.base import Features, MetricInput
from diffusion.metrics.intervals import assign_groups

NONE = ImageSet(torch.zeros(1, 1, 1, 1, dtype=torch.uint8))


def normal(n: int, d: int, seed: int, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    """``n`` vectors with independent normal entries."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * std + mean


def correlated(n: int, d: int, seed: int) -> torch.Tensor:
    """``n`` normal vectors of which no two entries are independent, none centred."""
    return normal(n, d, seed) @ normal(d, d, seed + 1000) / d**0.5 + normal(1, d, seed + 2000)


def sets(samples, reference=None, labels=None, logits=None, groups=None, **more) -> MetricInput:
    """What a metric looks at, of features."""
    reference = samples if reference is None else reference
    groups = assign_groups(len(samples), labels) if groups is None else groups
    return MetricInput(NONE, Features(samples, logits), Features(reference), groups, labels=labels, conditions=labels,
                       **more)


def without(sets_: MetricInput, group: int) -> torch.Tensor:
    """The features of the samples that are left when a group is left out."""
    return sets_.samples.values[sets_.groups != group]


def left_out(measured, groups: int = 10) -> list[float]:
    """From the parts of a jackknife back to the numbers without each group."""
    return [(groups * measured.value - part) / (groups - 1) for part in measured.pseudo_values.tolist()]
