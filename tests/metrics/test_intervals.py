"""Intervals against SciPy's, and by simulation: a 95 % interval holds the truth about 95 times in 100."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from vectors import normal, sets

from diffusion.metrics.diversity import MeanSimilarity, Vendi
from diffusion.metrics.frechet import Frechet
from diffusion.metrics.intervals import (
    GROUPS,
    assign_groups,
    count_groups,
    difference,
    draw_halves,
    half_samples,
    jackknife,
    jackknife_groups,
    mean,
    share,
    skewed_interval,
    sort_groups,
    splits,
)
from diffusion.metrics.kid import KID
from diffusion.metrics.neighbors import Neighbors


def values(n, seed=0):
    """Skewed, and not about 0."""
    return normal(n, 1, seed)[:, 0].double().exp()


def test_the_interval_of_a_mean_is_that_of_a_transformed_t():
    """The ends solve Hall's equation (1992, section 2): of either sign of the skewness, and on either side."""
    for x in (values(30), -values(30), values(5, seed=3)):
        n, skewness = len(x), scipy.stats.skew(x.numpy(), bias=False)
        for end, quantile in zip(skewed_interval(x), (0.975, 0.025), strict=True):
            t = (x.mean().item() - end) / (x.std().item() / n**0.5)
            transformed = t + skewness * t**2 / (3 * n**0.5) + skewness**2 * t**3 / (27 * n) + skewness / (6 * n**0.5)
            assert transformed == pytest.approx(scipy.stats.t.ppf(quantile, n - 1))


def test_of_what_is_not_skewed_it_is_students():
    x = torch.cat([values(20), -values(20)])
    theirs = scipy.stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert skewed_interval(x) == pytest.approx((theirs.low, theirs.high))
    pair = torch.tensor([1.0, 4.0], dtype=torch.float64)
    assert skewed_interval(pair) == pytest.approx(scipy.stats.ttest_1samp(pair, 0).confidence_interval(0.95))


def test_it_is_nearly_that_of_the_studentized_bootstrap():
    x = values(200).sqrt().numpy()
    drawn = x[np.random.default_rng(0).integers(0, 200, (10_000, 200))]
    t = (drawn.mean(1) - x.mean()) / drawn.std(1)
    low, high = x.mean() - np.quantile(t, [0.975, 0.025]) * x.std()
    assert skewed_interval(torch.from_numpy(x)) == pytest.approx((low, high), abs=0.02 * (high - low))
    assert high - x.mean() > 1.1 * (x.mean() - low), "it is not symmetric"


@pytest.mark.parametrize("root", [False, True])
def test_the_mean_and_its_root(root):
    x = values(300)
    ours = mean(x, root=root)
    assert ours.value == pytest.approx(x.mean().item() ** (0.5 if root else 1))
    assert (ours.low, ours.high) == pytest.approx([end ** (0.5 if root else 1) for end in skewed_interval(x)])
    assert ours.pseudo_values.mean().item() == pytest.approx(ours.value)


def test_of_one_image_nothing_is_known():
    assert (mean(torch.tensor([2.0])).low, mean(torch.tensor([2.0])).high) == (-math.inf, math.inf)
    assert mean(torch.tensor([4.0]), root=True).plain() == {"value": 2, "low": 0, "high": math.inf,
                                                             "how": "Hall, 1 images"}


def test_the_parts_of_a_root_are_as_uncertain_as_it_is():
    x = values(300).sqrt()
    one = mean(x, root=True)
    reach = 1.96 * one.pseudo_values.std().item() / 300**0.5
    assert (one.high - one.low) / 2 == pytest.approx(reach, rel=0.1)


@pytest.mark.parametrize("root", [False, True])
def test_of_equal_values_nothing_is_uncertain(root):
    for value in (0.0, 4.0):
        one = mean(torch.full((20,), value), root=root)
        assert one.low == one.value == one.high == (value**0.5 if root else value)


def test_infinite_values_are_a_number():
    """The PSNR of equal images."""
    one = mean(torch.tensor([1.0, 2.0, 4.0, torch.inf]))
    assert one.value == one.high == math.inf
    assert one.low == mean(torch.tensor([1.0, 2.0, 4.0])).low
    assert mean(torch.full((3,), torch.inf)).low == math.inf


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


