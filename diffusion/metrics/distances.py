"""Euclidean distances between features, block by block, so that memory grows with the number of images and not with
its square.

Equal distances are equal bit for bit, whichever block they come from, so that no tie is decided by rounding: features
are rounded to a grid on which float64 adds their products without an error, in any order.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

COLUMNS = 4096
"""Vectors that are in memory in float64 at a time."""
BLOCK = 2**24
"""Distances that are in memory at a time."""
BITS = 24
"""Of the longest vector, as whole steps of the grid; float32 has as many. A sum of squares and products of two vectors
has 2 (BITS + 1) bits then, and stays below the 53 of float64 up to four times the length."""


def blocks(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Iterator[tuple[slice, Float64[Tensor, "r m"]]]:
    """Distances of a few rows of a at a time to all of b, right to about ``2^-BITS`` of the longest row of b, measured
    from the centre of b. Of a row of a that is over four times as long, the last bits may depend on the block."""
    # The grid is a function of b alone: the distance of a row to another of its own set, and that of its copy in a
    # second set, are the same number.
    centre = torch.stack([part.double().sum(0) for part in b.split(COLUMNS)]).sum(0) / len(b)
    step = _step(_longest(b, centre) or _longest(a, centre))
    centre = (centre / step).round_().mul_(step)

    def on_grid(part: Float[Tensor, "p d"]) -> Float64[Tensor, "p d"]:
        return (part.double() - centre).div_(step).round_()

    squares = torch.cat([on_grid(part).square_().sum(1) for part in b.split(COLUMNS)])
    rows = max(1, BLOCK // len(b))
    for first in range(0, len(a), rows):
        some = on_grid(a[first:first + rows])
        squared = some.square().sum(1, keepdim=True) + squares
        # All of b in float64 would need more memory than everything else.
        for place, part in zip(squared.split(COLUMNS, dim=1), b.split(COLUMNS), strict=True):
            place.addmm_(some, on_grid(part).mT, alpha=-2)
        yield slice(first, first + len(some)), squared.sqrt_().mul_(step)


def _longest(x: Float[Tensor, "n d"], centre: Float64[Tensor, " d"]) -> float:
    return max((part.double() - centre).square_().sum(1).max().item() for part in x.split(COLUMNS)) ** 0.5


def _step(longest: float) -> float:
    """A power of two, so that features that are whole numbers lie on the grid, and steps are divided by exactly."""
    return 2.0 ** (math.frexp(longest)[1] - BITS)


def nearest(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> tuple[Float64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Distance and index of the nearest row of b, for each row of a."""
    # In place: small results between freed blocks would keep their memory from being used again.
    nearest, indices = torch.empty(len(a), dtype=torch.float64), torch.empty(len(a), dtype=torch.int64)
    for rows, distances in blocks(a, b):
        torch.min(distances, dim=1, out=(nearest[rows], indices[rows]))
    return nearest, indices


def radii(x: Float[Tensor, "n d"], k: int, bounds: list[int],
          unions: Bool[Tensor, "u g"]) -> Float64[Tensor, "u n k"]:
    """The distances to the first k other rows, for each row, among the rows of each union of groups.

    :param bounds: where the groups begin and end, rows being sorted by group; ``[0, n]`` for a single one
    :param unions: which groups each is made of; it holds k rows beside any other
    """
    found = torch.empty(len(unions), len(x), k, dtype=torch.float64)
    for rows, distances in blocks(x, x):
        line = torch.arange(len(distances))
        distances[line, line + rows.start] = torch.inf
        by_group = [distances[:, low:high].topk(min(k, high - low), largest=False).values
                    for low, high in pairwise(bounds)]
        for place, union in zip(found, unions.tolist(), strict=True):
            part = torch.cat([near for near, kept in zip(by_group, union, strict=True) if kept], dim=1)
            place[rows] = part.topk(k, largest=False).values
    return found
