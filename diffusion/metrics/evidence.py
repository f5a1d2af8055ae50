"""What images were asked to show, beside what is seen in them: the material of the metrics of conditions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from degradations.randomness import bits
from diffusion.metrics.likeness import Gallery


@dataclass(frozen=True)
class MapPair:
    """Maps of n images.

    :ivar told: where the map that was asked for is above 0
    :ivar seen: where that of the image is
    """

    told: Bool[Tensor, "n h w"]
    seen: Bool[Tensor, "n h w"]


@dataclass(frozen=True)
class VectorPair:
    """Numbers of n images, such as places.

    :ivar told: those that were asked for
    :ivar seen: those that a judge sees
    :ivar mean: of the images of the judge's training
    :ivar words: a name for each number
    """

    told: Float[Tensor, "n k"]
    seen: Float[Tensor, "n k"]
    mean: Float[Tensor, " k"]
    words: Sequence[str]


@dataclass(frozen=True)
class Identities:
    """Things that n images were to show.

    :ivar z: embeddings of the images, of length 1
    :ivar r: embeddings of the references that they were told, of length 1
    :ivar source: which thing each reference shows
    :ivar label: its class
    :ivar gallery: references of all things that could have been asked for
    """

    z: Float[Tensor, "n d"]
    r: Float[Tensor, "n d"]
    source: Int[Tensor, " n"]
    label: Int[Tensor, " n"]
    gallery: Gallery


@dataclass(frozen=True)
class Evidence:
    """All of this about one set of images, as far as it is known.

    :ivar maps: by the name of the signal
    :ivar vector: the numbers that the judge knows about
    :ivar identities: by the name of the signal
    """

    maps: Mapping[str, MapPair] = field(default_factory=dict)
    vector: VectorPair | None = None
    identities: Mapping[str, Identities] = field(default_factory=dict)


def shuffle(n: int) -> Int64[Tensor, " n"]:
    """For each of n rows another one, that has nothing to do with it; always the same."""
    order = torch.from_numpy(bits(np.arange(n), "shuffle").argsort())
    other = torch.empty_like(order)
    other[order] = order.roll(1)  # one cycle: no row is its own, unless it is the only one
    return other
