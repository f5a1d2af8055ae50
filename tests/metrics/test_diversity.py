"""Vendi score and mean similarity against closed forms and the authors' package; agreement."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from vectors import correlated, left_out, normal, sets, without
from vendi_score import vendi as theirs

from diffusion.metrics.diversity import Agreement, MeanSimilarity, Vendi, mean_similarity, vendi


def unit(n, d, seed):
    return F.normalize(correlated(n, d, seed).double(), dim=1)


@pytest.mark.parametrize(("n", "d"), [(20, 50), (50, 50), (103, 8)])
def test_vendi_is_that_of_its_authors(n, d):
    """The eigenvalues of the similarities, and of the smaller matrix that has the same."""
    x = unit(n, d, seed=1)
    assert vendi(x) == pytest.approx(theirs.score_X(x.numpy()), rel=1e-6)
    assert vendi(x) == pytest.approx(theirs.score_dual(x.numpy()), rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(7, 7), (7, 30)])
def test_closed_forms(n, d):
    identical, orthonormal = unit(1, d, seed=1).expand(n, -1), torch.eye(d)[:n]
    assert vendi(identical) == pytest.approx(1)
    assert vendi(orthonormal) == pytest.approx(n)
    assert mean_similarity(identical) == pytest.approx(1)
    assert mean_similarity(identical, diagonal=False) == pytest.approx(1)
    assert mean_similarity(orthonormal) == pytest.approx(1 / n)
    assert mean_similarity(orthonormal, diagonal=False) == pytest.approx(0)


def test_vendi_of_copies_is_the_number_of_originals():
    """With shares p of orthogonal images it is the exponential of their entropy."""
    counts = torch.tensor([10, 5, 1])
    p = counts / counts.sum()
    copies = torch.eye(6)[:3].repeat_interleave(counts, 0)
    assert vendi(copies) == pytest.approx(torch.exp(-(p * p.log()).sum()).item(), rel=1e-6)
    assert vendi(copies.repeat(3, 1)) == pytest.approx(vendi(copies))


def test_mean_similarity_is_the_mean_of_the_matrix():
    x = unit(20, 6, seed=1)
    matrix = (x @ x.mT).numpy()
    assert mean_similarity(x) == pytest.approx(matrix.mean())
    assert mean_similarity(x, diagonal=False) == pytest.approx(matrix[~np.eye(20, dtype=bool)].mean())
    # The two of section 5 of CADS differ by the diagonal alone.
    assert mean_similarity(x) == pytest.approx(1 / 20 + (1 - 1 / 20) * mean_similarity(x, diagonal=False))


@pytest.mark.parametrize(("metric", "statistic"), [
    (Vendi(), vendi), (MeanSimilarity(), mean_similarity),
    (MeanSimilarity(diagonal=False), lambda x: mean_similarity(x, diagonal=False))])
def test_the_metric_is_the_mean_over_conditions_of_any_length(metric, statistic):
    x, labels = correlated(90, 6, seed=1), torch.arange(90) % 4
    y = F.normalize(x, dim=1)
    expected = sum(statistic(y[labels == label]) for label in range(4)) / 4
    [measured] = metric(sets(x, labels=labels)).values()
    assert measured.value == pytest.approx(expected, rel=1e-6)
    scaled = metric(sets(x * torch.arange(1, 91)[:, None], labels=labels))
    assert scaled[metric.name].value == pytest.approx(expected, rel=1e-5)
    assert metric(sets(x))[metric.name].value == pytest.approx(statistic(y), rel=1e-6)


@pytest.mark.parametrize("labels", [None, torch.arange(90) % 4])
@pytest.mark.parametrize("metric", [Vendi(), MeanSimilarity()])
def test_the_jackknife_leaves_out_what_it_says(metric, labels):
    both = sets(correlated(90, 6, seed=1), labels=labels)
    expected = [metric(sets(without(both, g), labels=None if labels is None else labels[both.groups != g]))
                for g in range(10)]
    [measured] = metric(both).values()
    assert left_out(measured) == pytest.approx([e[metric.name].value for e in expected], rel=1e-6)


@pytest.mark.parametrize("metric", [Vendi(), MeanSimilarity()])
def test_single_samples_say_nothing(metric):
    x = normal(30, 4, seed=1)
    assert metric.lacks(sets(x)) is None
    assert metric.lacks(sets(x, labels=torch.arange(30) % 10)) is None
    assert metric.lacks(sets(x, labels=torch.arange(30))) is not None


def test_agreement_is_a_share():
    labels = torch.arange(30) % 3
    seen = labels.clone()
    seen[:6] = 3
    both = sets(normal(30, 4, seed=1), labels=labels, predictions=seen)
    measured = Agreement()(both)["agreement"]
    assert measured.value == pytest.approx(0.8)
    assert measured.pseudo_values.tolist() == [0.0] * 6 + [1.0] * 24
    assert Agreement().lacks(both) is None
    assert "classes" in (Agreement().lacks(sets(normal(30, 4, seed=1), predictions=seen)) or "")
    assert "classifier" in (Agreement().lacks(sets(normal(30, 4, seed=1), labels=labels)) or "")
