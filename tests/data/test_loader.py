import hashlib
from itertools import islice

import numpy as np
import pytest
import torch

from configs.errors import UserError
from diffusion.data import Batches, ImageSet
from diffusion.data.loader import flips, order

N = 50


@pytest.fixture
def images() -> ImageSet:
    pixels = torch.arange(N, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 2, 4)
    return ImageSet(pixels + torch.arange(4, dtype=torch.uint8) * 60, {"label": torch.arange(N)})


def labels(batches: Batches, count: int) -> list[int]:
    return torch.cat([batch.condition["label"] for batch in islice(batches, count)]).tolist()


def test_each_epoch_is_another_permutation():
    epochs = order(0, np.arange(3 * N), N).reshape(3, N)
    assert (np.sort(epochs) == np.arange(N)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_order_depends_on_seed_and_position_only():
    positions = np.random.default_rng(0).permutation(4 * N)
    assert np.array_equal(order(7, positions, N), order(7, np.arange(4 * N), N)[positions])
    assert not np.array_equal(order(7, np.arange(N), N), order(8, np.arange(N), N))


def key(*parts) -> int:
    """The definition: the first 128 bits of BLAKE2b of the parts as Python writes them."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=16).digest(), "little")


def test_order_is_philox_sorted():
    bits = np.random.Philox(key=key(3, "order", 1)).random_raw(N)
    assert order(3, np.arange(N, 2 * N), N).tolist() == sorted(range(N), key=lambda i: bits[i])


def test_flips_are_splitmix64():
    """The published algorithm, in Python's unbounded integers."""

    def coin(position: int) -> bool:
        mask = 2**64 - 1
        z = (key(3, "flip") + (position + 1) * 0x9E3779B97F4A7C15) & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return bool((z ^ z >> 31) >> 63)

    assert flips(3, np.arange(50)).tolist() == [coin(p) for p in range(50)]


def test_flips_are_fair_and_repeatable():
    coins = flips(0, np.arange(100_000))
    assert abs(coins.mean() - 0.5) < 0.01
    assert abs((coins[1:] == coins[:-1]).mean() - 0.5) < 0.01
    assert np.array_equal(flips(0, np.arange(500, 600)), coins[500:600])
    assert abs((flips(1, np.arange(100_000)) == coins).mean() - 0.5) < 0.01


@pytest.mark.parametrize(("world", "parts"), [(1, 1), (2, 1), (1, 3), (2, 3), (4, 3)])
def test_ranks_and_parts_together_are_the_global_batch(images, world, parts):
    whole = list(islice(Batches(images, 3, 24, flip=True), 4))
    cut = [islice(Batches(images, 3, 24, True, rank=rank, world=world, accumulate=parts), 4 * parts)
           for rank in range(world)]
    pieces = [piece for micro in zip(*cut, strict=True) for piece in micro]
    for step, batch in enumerate(whole):
        mine = [piece for piece in pieces if piece.step == step]
        assert [piece.micro for piece in mine] == sorted(list(range(parts)) * world)
        assert torch.equal(torch.cat([piece.images for piece in mine]), batch.images)
        assert torch.equal(torch.cat([piece.condition["label"] for piece in mine]), batch.condition["label"])
        assert np.array_equal(np.concatenate([piece.positions for piece in mine]), batch.positions)
        for piece in mine:
            assert piece.total == 24
            assert torch.equal(batch.images[piece.rows], piece.images)


def test_batch_size_does_not_change_the_order(images):
    assert labels(Batches(images, 0, 4), 30) == labels(Batches(images, 0, 12), 10)


def test_resume_is_the_tail(images):
    whole = list(islice(Batches(images, 1, 8, flip=True, accumulate=2), 20))
    tail = list(islice(Batches(images, 1, 8, flip=True, accumulate=2, start=6), 8))
    assert [batch.step for batch in tail] == [6, 6, 7, 7, 8, 8, 9, 9]
    for batch, again in zip(whole[12:], tail, strict=True):
        assert torch.equal(batch.images, again.images)
        assert np.array_equal(batch.positions, again.positions)


def test_flips_mirror_the_right_rows_and_leave_the_set_alone(images):
    before = images.images.clone()
    plain, mirrored = next(iter(Batches(images, 2, 40))), next(iter(Batches(images, 2, 40, flip=True)))
    coins = torch.from_numpy(flips(2, plain.positions))
    assert torch.equal(mirrored.images[coins], plain.images[coins].flip(-1))
    assert coins.any()
    assert torch.equal(mirrored.images[~coins], plain.images[~coins])
    assert torch.equal(images.images, before)


def test_a_batch_may_exceed_the_set(images):
    seen = labels(Batches(images, 0, 3 * N), 1)
    assert np.bincount(seen).tolist() == [3] * N


def test_a_set_without_labels(images):
    assert next(iter(Batches(ImageSet(images.images), 0, 4))).condition == {}


def test_a_batch_that_cannot_be_cut(images):
    with pytest.raises(UserError, match=r"batch=30$"):
        Batches(images, 0, 32, world=2, accumulate=3)
    with pytest.raises(UserError, match=r"batch=1$"):
        Batches(images, 0, 0)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Batches(images, 0, 4, rank=2, world=2)
    with pytest.raises(ValueError, match="empty"):
        Batches(ImageSet(images.images[:0]), 0, 4)
