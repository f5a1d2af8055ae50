"""The kernel distance against its definition and two libraries."""

import pytest
import torch
from torch_fidelity import metric_kid
from torchmetrics.image.kid import poly_mmd
from vectors import correlated, normal, sets

from diffusion.metrics import kid as module
from diffusion.metrics.intervals import skewed_interval
from diffusion.metrics.kid import KID, _within_classes, kernel


def kid(x, y) -> float:
    return KID()(sets(x, y))["kid"].value


def definition(x, y) -> float:
    """Means over all pairs of different vectors within the sets, and over all pairs across, in plain loops."""
    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    x, y = x.double(), y.double()
    n, m = len(x), len(y)
    ours = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    real = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return ours + real - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def matrices(x, y) -> float:
    """The same by whole matrices, in float64."""
    x, y = x.double(), y.double()
    n, m, d = len(x), len(y), x.shape[1]
    within = [((z @ z.mT / d + 1) ** 3).fill_diagonal_(0).sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
    return (sum(within) - 2 * ((x @ y.mT / d + 1) ** 3).sum() / (n * m)).item()


def fidelity(x, y) -> float:
    """One subset of everything."""
    return metric_kid.kid_features_to_metric(x.double(), y.double(), kid_subsets=1, kid_subset_size=len(x),
                                             verbose=False)["kernel_inception_distance_mean"]


def torchmetrics(x, y) -> float:
    return poly_mmd(x.double(), y.double()).item()


@pytest.mark.parametrize("oracle", [fidelity, torchmetrics])
@pytest.mark.parametrize(("n", "d"), [(103, 7), (400, 64)])
def test_it_is_that_of_others(oracle, n, d):
    x, y = correlated(n, d, seed=1), correlated(n, d, seed=2)
    assert kid(x, y) == pytest.approx(oracle(x, y), rel=1e-5)


def test_it_is_the_definition_for_sets_of_two_sizes():
    x, y = correlated(12, 4, seed=1), correlated(9, 4, seed=2)
    assert matrices(x, y) == pytest.approx(definition(x, y), rel=1e-12)
    assert kid(x, y) == pytest.approx(definition(x, y), rel=1e-6)


def test_small_distances_survive_the_products_in_float32():
    """Far from the origin the kernel is ten thousand times the distance."""
    x, y = normal(300, 16, seed=0, mean=6), normal(300, 16, seed=10, mean=6.01)
    assert kid(x, y) == pytest.approx(matrices(x, y), rel=1e-4)
    assert kernel(x, y).mean() > 1e4 * abs(matrices(x, y))


@pytest.mark.parametrize("chunk", [7, 102, 103])
@pytest.mark.parametrize("m", [103, 57])
def test_some_at_a_time(monkeypatch, chunk, m):
    both = sets(correlated(103, 5, seed=1), correlated(m, 5, seed=2))
    monkeypatch.setattr(module, "CHUNK", 1000)
    whole = KID()(both)["kid"]
    monkeypatch.setattr(module, "CHUNK", chunk)
    some = KID()(both)["kid"]
    assert some.value == pytest.approx(whole.value, rel=1e-6)
    assert torch.allclose(some.pseudo_values, whole.pseudo_values, rtol=1e-5)


def test_it_is_symmetric():
    x, y = correlated(50, 6, seed=1), correlated(70, 6, seed=2)
    assert kid(x, y) == pytest.approx(kid(y, x), rel=1e-6)
    assert kid(x.flip(0), y) == pytest.approx(kid(x, y), rel=1e-6)


def test_it_is_unbiased():
    """Over many draws from one distribution its mean is 0, and single values are negative about as often as not."""
    values = torch.tensor([kid(normal(40, 4, seed), normal(30, 4, seed + 1000)) for seed in range(300)])
    assert abs(values.mean()) < 3 * values.std() / 300**0.5
    assert 0.3 < (values < 0).double().mean() < 0.8


def test_the_jackknife_leaves_out_one_sample():
    """Pseudo-values ``n theta - (n - 1) theta_i``, of which the spread is made smaller by at most a half."""
    x, y = correlated(103, 5, seed=1), correlated(80, 5, seed=2)
    whole = matrices(x, y)
    left_out = torch.tensor([matrices(torch.cat([x[:i], x[i + 1:]]), y) for i in range(103)], dtype=torch.float64)
    expected = 102 * (whole - left_out)
    measured = KID()(sets(x, y))["kid"]
    scale = measured.pseudo_values.std() / expected.std()
    assert 0.5**0.5 <= scale <= 1
    assert torch.allclose(measured.pseudo_values, whole + scale * expected, rtol=1e-4, atol=1e-4)


def test_the_skewness_is_that_of_a_mean_over_pairs():
    """By whole matrices, of the definition."""
    x, y = correlated(60, 5, seed=1).double(), correlated(80, 5, seed=2).double()
    across = ((x @ y.mT / 5 + 1) ** 3).mean(1)
    h = (x @ x.mT / 5 + 1) ** 3 - across[:, None] - across
    other = 1 - torch.eye(60, dtype=torch.float64)
    mean = (h * other).sum() / (60 * 59)
    g = ((h * other).sum(1) / 59 - mean) * 59 / 58
    psi = h - (h * other).sum(1)[:, None] / 59 - (h * other).sum(1) / 59 + mean
    pairs = (g.outer(g) * psi * other).sum() / (60 * 59) / g.var() ** 1.5
    measured = KID()(sets(x.float(), y.float()))["kid"]
    expected = skewed_interval(measured.pseudo_values, pairs.item())
    assert (measured.low, measured.high) == pytest.approx(expected, rel=1e-3)
    assert pairs > 0.1


def test_what_differs_between_classes_is_no_noise():
    labels = torch.tensor([0] * 5 + [3] * 4 + [7] * 6 + [8, 9])
    noise = normal(17, 1, seed=0)[:, 0].double()
    within = _within_classes(noise + 100 * (labels < 8) * labels, labels)
    groups = [noise[labels == label] for label in (0, 3, 7)] + [noise[15:]]
    pooled = sum((group - group.mean()).square().sum() for group in groups) / (17 - 4)
    assert within.var().item() == pytest.approx(pooled.item())
    assert within.sum().item() == pytest.approx(0, abs=1e-9)
    assert torch.equal(_within_classes(noise, None), noise)


def measure(n, m, d, repeats, classes=0, **settings):
    middle = 1.5 * normal(max(1, classes), d, seed=77)
    labels = torch.arange(n) % classes if classes else None
    reference = normal(m, d, seed=999) + middle[torch.arange(m) % max(1, classes)]
    at = middle[torch.arange(n) % max(1, classes)]
    measured = [KID()(sets(normal(n, d, seed, **settings) + at, reference, labels=labels))["kid"]
                for seed in range(repeats)]
    return measured, sum(one.value for one in measured) / repeats


@pytest.mark.parametrize("classes", [0, 5])
def test_intervals_miss_on_either_side(classes):
    """The kernel is skewed, and where the distance is small by chance, its spread seems to be, too."""
    measured, truth = measure(150, 200, 4, 400, classes, mean=0.3, std=1.2)
    assert sum(one.low > truth for one in measured) / 400 < 0.05
    assert sum(one.high < truth for one in measured) / 400 < 0.05


def test_of_the_reference_itself_the_spread_is_not_counted_twice():
    """What pairs of samples have in common is nearly all noise that there is."""
    measured, _ = measure(150, 600, 16, 160)
    said = torch.tensor([one.pseudo_values.var() / 150 for one in measured]).mean() ** 0.5
    # The deviation of 160 values is known to 6 %.
    assert said.item() == pytest.approx(torch.tensor([one.value for one in measured]).std().item(), rel=0.17)
