"""Precision, recall, density and coverage against two libraries, by hand, and in blocks; distances; copies."""

from itertools import pairwise

import numpy as np
import prdc
import pytest
import scipy.spatial
import torch
from torch_fidelity import metric_prc
from vectors import correlated, left_out, normal, sets, without

from configs import UserError
from diffusion.metrics import distances
from diffusion.metrics.distances import blocks, nearest, radii
from diffusion.metrics.neighbors import Memorization, Neighbors

NAMES = ("precision", "recall", "density", "coverage")


def values(samples, reference, **settings) -> dict[str, float]:
    return {name: measured.value for name, measured in Neighbors(**settings)(sets(samples, reference)).items()}


@pytest.fixture(params=[(103, 80, 2), (103, 150, 6), (200, 200, 32)])
def two(request):
    n, m, d = request.param
    return normal(n, d, seed=1, std=0.8, mean=0.3), normal(m, d, seed=2)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_they_are_those_of_their_authors(two, k):
    """Their ``<`` for our ``<=`` makes no difference where no two distances are equal."""
    samples, reference = two
    expected = prdc.compute_prdc(reference.double().numpy(), samples.double().numpy(), nearest_k=k)
    assert values(samples, reference, k=k, density_k=k) == pytest.approx(expected, rel=1e-9)


def test_each_has_its_own_k(two):
    samples, reference = two
    few, many = (values(samples, reference, k=k, density_k=k) for k in (3, 5))
    assert few != many
    for k, density_k, expected in ((3, 5, few | {name: many[name] for name in ("density", "coverage")}),
                                   (5, 3, many | {name: few[name] for name in ("density", "coverage")})):
        assert values(samples, reference, k=k, density_k=density_k) == pytest.approx(expected)


@pytest.mark.parametrize("calculate", [metric_prc.calculate_precision_recall_full,
                                       metric_prc.calculate_precision_recall_part])
def test_precision_and_recall_are_those_of_torch_fidelity(two, calculate):
    samples, reference = two
    precision, recall = calculate(samples.double(), reference.double(), neighborhood=3)
    ours = values(samples, reference)
    assert ours["precision"] == pytest.approx(precision, rel=1e-6)
    assert ours["recall"] == pytest.approx(recall, rel=1e-6)


