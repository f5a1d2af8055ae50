"""The kernel distance against its definition and two libraries."""

import pytest
import torch
from torch_fidelity import metric_kid
from torchmetrics.image.kid import poly_mmd
from vectors import correlated, left_out, normal, sets, without

from diffusion.metrics import kid as module
from diffusion.metrics.kid import KID, kernel


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


def test_the_jackknife_leaves_out_what_it_says():
    both = sets(correlated(103, 5, seed=1), correlated(80, 5, seed=2))
    expected = [matrices(without(both, g), both.reference.values) for g in range(10)]
    assert left_out(KID()(both)["kid"]) == pytest.approx(expected, rel=1e-5)
