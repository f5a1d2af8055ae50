"""Numbers depend on every part of their key, and a state of numbers adds up."""

import numpy as np
import pytest
import torch

from degradations import randomness
from degradations.base import Estimate, State
from degradations.randomness import BatchStream, Streams, bits

KINDS = {"normal": lambda r, purpose: r.normal(purpose, (2, 500)),
         "uniform": lambda r, purpose: r.uniform(purpose, (2, 500)),
         "integers": lambda r, purpose: r.integers(purpose, 7, (2, 500)).float()}
SAMPLES = {"base": Streams(1, (4, 5), step=3), "seed": Streams(2, (4, 5), step=3), "sample": Streams(1, (6, 7), step=3),
           "step": Streams(1, (4, 5), step=4)}
BATCHES = {"base": BatchStream(1, 3, slice(0, 2), 4), "seed": BatchStream(2, 3, slice(0, 2), 4),
           "rows": BatchStream(1, 3, slice(2, 4), 4), "step": BatchStream(1, 4, slice(0, 2), 4)}


def related(a, b):
    """Largest correlation of a row of a with the same row of b: 1 for the same numbers, about 0.04 for others."""
    return max(abs(torch.corrcoef(torch.stack([x, y]))[0, 1].item()) for x, y in zip(a, b))


@pytest.mark.parametrize("draws", [SAMPLES, BATCHES], ids=["streams", "batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_the_key_counts(draws, kind):
    draw = KINDS[kind]
    base = draw(draws["base"], "state")
    assert torch.equal(draw(draws["base"], "state"), base), "the same key, the same numbers"
    assert related(draw(draws["base"], "time"), base) < 0.25, "purpose"
    for part in draws.keys() - {"base"}:
        assert related(draw(draws[part], "state"), base) < 0.25, part
    assert related(base[:1], base[1:]) < 0.25, "the rows among themselves"


@pytest.mark.parametrize("draws", [SAMPLES, BATCHES], ids=["streams", "batch"])
def test_laws(draws):
    normal, uniform, integers = (draw(draws["base"], "x").flatten() for draw in KINDS.values())
    assert abs(normal.mean()) < 0.15
    assert abs(normal.std() - 1) < 0.1
    assert 0 <= uniform.min() < 0.02
    assert 0.98 < uniform.max() < 1
    assert set(integers.tolist()) == set(range(7))


@pytest.mark.parametrize("draws", [SAMPLES, BATCHES], ids=["streams", "batch"])
def test_another_number_of_rows_is_refused(draws):
    with pytest.raises(ValueError, match="rows"):
        draws["base"].normal("state", (3, 2))
    with pytest.raises(ValueError, match="rows"):
        draws["base"].even("time", 3)


class TestEven:
    @pytest.mark.parametrize("total", [1, 7, 128])
    def test_the_batch_is_a_shifted_grid(self, total):
        u = BatchStream(1, 3, slice(0, total), total).even("time", total)
        gaps = u.sort().values.diff()
        torch.testing.assert_close(gaps, torch.full((total - 1,), 1 / total), atol=1e-6, rtol=0)
        assert 0 <= u.min() <= u.max() < 1

    def test_it_belongs_to_the_global_batch(self):
        whole = BatchStream(1, 3, slice(0, 12), 12).even("time", 12)
        parts = [BatchStream(1, 3, slice(i, i + 4), 12).even("time", 4) for i in (0, 4, 8)]
        assert torch.equal(torch.cat(parts), whole)

    def test_the_shift_is_uniform_and_keyed(self):
        first = torch.stack([BatchStream(1, step, slice(5, 6), 8).even("time", 1)[0] for step in range(2000)])
        assert abs((first < 0.25).double().mean() - 0.25) < 0.04
        assert abs(first.mean() - 0.5) < 0.03
        assert BatchStream(1, 3, slice(0, 4), 4).even("time", 4)[0] not in (
            BatchStream(2, 3, slice(0, 4), 4).even("time", 4)[0], BatchStream(1, 3, slice(0, 4), 4).even("x", 4)[0])

    def test_a_sample_knows_only_itself(self):
        assert torch.equal(Streams(1, (4, 5, 6)).even("time", 3)[1:], Streams(1, (5, 6)).even("time", 2))


def test_bits_are_splitmix64(monkeypatch):
    """The first numbers of the reference implementation for the seed 0 (Vigna, prng.di.unimi.it/splitmix64.c)."""
    assert not np.array_equal(bits(np.arange(3), 1, "a"), bits(np.arange(3), 1, "b"))
    assert np.array_equal(bits(np.array([[2], [0]]), 1, "a").ravel(), bits(np.arange(3), 1, "a")[[2, 0]])
    monkeypatch.setattr(randomness, "key", lambda *parts: 2**64)
    assert [hex(b) for b in bits(np.arange(3)).tolist()] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4",
                                                             "0x6c45d188009454f"]


def test_estimates_add_and_scale_their_images_and_states():
    """Coins and indices are kept from the left; a factor may be one number per row."""
    a = Estimate(torch.ones(2, 1, 2, 2), State(z=torch.full((2, 3), 2.0), coin=torch.tensor([True, False])))
    b = Estimate(torch.full((2, 1, 2, 2), 5.0), State(z=torch.ones(2, 3), coin=torch.tensor([True, True])))
    mixed = a + torch.tensor([0.0, 2.0]) * (a - b) - 0.5 * b
    assert mixed.x0.flatten(1).mean(1).tolist() == [-1.5, -9.5]
    assert mixed.state["z"].mean(1).tolist() == [1.5, 3.5]
    assert torch.equal(mixed.state["coin"], a.state["coin"])
    assert torch.equal((3 * a).state["coin"], a.state["coin"])
    assert torch.equal(a.rows(slice(1, 2)).state["coin"], torch.tensor([False]))
    assert torch.equal(a.state.repeat(2)["coin"], torch.tensor([True, False, True, False]))
