"""Euclidean distances between features, in float64, block by block, so that memory grows with the number of images and
not with its square."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

COLUMNS = 4096
"""Vectors that are in memory in float64 at a time."""
BLOCK = 2**24
"""Distances that are in memory at a time."""
ROUNDING = 1e-13
"""Share of the squared lengths that is taken off a squared distance, so that equal vectors are exactly 0 apart."""


def blocks(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Iterator[tuple[slice, Float64[Tensor, "r m"]]]:
    """Distances of a few rows of a at a time to all of b."""
    # About their centre the squares are small, and little is lost where they are subtracted.
    # (All of b in float64 would need more memory than everything else.)
    centre = torch.stack([part.double().sum(0) for part in b.split(COLUMNS)]).sum(0) / len(b)
    squares = torch.cat([(part.double() - centre).square().sum(1) for part in b.split(COLUMNS)])
    rows = max(1, BLOCK // len(b))
    for first in range(0, len(a), rows):
        some = a[first:first + rows].double() - centre
        squared = some.square().sum(1, keepdim=True) + squares
        for place, part in zip(squared.split(COLUMNS, dim=1), b.split(COLUMNS), strict=True):
            place.addmm_(some, (part.double() - centre).mT, beta=1 - ROUNDING, alpha=-2)
        yield slice(first, first + len(some)), squared.clamp_(min=0).sqrt_()


def nearest(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> tuple[Float64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Distance and index of the nearest row of b, for each row of a."""
    # In place: small results between freed blocks would keep their memory from being used again.
    nearest, indices = torch.empty(len(a), dtype=torch.float64), torch.empty(len(a), dtype=torch.int64)
    for rows, distances in blocks(a, b):
        torch.min(distances, dim=1, out=(nearest[rows], indices[rows]))
    return nearest, indices


def radii(x: Float[Tensor, "n d"], k: int, bounds: list[int]) -> Float64[Tensor, "g n k"]:
    """The distances to the first k other rows, for each row: of all rows, and without those of each group.

    :param bounds: where the groups begin and end, rows being sorted by group; ``[0, n]`` for none
    """
    count = len(bounds) - 1
    found = torch.empty(count + 1 if count > 1 else 1, len(x), k, dtype=torch.float64)
    for rows, distances in blocks(x, x):
        line = torch.arange(len(distances))
        distances[line, line + rows.start] = torch.inf
        by_group = [distances[:, low:high].topk(min(k, high - low), largest=False).values
                    for low, high in pairwise(bounds)]
        kept = [by_group] + [by_group[:g] + by_group[g + 1:] for g in range(count) if count > 1]
        for place, part in zip(found, kept, strict=True):
            place[rows] = torch.cat(part, dim=1).topk(k, largest=False).values
    return found
