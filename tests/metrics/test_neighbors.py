"""Precision, recall, density and coverage against two libraries, by hand, and in blocks; distances; copies."""

from itertools import pairwise

import numpy as np
import prdc
import pytest
import scipy.linalg
import scipy.spatial
import torch
from torch_fidelity import metric_prc
from vectors import correlated, normal, sets

from configs import UserError
from diffusion.metrics import distances
from diffusion.metrics.distances import blocks, nearest, radii
from diffusion.metrics.intervals import assign_groups, half_samples
from diffusion.metrics.neighbors import Memorization, Neighbors, _growth

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
    measured = Neighbors(k=1, density_k=1)(sets(fake, real))
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
    # Each ball holds the copies of its centre, and where there are no others, its k neighbours.
    assert values(shuffled, x)["density"] == (10 / 5 if copies > 5 else 6 / 5)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("mean", [0.0, 10.0])
def test_copies_of_neighbours_are_where_these_are(k, d, mean):
    """A ball ends at its k-th neighbour, so that a copy of this one lies in it: which copies a ball holds is told by
    the order of the distances alone."""
    real = normal(200, d, seed=1, mean=mean)
    chosen = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:40]
    ranks = scipy.spatial.distance.cdist(real.double(), real.double()).argsort(axis=1)[:, :k + 1]
    holds = np.isin(ranks, chosen)
    measured = values(real[chosen], real, k=k, density_k=k)
    assert measured["density"] == pytest.approx(holds.sum() / 40 / k, rel=1e-12)
    assert measured["coverage"] == pytest.approx(holds.any(axis=1).mean(), rel=1e-12)
    assert measured["precision"] == 1
    assert values(real, real[chosen], k=k, density_k=k)["recall"] == 1


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


def test_recall_and_coverage_are_told_from_halves():
    """Each half by itself, by the definition, for all rows of the matrix."""
    x, y = normal(103, 5, seed=1, mean=0.5), normal(80, 5, seed=2)
    groups = assign_groups(103, count=16)
    # 103 images make 16 groups of 6, and 7 are left over.
    rows = [torch.nonzero(groups == g)[:6, 0] for g in range(16)]
    radius = torch.cdist(y.double(), y.double()).sort(dim=1).values[:, 1:]
    growth = _growth(radius, 5, 2 * 103 / 96)

    def hit(samples, growth=1.0):
        own = torch.cdist(samples.double(), samples.double()).sort(dim=1).values[:, 3]
        apart = torch.cdist(y.double(), samples.double())
        return (apart <= own).any(dim=1), apart.amin(dim=1) <= growth * radius[:, 4]

    halves = [[hit(x[torch.cat([rows[g] for g in range(16) if signs[g] == sign])], growth) for sign in (1, -1)]
              for signs in scipy.linalg.hadamard(16)[1:]]
    measured = Neighbors()(sets(x, y))
    for i, name in enumerate(("recall", "coverage")):
        one, other = (torch.stack([pair[side][i] for pair in halves]) for side in (0, 1))
        expected = half_samples(hit(x)[i], one, other, used=96 / 103)
        assert measured[name].plain() == pytest.approx(expected.plain())
        assert torch.allclose(measured[name].pseudo_values, expected.pseudo_values)
        assert len(measured[name].pseudo_values.unique()) > 1


@pytest.mark.parametrize("d", [1, 2, 6])
@pytest.mark.parametrize("share", [2, 3])
def test_balls_grow_until_they_hold_so_much_more(d, share):
    """In a cube without edges the volume of a ball is its share, so that radii grow by the d-th root."""
    x = torch.rand(2000, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    radius = scipy.spatial.cKDTree(x, boxsize=1).query(x, k=11)[0][:, 1:]
    assert _growth(torch.from_numpy(radius), 5, share) == pytest.approx(share ** (1 / d), rel=0.02)
    assert _growth(torch.zeros(3, 10, dtype=torch.float64), 5, share) == 1, "around copies there is nothing to grow"


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
        # Each coordinate of both is rounded by half a step, which is less than 2^-23 of the longest.
        atol = 6**0.5 * 2.0**-23 * (b.double() - b.double().mean(0)).norm(dim=1).max().item()
        ours = torch.cat([distances for _, distances in blocks(a, b)])
        assert np.allclose(ours, expected, rtol=0, atol=atol)
        value, index = nearest(a, b)
        assert np.allclose(value, expected.min(1), rtol=0, atol=atol)
        assert index.tolist() == expected.argmin(1).tolist()

    def test_radii_are_to_other_rows_of_a_union(self):
        x, bounds = correlated(53, 6, seed=1), [0, 20, 21, 53]
        every = scipy.spatial.distance.cdist(x.double().numpy(), x.double().numpy())
        np.fill_diagonal(every, np.inf)
        unions = torch.tensor([[True, True, True], [True, True, False], [False, False, True]])
        found = radii(x, 4, bounds, unions)
        for place, union in zip(found, unions, strict=True):
            kept = np.concatenate([np.arange(low, high) for (low, high), some in zip(pairwise(bounds), union) if some])
            assert np.allclose(place, np.sort(every[:, kept], axis=1)[:, :4], rtol=1e-6)
        assert torch.equal(radii(x, 4, [0, 53], torch.ones(1, 1, dtype=torch.bool))[0], found[0])

    @pytest.mark.parametrize("mean", [0.0, 1000.0])
    def test_equal_distances_are_equal(self, mean, monkeypatch):
        """Of a row and its copy in another set, in both directions, in any block, bit for bit."""
        x = correlated(53, 37, seed=1) + mean
        order = torch.randperm(53, generator=torch.Generator().manual_seed(0))
        square = torch.cat([distances for _, distances in blocks(x, x)])
        assert torch.equal(square, square.mT)
        assert torch.equal(torch.cat([distances for _, distances in blocks(x[order], x)]), square[order])
        alone = torch.cat([distances for row in x for _, distances in blocks(row[None], x)])
        assert torch.equal(alone, square)
        nearest_ones = (square + torch.eye(53) * 1e9).sort(dim=1).values[:, :4]
        assert torch.equal(radii(x, 4, [0, 53], torch.ones(1, 1, dtype=torch.bool))[0], nearest_ones)
        monkeypatch.setattr(distances, "COLUMNS", 9)
        assert torch.equal(torch.cat([distances for _, distances in blocks(x, x)]), square)

    def test_of_whole_numbers_they_are_exact(self):
        a, b = (torch.randint(-50, 50, (n, 11), generator=torch.Generator().manual_seed(n)) for n in (40, 30))
        squares = (a[:, None] - b).square().sum(dim=-1)
        found = torch.cat([distances for _, distances in blocks(a + 0.0, b + 0.0)])
        assert torch.equal(found, squares.double().sqrt())

    def test_to_a_single_vector(self):
        """Which has no length about its own centre."""
        value, _ = nearest(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(1, 2))
        assert value.tolist() == [5, 0]


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
