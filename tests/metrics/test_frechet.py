"""The Fréchet distance against closed forms and two libraries; moments in any order and split."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity import metric_fid
from torchmetrics.image.fid import _compute_fid
from vectors import correlated, left_out, normal, sets, without

from diffusion.metrics import frechet as module
from diffusion.metrics.frechet import Frechet, Moments, frechet


def exact(n, mean, root, seed=0):
    """n vectors whose mean and covariance are exactly ``mean`` and ``root root^T``."""
    x = normal(n, len(mean), seed).double()
    x = x - x.mean(0)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.mT)), x.mT, upper=False).mT
    return x @ torch.as_tensor(root, dtype=torch.float64).mT + torch.as_tensor(mean, dtype=torch.float64)


def fidelity(a, b):
    moments = (metric_fid.fid_features_to_statistics(x.double()) for x in (a, b))
    return metric_fid.fid_statistics_to_metric(*moments, verbose=False)["frechet_inception_distance"]


def torchmetrics(a, b):
    a, b = a.double(), b.double()
    return _compute_fid(a.mean(0), torch.cov(a.mT), b.mean(0), torch.cov(b.mT)).item()


def scipys(a, b):
    """The formula as Heusel et al. have it, with the root of the product of the covariances."""
    a, b = a.double().numpy(), b.double().numpy()
    c, d = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(c + d - 2 * scipy.linalg.sqrtm(c @ d).real)


@pytest.mark.parametrize("oracle", [fidelity, torchmetrics, scipys])
@pytest.mark.parametrize(("n", "m", "d"), [(103, 80, 7), (500, 400, 64)])
def test_it_is_that_of_others(oracle, n, m, d):
    a, b = correlated(n, d, seed=1), correlated(m, d, seed=2)
    assert frechet(a, b) == pytest.approx(oracle(a, b), rel=1e-8)
    assert Frechet()(sets(a, b))["fd"].value == pytest.approx(oracle(a, b), rel=1e-8)


@pytest.mark.parametrize("oracle", [fidelity, torchmetrics])
def test_with_fewer_vectors_than_dimensions(oracle):
    a, b = correlated(40, 64, seed=1), correlated(30, 64, seed=2)
    assert frechet(a, b) == pytest.approx(oracle(a, b), rel=1e-6)


@pytest.mark.parametrize(("n", "m", "d"), [(500, 400, 64), (40, 30, 64), (40, 200, 64), (200, 30, 64), (64, 65, 64)])
def test_it_is_exact_for_any_rank(n, m, d):
    """The trace of ``(S_a S_b)^(1/2)`` is the sum of the singular values of ``X_a X_b^T``, which are not squared."""
    a, b = correlated(n, d, seed=1).double(), correlated(m, d, seed=2).double()
    x, y = ((one - one.mean(0)) / (len(one) - 1) ** 0.5 for one in (a, b))
    cross = torch.linalg.svdvals(x @ y.mT).sum()
    oracle = (a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * cross
    assert frechet(a, b) == pytest.approx(oracle.item(), rel=1e-10)


def test_features_that_are_always_0_change_nothing():
    a, b = correlated(103, 7, seed=1), correlated(80, 7, seed=2)
    padded = (torch.nn.functional.pad(one, (2, 3)) for one in (a, b))
    assert frechet(*padded) == pytest.approx(frechet(a, b), rel=1e-9)


def test_of_diagonal_gaussians_has_a_closed_form():
    """``|mu_a - mu_b|^2 + sum (s_a - s_b)^2``."""
    a = exact(60, [0.0, 1.0, 2.0], torch.diag(torch.tensor([1.0, 2.0, 0.5])), seed=1)
    b = exact(40, [1.0, -1.0, 2.0], torch.diag(torch.tensor([3.0, 2.0, 1.0])), seed=2)
    assert frechet(a, b) == pytest.approx(1 + 4 + 4 + 0 + 0.25, rel=1e-10)


@pytest.mark.parametrize(("n", "d"), [(50, 8), (5, 8), (40, 256)])
def test_of_a_set_and_itself_is_nothing(n, d):
    """The root of a covariance without full rank is known to half the digits."""
    x = correlated(n, d, seed=1)
    for same in (x, x.flip(0)):
        assert 0 <= frechet(x, same) <= 1e-6 * torch.cov(x.double().mT).trace().item()


def test_it_does_not_depend_on_order_or_rotation():
    a, b = correlated(40, 6, seed=4).double(), correlated(30, 6, seed=5).double()
    rotation = torch.linalg.qr(normal(6, 6, seed=6).double()).Q
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-9)
    assert frechet(a.flip(0), b) == pytest.approx(frechet(a, b), rel=1e-9)
    assert frechet(a @ rotation, b @ rotation) == pytest.approx(frechet(a, b), rel=1e-9)


def same(a: Moments, b: Moments, rel: float = 1e-10):
    assert a.n == b.n
    scale = b.scatter.diagonal().max().item()
    assert torch.allclose(a.mean, b.mean, rtol=rel, atol=rel * b.mean.abs().max().item())
    assert torch.allclose(a.scatter, b.scatter, rtol=rel, atol=rel * scale)


@pytest.mark.parametrize("sizes", [[103], [1] * 103, [50, 53], [1, 100, 2], [0, 40, 0, 63]])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_moments_do_not_depend_on_order_and_split(sizes, mean):
    x = correlated(103, 5, seed=1) + mean
    whole = Moments.of(x)
    shuffled = x[torch.randperm(103, generator=torch.Generator().manual_seed(0))]
    parts = [Moments.of(part) for part in shuffled.split(sizes)]
    total = parts[-1]
    for part in parts[:-1]:
        total = part + total
    same(total, whole)
    assert torch.allclose(whole.cov, torch.cov(x.double().mT), rtol=1e-10)
    assert torch.allclose(whole.mean, x.double().mean(0), rtol=1e-12)


def test_taking_away_undoes_adding():
    a, b = Moments.of(correlated(60, 5, seed=1)), Moments.of(correlated(43, 5, seed=2))
    same((a + b) - b, a)
    same((a + b) - a, b)


@pytest.mark.parametrize("chunk", [1, 10, 102, 103, 1000])
def test_some_at_a_time(monkeypatch, chunk):
    x, y = correlated(103, 5, seed=1), correlated(57, 5, seed=2)
    expected = scipys(x, y)
    monkeypatch.setattr(module, "CHUNK", chunk)
    same(Moments.of(x), Moments(103, x.double().mean(0), torch.cov(x.double().mT) * 102))
    assert frechet(x, y) == pytest.approx(expected, rel=1e-9)


def test_the_jackknife_leaves_out_what_it_says():
    both = sets(correlated(103, 5, seed=1), correlated(80, 5, seed=2))
    expected = [scipys(without(both, g), both.reference.values) for g in range(10)]
    assert left_out(Frechet()(both)["fd"]) == pytest.approx(expected, rel=1e-8)


def test_bias_of_few_samples():
    """It is why counts have to be equal: for one Gaussian of d dimensions it falls like 1 / n."""
    few, many = (np.mean([frechet(normal(n, 16, seed), normal(4000, 16, seed + 500)) for seed in range(20)])
                 for n in (100, 400))
    assert 3 < few / many < 6