def test_by_hand():
    """On a line, with k = 1: the balls around 0, 1, 4 reach 1, 1, 3; those around -0.5, 0.75, 9 reach 1.25, 1.25,
    8.25."""
    real, fake = (torch.tensor(x)[:, None] for x in ([0.0, 1.0, 4.0], [-0.5, 0.75, 9.0]))
    measured = Neighbors(k=1, density_k=1)(sets(fake, real, groups=torch.arange(3)))
    assert measured["precision"].pseudo_values.tolist() == [1, 1, 0]
    assert measured["recall"].value == 1
    # -0.5 lies in the first ball; 0.75 in the first and the second (and 3.25 from 4); 9 in none.
    assert measured["density"].pseudo_values.tolist() == [1, 2, 0]
    assert measured["coverage"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize("d", [2, 64, 512])
@pytest.mark.parametrize("copies", [1, 10])
@pytest.mark.parametrize("mean", [0.0, 10.0])
def test_of_identical_sets_all_are_one(d, copies, mean):
    """Also with copies, around which the balls have no size: equal vectors are 0 apart, not almost."""
    x = normal(200 // copies, d, seed=1, mean=mean).repeat(copies, 1)
    shuffled = x[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    for samples in (x, shuffled):
        ours = values(samples, x)
        assert [ours[name] for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    if copies > 5:
        assert values(shuffled, x)["density"] == 10 / 5, "each ball holds the copies of its centre"


def test_precision_and_recall_swap_with_the_sets(two):
    a, b = two
    one, other = values(a, b), values(b, a)
    assert one["precision"] == pytest.approx(other["recall"])
    assert one["recall"] == pytest.approx(other["precision"])
    assert one["precision"] != one["recall"]


def test_of_one_distribution():
    """Density is about 1 and coverage about ``1 - 2^-k`` (Naeem et al. 2020, section 3.2.2)."""
    ours = values(normal(1500, 4, seed=1), normal(1500, 4, seed=2))
    assert ours["density"] == pytest.approx(1, abs=0.05)
    assert ours["coverage"] == pytest.approx(1 - 2**-5, abs=0.02)


@pytest.mark.parametrize("block", [1, 500, 103 * 80 - 1])
def test_in_blocks(monkeypatch, block):
    both = sets(normal(103, 5, seed=1, mean=0.5), normal(80, 5, seed=2), labels=torch.arange(103) % 3)
    whole = Neighbors()(both)
    monkeypatch.setattr(distances, "BLOCK", block)
    some = Neighbors()(both)
    for name in NAMES:
        assert some[name].value == pytest.approx(whole[name].value)
        assert torch.allclose(some[name].pseudo_values, whole[name].pseudo_values)


def test_the_jackknife_leaves_out_what_it_says():
    both = sets(normal(103, 5, seed=1, mean=0.5), normal(80, 5, seed=2))
    expected = [values(without(both, g), both.reference.values) for g in range(10)]
    measured = Neighbors()(both)
    for name in ("recall", "coverage"):
        assert left_out(measured[name]) == pytest.approx([e[name] for e in expected])
        assert len(set(left_out(measured[name]))) > 1


def test_parts_are_in_the_order_of_the_samples():
    """By which two evaluations are paired: shuffling the samples shuffles the parts."""
    x, y = normal(103, 5, seed=1, mean=0.5), normal(80, 5, seed=2)
    order = torch.randperm(103, generator=torch.Generator().manual_seed(0))
    both, shuffled = Neighbors()(sets(x, y)), Neighbors()(sets(x[order], y))
    for name in ("precision", "density"):
        assert torch.equal(shuffled[name].pseudo_values, both[name].pseudo_values[order])
        assert len(both[name].pseudo_values.unique()) > 1


def test_the_fewest_samples():
    metric = Neighbors(k=3, density_k=5)
    for n in (metric.min_samples, metric.min_samples + 1):
        measured = metric(sets(normal(n, 3, seed=1), normal(metric.min_reference, 3, seed=2)))
        assert all(torch.isfinite(torch.tensor([m.value, m.low, m.high])).all() for m in measured.values())


@pytest.mark.parametrize("settings", [{"k": 0}, {"density_k": 0}])
def test_no_neighbours(settings):
    with pytest.raises(UserError, match="at least one"):
        Neighbors(**settings)


class TestDistances:
    @pytest.fixture(autouse=True, params=[1, 300, 2**24])
    def _block(self, request, monkeypatch):
        monkeypatch.setattr(distances, "BLOCK", request.param)

    @pytest.mark.parametrize("mean", [0.0, 1000.0])
    def test_they_are_euclidean(self, mean):
        a, b = correlated(53, 6, seed=1) + mean, correlated(31, 6, seed=2) + mean
        expected = scipy.spatial.distance.cdist(a.double().numpy(), b.double().numpy())
        ours = torch.cat([distances for _, distances in blocks(a, b)])
        assert np.allclose(ours, expected, rtol=1e-9)
        value, index = nearest(a, b)
        assert np.allclose(value, expected.min(1), rtol=1e-9)
        assert index.tolist() == expected.argmin(1).tolist()

    def test_radii_leave_a_row_and_a_group_out(self):
        x, bounds = correlated(53, 6, seed=1), [0, 20, 21, 53]
        every = scipy.spatial.distance.cdist(x.double().numpy(), x.double().numpy())
        np.fill_diagonal(every, np.inf)
        found = radii(x, 4, bounds)
        assert np.allclose(found[0], np.sort(every, axis=1)[:, :4], rtol=1e-9)
        for g, (low, high) in enumerate(pairwise(bounds)):
            rest = np.delete(every, np.s_[low:high], axis=1)
            assert np.allclose(found[1 + g], np.sort(rest, axis=1)[:, :4], rtol=1e-9)
        assert torch.equal(radii(x, 4, [0, 53])[0], found[0])


class TestMemorisation:
    def measure(self, samples, train, held_out, rare=0.01):
        more = {name: sets(x).samples for name, x in (("train", train), ("held_out", held_out))}
        return Memorization(rare)(sets(samples, **more))

    def test_by_hand(self):
        """Held-out images are 1 to 10 from the nearest image of the training, the samples 0, 5 and 11."""
        train = torch.tensor([[0.0], [1000.0]])
        held_out = torch.arange(1.0, 11.0)[:, None]
        measured = self.measure(torch.tensor([[1000.0], [995.0], [-11.0]]), train, held_out, rare=0.2)
        assert measured["train distance"].pseudo_values.tolist() == pytest.approx([0, 5 / 5.5, 11 / 5.5])
        assert measured["copied"].pseudo_values.tolist() == [1, 0, 0]

    def test_copies_and_new_ones(self):
        train, held_out, new = (normal(n, 4, seed) for seed, n in enumerate((400, 2000, 400)))
        copied = self.measure(train[:100], train, held_out)
        assert (copied["train distance"].value, copied["copied"].value) == (0, 1)
        measured = self.measure(new, train, held_out, rare=0.05)
        assert measured["train distance"].low < 1 < measured["train distance"].high
        assert measured["copied"].low < 0.05 < measured["copied"].high

    def test_it_needs_both_sets(self):
        x = sets(normal(20, 3, seed=1))
        assert Memorization().lacks(x) is not None
        assert Memorization().lacks(sets(normal(20, 3, seed=1), train=x.samples)) is not None
        assert Memorization().lacks(sets(normal(20, 3, seed=1), train=x.samples, held_out=x.samples)) is None

    @pytest.mark.parametrize("rare", [0.0, 1.0])
    def test_rare_is_a_share(self, rare):
        with pytest.raises(UserError, match="rare"):
            Memorization(rare)
