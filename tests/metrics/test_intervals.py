"""Intervals against SciPy's, and by simulation: a 95 % interval holds the truth about 95 times in 100."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from vectors import normal, sets

from diffusion.metrics import intervals
from diffusion.metrics.diversity import MeanSimilarity, Vendi
from diffusion.metrics.frechet import Frechet
from diffusion.metrics.intervals import (
    GROUPS,
    assign_groups,
    bootstrap,
    difference,
    jackknife,
    jackknife_groups,
    share,
    splits,
)
from diffusion.metrics.kid import KID
from diffusion.metrics.neighbors import Neighbors


def values(n, seed=0):
    """Skewed, and not about 0."""
    return normal(n, 1, seed)[:, 0].double().exp()


@pytest.mark.parametrize("root", [False, True])
def test_the_bootstrap_is_that_of_scipy(root):
    x = values(300)

    def statistic(x, axis):
        return np.sqrt(x.mean(axis)) if root else x.mean(axis)

    theirs = scipy.stats.bootstrap((x.numpy(),), statistic, method="percentile", n_resamples=4000, rng=0)
    ours = bootstrap(x, root=root)
    assert ours.value == pytest.approx(statistic(x.numpy(), 0))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.1 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.1 * width)
    assert ours.pseudo_values.mean().item() == pytest.approx(ours.value)
    assert bootstrap(x, root=root).plain() == ours.plain(), "the same each time"


def test_the_parts_of_a_root_are_as_uncertain_as_it_is():
    x = values(300)
    one = bootstrap(x, root=True)
    reach = 1.96 * one.pseudo_values.std().item() / 300**0.5
    assert (one.high - one.low) / 2 == pytest.approx(reach, rel=0.1)


@pytest.mark.parametrize("root", [False, True])
def test_of_equal_values_nothing_is_uncertain(root):
    for value in (0.0, 4.0):
        one = bootstrap(torch.full((20,), value), root=root)
        assert one.low == one.value == one.high == (value**0.5 if root else value)


def test_infinite_values_are_a_number():
    """The PSNR of equal images."""
    one = bootstrap(torch.tensor([1.0, 2.0, torch.inf]))
    assert one.value == one.high == math.inf
    assert not math.isnan(one.low)


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (1, 20), (10, 20), (200, 200), (77, 103), (1, 1)])
def test_shares_take_wilsons_interval(hits, n):
    theirs = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
    ours = share(torch.arange(n) < hits)
    assert ours.value == hits / n
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1
    assert type(ours.low) is type(ours.high) is float, "plain data"


def test_the_jackknife_of_a_mean_is_students_interval_of_the_means_of_groups():
    x, groups = values(200), assign_groups(200)
    means = [x[groups == g].mean().item() for g in range(GROUPS)]
    theirs = scipy.stats.ttest_1samp(means, 0).confidence_interval(0.95)
    for ours in (jackknife_groups(groups, lambda rows: x[rows].mean().item()), splits(means)):
        assert ours.value == pytest.approx(x.mean().item())
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
        assert ours.pseudo_values.tolist() == pytest.approx(means)


def test_an_interval_ends_where_the_number_must():
    assert jackknife(0.9, [0.7, 0.99, 0.8], max_value=1, min_value=0).high == 1
    assert jackknife(0.1, [0.3, 0.01, 0.2], max_value=1, min_value=0).low == 0
    assert jackknife(0.5, [0.5, 0.5]).low == jackknife(0.5, [0.5, 0.5]).high == 0.5


class TestDifference:
    def test_of_pairs_it_is_the_paired_t_test(self):
        x, y = values(50, 1), values(50, 2) + 0.3
        ours = difference(bootstrap(x), bootstrap(y), paired=True)
        theirs = scipy.stats.ttest_rel(x, y).confidence_interval(0.95)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
        assert ours.value == pytest.approx((x - y).mean().item())

    @pytest.mark.parametrize("m", [50, 12])
    def test_of_independent_sets_it_is_welchs(self, m):
        x, y = values(50, 1), 3 * values(m, 2)
        ours = difference(bootstrap(x), bootstrap(y), paired=False)
        theirs = scipy.stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))

    def test_pairing_removes_what_both_have_in_common(self):
        common = 10 * values(100, 1)
        x, y = bootstrap(common + 0.1 * values(100, 2)), bootstrap(common + 0.1 * values(100, 3) + 0.1)
        paired, apart = (difference(y, x, paired) for paired in (True, False))
        assert paired.low > 0 > apart.low
        assert paired.value == apart.value == pytest.approx(y.value - x.value)

    @pytest.mark.parametrize("paired", [True, False])
    def test_of_a_number_and_itself_it_is_nothing(self, paired):
        x = bootstrap(values(50))
        assert difference(x, x, paired).value == 0
        assert difference(x, x, paired).low <= 0 <= difference(x, x, paired).high
        equal = share(torch.ones(5, dtype=torch.bool))
        assert difference(equal, equal, paired).plain()["high"] == 0


class TestGroups:
    @pytest.mark.parametrize("n", [20, 103, 7])
    def test_they_are_of_equal_sizes(self, n):
        counts = assign_groups(n).bincount()
        assert len(counts) == min(n, GROUPS)
        assert counts.max() - counts.min() <= 1

    @pytest.mark.parametrize("labels", [torch.arange(200) % 7, torch.arange(200) // 30, torch.arange(200) % 100 // 99])
    def test_within_each_class_too(self, labels):
        groups = assign_groups(200, labels)
        assert groups.bincount().tolist() == [20] * GROUPS
        for label in labels.unique():
            counts = groups[labels == label].bincount(minlength=GROUPS)
            assert counts.max() - counts.min() <= 1

    def test_they_are_random_and_the_same_each_time(self):
        assert torch.equal(assign_groups(100), assign_groups(100))
        assert not torch.equal(assign_groups(100), assign_groups(100, seed=1))
        assert not torch.equal(assign_groups(100), torch.arange(100) % GROUPS)
        neighbours = (assign_groups(1000)[1:] == assign_groups(1000)[:-1]).double().mean()
        assert neighbours < 0.2, "no runs of one group"


REFERENCE = normal(200, 4, seed=999)


def held(measured, truth=None):
    """How often the interval holds the truth; not given, that is the mean of all values."""
    truth = np.mean([one.value for one in measured]) if truth is None else truth
    return np.mean([one.low <= truth <= one.high for one in measured])


@pytest.mark.parametrize(("metric", "name"), [(Frechet(), "fd"), (KID(), "kid"), (Vendi(), "vendi"),
                                              (MeanSimilarity(), "mss")])
@pytest.mark.parametrize("n", [60, 200])
def test_intervals_of_sets_hold_what_they_promise(metric, name, n):
    """About the expectation at this number of images: the bias of few is not noise."""
    measured = [metric(sets(normal(n, 4, seed, mean=0.3, std=1.2), REFERENCE))[name] for seed in range(250)]
    assert 0.9 <= held(measured) <= 0.995


def test_intervals_of_neighbours_hold_what_they_promise():
    """The jackknife of the two that are not smooth is too wide rather than too narrow."""
    measured = [Neighbors()(sets(normal(80, 4, seed, mean=0.3, std=1.2), REFERENCE)) for seed in range(120)]
    for name in ("precision", "recall", "density", "coverage"):
        assert held([numbers[name] for numbers in measured]) >= 0.9


@pytest.mark.parametrize(("power", "root"), [(1, False), (2, False), (2, True)])
def test_intervals_of_means_hold_what_they_promise(power, root, monkeypatch):
    """Of normal values, of their squares, and of the root of these."""
    monkeypatch.setattr(intervals, "RESAMPLES", 300)
    measured = [bootstrap(normal(60, 1, seed)[:, 0] ** power, root=root) for seed in range(250)]
    assert 0.9 <= held(measured, power - 1) <= 0.99


@pytest.mark.parametrize("p", [0.03, 0.5, 0.9])
def test_intervals_of_shares_hold_what_they_promise(p):
    measured = [share(torch.rand(100, generator=torch.Generator().manual_seed(seed)) < p) for seed in range(400)]
    assert 0.9 <= held(measured, p) <= 0.99


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_of_differences_hold_what_they_promise(paired):
    """Of means that have half of their noise in common, if they are paired, and of Fréchet distances."""
    def means(seed):
        x, y, common = (normal(40, 1, seed + 1000 * i)[:, 0] * paired ** (i == 2) for i in range(3))
        return difference(splits((x + common).tolist()), splits((2 * y + 0.5 + common).tolist()), paired)

    def distances(seed):
        x = normal(100, 4, seed)
        y = (x if paired else normal(100, 4, seed + 1000)) * 1.2
        return difference(*(Frechet()(sets(z, REFERENCE))["fd"] for z in (x, y)), paired)

    assert 0.9 <= held([means(seed) for seed in range(300)], -0.5) <= 0.99
    assert 0.9 <= held([distances(seed) for seed in range(300)]) <= 0.995
