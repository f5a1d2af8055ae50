"""Keyed randomness: every draw is a function of (seed, who, purpose, step), never of batch, rank or device.

Two kinds of source share one interface (:class:`Draws`):

* :class:`Streams`, for sampling. Each sample owns its streams; numbers are made on the CPU by a counter-based
  generator (Philox), so sample 137 of seed 0 gets the same noise at any batch size, split, machine or device.
* :class:`BatchStream`, for training. The whole global batch is drawn from one stream per (seed, step, purpose) on the
  device, of which a rank takes its rows: fast, and independent of the number of ranks.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, UInt64
from torch import Tensor


@runtime_checkable
class Draws(Protocol):
    """A source of keyed random numbers for the rows of one batch. ``shape`` always starts with the rows."""

    @property
    def step(self) -> int:
        """Index of the step, of the training or of the sampling."""
        ...

    @property
    def indices(self) -> Sequence[int]:
        """Global index of each row: among the samples, or in the training batch."""
        ...

    def normal(self, purpose: str, shape: Sequence[int]) -> Float[Tensor, "b *rest"]:
        """Standard normal numbers."""
        ...

    def uniform(self, purpose: str, shape: Sequence[int]) -> Float[Tensor, "b *rest"]:
        """Numbers in [0, 1)."""
        ...

    def integers(self, purpose: str, high: int, shape: Sequence[int]) -> Int[Tensor, "b *rest"]:
        """Whole numbers in [0, high)."""
        ...

    def even(self, purpose: str, n: int) -> Float[Tensor, " b"]:
        """Numbers in [0, 1), each uniform, together as evenly spread as the source can make them."""
        ...


def key(*parts: int | str) -> int:
    """A 128-bit number that depends on all parts and on nothing else (not on Python's salted hash)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=16).digest(), "little")


def generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator keyed by ``parts``."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))


def bits(positions: Int64[np.ndarray, "*n"], *parts: int | str) -> UInt64[np.ndarray, "*n"]:
    """64 random bits for each position, a function of the position and of ``parts`` alone: for what happens to images
    in the order of training, where a generator for each would be slow."""
    start = np.uint64(key(*parts) % 2**64)
    # SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"): a counter, mixed.
    z = start + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True)
class Streams:
    """Per-sample streams for sampling.

    :param seed: seed of the run
    :param indices: global index of each row's sample
    :param device: where the numbers are wanted; they are always made on the CPU
    :param step: index of the sampling step, -1 before the first; part of the key
    """

    seed: int
    indices: tuple[int, ...]
    device: torch.device | str = "cpu"
    step: int = -1

    def at(self, step: int) -> "Streams":
        """The same streams at another step."""
        return replace(self, step=step)

    def normal(self, purpose: str, shape: Sequence[int]) -> Float[Tensor, "b *rest"]:
        return self._rows(purpose, shape, lambda g, s: g.standard_normal(s, dtype=np.float32))

    def uniform(self, purpose: str, shape: Sequence[int]) -> Float[Tensor, "b *rest"]:
        return self._rows(purpose, shape, lambda g, s: g.random(s, dtype=np.float32))

    def integers(self, purpose: str, high: int, shape: Sequence[int]) -> Int[Tensor, "b *rest"]:
        return self._rows(purpose, shape, lambda g, s: g.integers(high, size=s))

    def even(self, purpose: str, n: int) -> Float[Tensor, " b"]:
        """Independent numbers: a sample does not know the others of its batch."""
        return self.uniform(purpose, (n,))

    def _rows(self, purpose: str, shape: Sequence[int], draw) -> Tensor:
        if shape[0] != len(self.indices):
            raise ValueError(f"{shape[0]} rows asked of the streams of {len(self.indices)} samples")
        rows = [draw(generator(self.seed, index, purpose, self.step), tuple(shape[1:])) for index in self.indices]
        return torch.from_numpy(np.stack(rows)).to(self.device)


@dataclass(frozen=True)
class BatchStream:
    """One stream per (seed, step, purpose) for a whole global training batch, of which ``rows`` are ours.

    :param seed: seed of the run
    :param step: optimizer step
    :param rows: which rows of the global batch
    :param total: rows of the global batch
    :param device: where the numbers are drawn
    """

    seed: int
    step: int
    rows: slice
    total: int
    device: torch.device | str = "cpu"

    @property
    def indices(self) -> Sequence[int]:
        return range(self.rows.start, self.rows.stop)

    def normal(self, purpose: str, shape: Sequence[int]) -> Float[Tensor, "b *rest"]:
        return self._cut(torch.randn(self._whole(shape), generator=self._generator(purpose), device=self.device))

    def uniform(self, purpose: str, shape: Sequence[int]) -> Float[Tensor, "b *rest"]:
        return self._cut(torch.rand(self._whole(shape), generator=self._generator(purpose), device=self.device))

    def integers(self, purpose: str, high: int, shape: Sequence[int]) -> Int[Tensor, "b *rest"]:
        size = self._whole(shape)
        return self._cut(torch.randint(high, size, generator=self._generator(purpose), device=self.device))

    def even(self, purpose: str, n: int) -> Float[Tensor, " b"]:
        """Row i of the global batch gets ``(shift + i / total) mod 1``, with one random shift for all."""
        (total,) = self._whole((n,))
        shift = torch.rand(1, generator=self._generator(purpose), device=self.device)
        return self._cut((shift + torch.arange(total, device=self.device) / total) % 1)

    def _whole(self, shape: Sequence[int]) -> tuple[int, ...]:
        if shape[0] != self.rows.stop - self.rows.start:
            raise ValueError(f"{shape[0]} rows asked, {self.rows} are ours")
        return (self.total, *shape[1:])

    def _cut(self, whole: Tensor) -> Tensor:
        return whole[self.rows]

    def _generator(self, purpose: str) -> torch.Generator:
        # torch seeds its CPU generator with 32 bits: adding the step keeps the steps of a run distinct.
        seed = (key(self.seed, purpose) + self.step) % 2**32
        return torch.Generator(self.device).manual_seed(seed)
