"""The Inception Score against closed forms and two libraries."""

import pytest
import torch
from torch import nn
from torch_fidelity import metric_isc
from torchmetrics.image.inception import InceptionScore as Theirs
from vectors import normal, sets

from diffusion.metrics.inception_score import InceptionScore, inception_score


def fidelity(logits, splits=1) -> float:
    return metric_isc.isc_features_to_metric(logits, splits=splits, shuffle=False)["inception_score_mean"]


def torchmetrics(logits) -> float:
    class Given(nn.Module):
        def forward(self, x):
            return x

    score = Theirs(feature=Given(), splits=1)
    score.update(logits)
    return score.compute()[0].item()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("oracle", [fidelity, torchmetrics])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_it_is_that_of_others(oracle, scale):
    logits = normal(103, 10, seed=1, std=scale)
    assert inception_score(logits) == pytest.approx(oracle(logits), rel=1e-5)


def test_the_metric_is_the_mean_over_ten_splits():
    both = sets(normal(200, 4, seed=1), logits=normal(200, 10, seed=2, std=3))
    ordered = both.samples.logits[torch.argsort(both.groups, stable=True)]
    measured = InceptionScore()(both)["is"]
    assert measured.value == pytest.approx(fidelity(ordered, splits=10), rel=1e-6)
    assert measured.value == pytest.approx(measured.pseudo_values.mean().item())


def test_closed_forms():
    assert inception_score(torch.zeros(20, 7)) == pytest.approx(1)
    assert inception_score(normal(1, 7, seed=1).expand(20, -1)) == pytest.approx(1), "all alike"
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    # exp of the mutual information, in plain arithmetic.
    expected = sum(0.5 * p[i, k] * (p[i, k] / p[:, k].mean()).log() for i in range(2) for k in range(2)).exp()
    assert inception_score(p.log()) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("certainty", [60.0, 1e4])
def test_of_equally_frequent_certain_classes_it_is_their_number(certainty):
    """Also where a probability underflows to 0, for which torch-fidelity has no number: 0 log 0 = 0."""
    logits = certainty * torch.eye(10)[torch.arange(200) % 10]
    assert inception_score(logits) == pytest.approx(10)
    assert inception_score(logits[:, :7]) <= 7


def test_a_class_that_no_image_has_adds_nothing():
    logits = torch.cat([normal(50, 3, seed=1), torch.full((50, 1), -torch.inf)], dim=1)
    assert inception_score(logits) == pytest.approx(inception_score(logits[:, :3]))


def test_it_is_between_one_and_the_number_of_classes():
    for seed in range(20):
        assert 1 <= inception_score(normal(30, 5, seed, std=float(seed))) <= 5


def test_it_needs_classes():
    assert InceptionScore().lacks(sets(normal(30, 3, seed=1))) is not None
    assert InceptionScore().lacks(sets(normal(30, 3, seed=1), logits=normal(30, 3, seed=1))) is None
