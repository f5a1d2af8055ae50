"""Whether images show the thing that a reference shows, by embeddings."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TOP = 0.95
"""Share of the other sources of a class to which an image of the same thing is less alike than to its own."""
ROWS = 512
"""Images that are compared at a time."""


class Gallery(NamedTuple):
    """References of different things, one of each.

    :ivar r: (m, d) embeddings, of length 1
    :ivar source: (m,) which thing each shows
    :ivar label: (m,) the class of each
    """

    r: Float[Tensor, "m d"]
    source: Int[Tensor, " m"]
    label: Int[Tensor, " m"]


class Likeness(NamedTuple):
    """How alike images are to references of what they show, and to those of other things.

    :ivar found: (n,) whether the most alike of all references shows the same thing
    :ivar own: (n,) the cosine with the image's own reference
    :ivar others: (n,) the mean cosine with the references of other things of its class; not a number without any
    :ivar above: (n,) whether ``own`` is above the 95th percentile of these, the criterion of a right identity
    """

    found: Bool[Tensor, " n"]
    own: Float[Tensor, " n"]
    others: Float[Tensor, " n"]
    above: Bool[Tensor, " n"]


def measure_likeness(z: Float[Tensor, "n d"], r: Float[Tensor, "n d"], source: Int[Tensor, " n"],
                     label: Int[Tensor, " n"], gallery: Gallery | None = None) -> Likeness:
    """Compare images with their references, and with those of other things.

    :param z: embeddings of the images, of length 1
    :param r: embeddings of their references, of length 1
    :param source: which thing each shows
    :param label: the class of each
    :param gallery: the references of all things; None takes, of each thing here, the first of its own
    """
    if gallery is None:
        first = find_first(source)
        gallery = Gallery(r[first], source[first], label[first])
    # Torch takes the quantiles of 2^24 numbers at most.
    parts = [_compare(z[rows], r[rows], source[rows], label[rows], gallery)
             for rows in torch.arange(len(z)).split(ROWS)]
    return Likeness(*map(torch.cat, zip(*parts, strict=True)))


def _compare(z: Float[Tensor, "n d"], r: Float[Tensor, "n d"], source: Int[Tensor, " n"], label: Int[Tensor, " n"],
             gallery: Gallery) -> Likeness:
    cosines, own = z @ gallery.r.T, (z * r).sum(1)
    same = source[:, None] == gallery.source
    rivals = cosines.masked_fill((label[:, None] != gallery.label) | same, torch.nan)
    found = same.gather(1, cosines.argmax(1, keepdim=True))[:, 0]
    return Likeness(found, own, rivals.nanmean(1), own > rivals.nanquantile(TOP, dim=1))


def find_first(source: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
    """The first row of each thing, in the order of their numbers."""
    things, thing = torch.unique(source, return_inverse=True)
    return torch.full((len(things),), len(source)).scatter_reduce(0, thing, torch.arange(len(source)), "amin")
