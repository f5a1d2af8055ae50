"""Batches for training, in an order that is a pure function of the seed and the position.

Position p counts the images that training has consumed. Which image that is, and whether it is mirrored, depends on the
seed and on p alone: not on the batch size, the number of processes, or where a run was interrupted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from configs.errors import UserError
from degradations.randomness import bits, key
from diffusion.data.base import ImageSet
from diffusion.data.files.threads import one_ahead


def order(seed: int, positions: Int64[np.ndarray, " b"], n: int) -> Int64[np.ndarray, " b"]:
    """The index, below ``n``, of the image at each position; each run of ``n`` positions is an epoch, and a
    permutation."""
    epochs, places = np.divmod(positions, n)
    indices = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _permutation(seed, int(epoch), n)[places[here]]
    return indices


def flips(seed: int, positions: Int64[np.ndarray, " b"]) -> Bool[np.ndarray, " b"]:
    """A fair coin for each position: whether its image is mirrored left to right."""
    return bits(positions, seed, "flip") >> np.uint64(63) == 1


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> Int64[np.ndarray, " n"]:
    # Sorting raw bits, since NumPy promises the same stream for ever for these, not for Generator.permutation.
    permutation = np.argsort(np.random.Philox(key=key(seed, "order", epoch)).random_raw(n), kind="stable")
    permutation.setflags(write=False)
    return permutation


@dataclass(frozen=True)
class Batch:
    """The share of one process in one accumulation part of the global batch of an optimizer step.

    :ivar images: uint8 pixels, on the device of the image set
    :ivar condition: the raw signals of the images, by name, as they are of images that are not mirrored
    :ivar mirrored: which of the images are mirrored
    :ivar positions: the position of each image in the order of training
    :ivar rows: which rows of the global batch these are
    :ivar total: the size of the global batch
    :ivar step: the optimizer step, from 0
    :ivar micro: the accumulation part within the step, from 0
    """

    images: UInt8[Tensor, "b c h w"]
    condition: dict[str, Tensor]
    mirrored: Bool[np.ndarray, " b"]
    positions: Int64[np.ndarray, " b"]
    rows: slice
    total: int
    step: int
    micro: int


class Batches:
    """An endless iterable over the batches of one process, which starts anew each time it is iterated.

    The global batch of optimizer step g covers the positions from g * batch to (g + 1) * batch. It is cut into
    ``accumulate`` parts, and each part into contiguous rows, one range for each rank. A batch may be larger
    than the set.

    :param images: the set to draw from; batches live on its device
    :param seed: decides the order and the mirroring
    :param batch: size of the global batch, over all ranks and accumulation parts
    :param flip: mirror half of the images left to right
    :param start: the optimizer step to begin with
    :param rank: which of the processes this is, from 0
    :param world: how many processes there are
    :param accumulate: accumulation parts of an optimizer step
    :raises UserError: ``batch`` is not a positive multiple of ``world * accumulate``
    :raises ValueError: ``rank`` or ``start`` is out of range, or the set is empty
    """

    def __init__(self, images: ImageSet, seed: int, batch: int, flip: bool = False, start: int = 0, rank: int = 0,
                 world: int = 1, accumulate: int = 1):
        pieces = world * accumulate
        if pieces < 1 or batch < 1 or batch % pieces:
            nearest = max(1, round(batch / max(1, pieces))) * max(1, pieces)
            raise UserError(f"a batch of {batch} for {world} processes and {accumulate} accumulation parts",
                            f"a positive multiple of {world} x {accumulate}", f"batch={nearest}")
        if not 0 <= rank < world or start < 0:
            raise ValueError(f"rank {rank} of {world} and step {start}, but 0 <= rank < world and start >= 0 must hold")
        if len(images) == 0:
            raise ValueError("there are no batches of an empty set")
        self.images, self.seed, self.batch, self.flip = images, seed, batch, flip
        self.start, self.rank, self.world, self.accumulate = start, rank, world, accumulate

    def __iter__(self) -> Iterator[Batch]:
        batches = (self._batch(step, micro) for step in count(self.start) for micro in range(self.accumulate))
        return batches if isinstance(self.images.pixels, Tensor) else one_ahead(batches)

    def _batch(self, step: int, micro: int) -> Batch:
        share = self.batch // (self.accumulate * self.world)
        first = (micro * self.world + self.rank) * share
        positions = np.arange(first, first + share, dtype=np.int64) + step * self.batch
        images, condition = self.images.batch(order(self.seed, positions, len(self.images)))
        mirrored = flips(self.seed, positions) if self.flip else np.zeros(share, bool)
        if self.flip:
            places = torch.from_numpy(np.flatnonzero(mirrored)).to(images.device)
            images[places] = images[places].flip(-1)
        return Batch(images, condition, mirrored, positions, slice(first, first + share), self.batch, step, micro)