class TestHalves:
    @pytest.mark.parametrize(("p", "m"), [(0.5, 400), (0.9, 50)])
    def test_of_places_that_are_hit_one_by_one(self, p, m):
        """The variance is that of a share of independent places, ``p (1 - p) / m``, for any number of images."""
        rng = torch.Generator().manual_seed(0)
        one, other = torch.rand(2, 2000, m, generator=rng) < p
        measured = half_samples(torch.arange(m) < p * m, one, other)
        assert measured.value == pytest.approx(p, abs=1 / m)
        assert measured.pseudo_values.var().item() / 2000 == pytest.approx(p * (1 - p) / m, rel=0.1)
        assert measured.high - measured.value == pytest.approx(1.96 * (p * (1 - p) / m) ** 0.5, rel=0.1)

    @pytest.mark.parametrize("used", [1.0, 0.8])
    def test_of_places_that_are_hit_together(self, used):
        """All or none: a half has the variance ``p (1 - p)``, and the whole, of more images, its share of that."""
        rng = torch.Generator().manual_seed(0)
        one, other = (torch.rand(2, 2000, 1, generator=rng) < 0.3).expand(-1, -1, 100)
        measured = half_samples(torch.arange(100) < 30, one, other, used)
        alone, together = 0.21 / 100, 0.21 - 0.21 / 100
        assert measured.pseudo_values.var().item() / 2000 == pytest.approx(alone + together * used / 2, rel=0.1)

    def test_pairs_have_the_noise_of_their_difference(self):
        """Two sets that hit all places alike but some, which each hits by itself."""
        rng = torch.Generator().manual_seed(0)
        a, b = (torch.rand(2, 2000, 1, generator=rng) < 0.3).expand(-1, -1, 100).clone().repeat(2, 1, 1, 1)
        a[..., :40], b[..., :40] = torch.rand(2, 2, 2000, 40, generator=rng) < 0.5
        measured = difference(*(half_samples(torch.arange(100) < 30, *part) for part in (a, b)), paired=True)
        assert measured.value == 0
        assert measured.high == pytest.approx(1.96 * (2 * 40 * 0.25) ** 0.5 / 100, rel=0.1)

    def test_it_stays_a_share(self):
        hits = torch.rand(2, 15, 40, generator=torch.Generator().manual_seed(0)) < 0.5
        assert half_samples(torch.arange(40) < 39, *hits).high == 1
        assert half_samples(torch.arange(40) < 1, *hits).low == 0
        one = half_samples(torch.arange(40) < 20, *hits[:, :1])
        assert (one.low, one.high) == (0, 1), "a single choice of halves says nothing"

    @pytest.mark.parametrize("count", [2, 4, 8, 16])
    def test_any_two_choices_share_half_of_their_groups(self, count):
        signs = 2 * draw_halves(count).long() - 1
        assert signs.shape == (count - 1, count)
        assert torch.equal(signs @ signs.mT, count * torch.eye(count - 1, dtype=torch.long))
        assert (signs.sum(dim=1) == 0).all()

    @pytest.mark.parametrize(("n", "least", "count"), [(500, 4, 16), (16, 4, 16), (15, 4, 8), (8, 4, 8), (30, 15, 2),
                                                       (31, 8, 16), (31, 9, 8)])
    def test_a_half_has_enough_images(self, n, least, count):
        assert count_groups(n, least) == count
        assert n // count * count // 2 >= least

    @pytest.mark.parametrize("n", [16, 103])
    def test_groups_are_sorted_and_cut_to_one_size(self, n):
        groups = assign_groups(n, count=16)
        order, bounds = sort_groups(groups)
        assert order.sort().values.tolist() == list(range(n))
        assert (bounds[0], bounds[-2], bounds[-1]) == (0, n // 16 * 16, n)
        for g in range(16):
            assert (groups[order[bounds[g]:bounds[g + 1]]] == g).all()
            assert bounds[g + 1] - bounds[g] == n // 16


class TestDifference:
    def test_of_pairs_it_is_the_paired_t_test(self):
        x, y = values(50, 1), values(50, 2) + 0.3
        ours = difference(mean(x), mean(y), paired=True)
        theirs = scipy.stats.ttest_rel(x, y).confidence_interval(0.95)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
        assert ours.value == pytest.approx((x - y).mean().item())

    @pytest.mark.parametrize("m", [50, 12])
    def test_of_independent_sets_it_is_welchs(self, m):
        x, y = values(50, 1), 3 * values(m, 2)
        ours = difference(mean(x), mean(y), paired=False)
        theirs = scipy.stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))

    def test_pairing_removes_what_both_have_in_common(self):
        common = 10 * values(100, 1)
        x, y = mean(common + 0.1 * values(100, 2)), mean(common + 0.1 * values(100, 3) + 0.1)
        paired, apart = (difference(y, x, paired) for paired in (True, False))
        assert paired.low > 0 > apart.low
        assert paired.value == apart.value == pytest.approx(y.value - x.value)

    @pytest.mark.parametrize("paired", [True, False])
    def test_of_a_number_and_itself_it_is_nothing(self, paired):
        x = mean(values(50))
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


@pytest.mark.parametrize("n", [150, 400])
def test_intervals_of_neighbours_hold_what_they_promise(n):
    """They are as wide as the values vary, so that two sets that are alike do not differ."""
    measured = [Neighbors()(sets(normal(n, 4, seed, mean=0.3, std=1.2), REFERENCE)) for seed in range(120)]
    for name in ("precision", "recall", "density", "coverage"):
        ones = [numbers[name] for numbers in measured]
        assert held(ones) >= 0.89
        said = np.mean([one.pseudo_values.var().item() / len(one.pseudo_values) for one in ones]) ** 0.5
        # The deviation of 120 values is known to 7 %.
        assert said == pytest.approx(np.std([one.value for one in ones]), rel=0.18)
        assert held([difference(a, b, paired=False) for a, b in zip(ones[:60], ones[60:], strict=True)], 0) >= 0.87


@pytest.mark.parametrize(("change", "root", "truth"), [
    (lambda z: z, False, 0), (torch.square, False, 1), (torch.square, True, 1), (torch.exp, False, math.exp(0.5))])
def test_intervals_of_means_hold_what_they_promise(change, root, truth):
    """Of twenty normal values, of their squares, of the root of these, and of values whose logarithm is normal."""
    measured = [mean(x, root=root) for x in change(normal(400, 20, seed=0).double())]
    # Of 400, the share varies by 0.011.
    assert 0.905 <= held(measured, truth) <= 0.98


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
