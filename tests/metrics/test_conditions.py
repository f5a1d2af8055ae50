"""Maps, numbers and identities that samples were asked for, against closed forms and loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, jaccard_score, r2_score
from vectors import normal, sets

from diffusion.metrics import likeness
from diffusion.metrics.conditions import IdentityAgreement, MapAgreement, VectorAgreement, explain, overlap
from diffusion.metrics.evidence import Evidence, Identities, MapPair, VectorPair, shuffle
from diffusion.metrics.likeness import Gallery, find_first, measure_likeness


def draw_maps(n, seed, density=0.3):
    return torch.rand(n, 6, 5, generator=torch.Generator().manual_seed(seed)) < density


def evidence(**known):
    return sets(normal(8, 2, seed=0), evidence=Evidence(**known))


@pytest.mark.parametrize("n", [2, 3, 24, 101])
def test_every_row_gets_another_one(n):
    other = shuffle(n)
    assert sorted(other.tolist()) == list(range(n))
    assert (other != torch.arange(n)).all()
    assert shuffle(1).tolist() == [0]


def test_overlap_is_the_score_of_its_name():
    told, seen = draw_maps(7, 0), draw_maps(7, 1)
    f1 = overlap(told, seen)
    for i in range(7):
        a, b = told[i].flatten().numpy(), seen[i].flatten().numpy()
        assert f1[i].item() == pytest.approx(f1_score(a, b))
        assert (f1[i] / (2 - f1[i])).item() == pytest.approx(jaccard_score(a, b))


def test_overlap_of_nothing_with_nothing_is_whole_and_with_something_none():
    nothing, something = torch.zeros(1, 3, 3, dtype=torch.bool), torch.ones(1, 3, 3, dtype=torch.bool)
    assert overlap(nothing, nothing).item() == 1
    assert overlap(nothing, something).item() == overlap(something, nothing).item() == 0


def test_maps_of_perfect_samples_and_of_chance():
    told = draw_maps(8, 2)
    found = MapAgreement()(evidence(maps={"hint": MapPair(told, told)}))
    assert found["f1: hint"].value == found["iou: hint"].value == 1
    expected = [f1_score(told[j].flatten().numpy(), told[i].flatten().numpy()) for i, j in enumerate(shuffle(8))]
    assert found["f1: hint, shuffled"].value == pytest.approx(np.mean(expected))
    assert found["f1: hint, shuffled"].value == pytest.approx(0.3, abs=0.1), "the density of independent maps"


def test_explained_is_the_coefficient_of_determination():
    told, seen = normal(40, 1, 0)[:, 0], normal(40, 1, 0)[:, 0] + 0.5 * normal(40, 1, 1)[:, 0]
    number = explain(told, seen, told.mean().item())
    assert number.value == pytest.approx(r2_score(told.numpy(), seen.numpy()), abs=1e-6)
    assert number.low < number.value < number.high
    assert number.pseudo_values.mean().item() == pytest.approx(number.value)
    assert explain(told, told, 0.3).value == 1
    assert explain(told, torch.full((40,), 0.3), 0.3).value == pytest.approx(0, abs=1e-6)


def test_the_interval_of_what_is_explained_is_that_of_leaving_out_one_image():
    told = normal(60, 1, 3)[:, 0]
    seen = told + 0.7 * normal(60, 1, 4)[:, 0]
    whole = explain(told, seen, 0.0)
    without = [explain(told[torch.arange(60) != i], seen[torch.arange(60) != i], 0.0).value for i in range(60)]
    deviation = (59 * np.var(without)) ** 0.5
    assert (whole.high - whole.low) / 2 == pytest.approx(2 * deviation, rel=0.1)


def test_numbers_by_name_without_the_constant_ones():
    told = torch.stack([normal(8, 1, 0)[:, 0], torch.full((8,), 3.0), normal(8, 1, 1)[:, 0]], dim=1)
    seen = told + torch.tensor([0.0, 0.0, 0.5])
    found = VectorAgreement()(evidence(vector=VectorPair(told, seen, torch.tensor([0.0, 3.0, 0.0]), ["x", "c", "y"])))
    assert {name for name in found if "shuffled" not in name} == {"R2", "R2: x", "R2: y"}
    assert found["R2: x"].value == 1
    assert found["R2: y"].value == pytest.approx(1 - 0.25 / told[:, 2].square().mean().item())
    assert found["R2"].value == pytest.approx((found["R2: x"].value + found["R2: y"].value) / 2)
    assert found["R2: x, shuffled"].value < 0.5


@pytest.fixture
def told():
    """Eight images of six things of two classes, four of a class, each with the reference of its thing."""
    source = torch.tensor([0, 1, 2, 3, 4, 5, 0, 3])
    label = source // 3
    r = F.normalize(normal(6, 5, seed=1), dim=1)
    z = F.normalize(r[source] + 0.3 * normal(8, 5, seed=2), dim=1)
    return Identities(z, r[source], source, label, Gallery(r, torch.arange(6), torch.arange(6) // 3))


def test_identities_by_loops(told):
    found = IdentityAgreement()(evidence(identities={"identity": told}))
    for ending, order in (("", range(8)), (", shuffled", shuffle(8).tolist())):
        own = [float(told.z[i] @ told.r[j]) for i, j in enumerate(order)]
        rivals = [[float(told.z[i] @ told.gallery.r[k]) for k in range(6)
                   if k // 3 == told.label[j] and k != told.source[j]] for i, j in enumerate(order)]
        above = [mine > np.quantile(others, 0.95) for mine, others in zip(own, rivals, strict=True)]
        assert found[f"cosine: identity{ending}"].value == pytest.approx(np.mean(own), abs=1e-6)
        assert found[f"cosine with others: identity{ending}"].value == pytest.approx(np.mean(rivals), abs=1e-6)
        assert found[f"above 95 % of others: identity{ending}"].value == np.mean(above)


def test_the_gallery_is_by_default_the_first_of_each_thing_and_rows_do_not_matter(told, monkeypatch):
    expected = measure_likeness(told.z, told.r, told.source, told.label, told.gallery)
    monkeypatch.setattr(likeness, "ROWS", 3)
    for a, b in zip(measure_likeness(told.z, told.r, told.source, told.label), expected, strict=True):
        assert torch.allclose(a.double(), b.double())
    assert find_first(torch.tensor([4, 2, 4, 2, 7])).tolist() == [1, 0, 4]


@pytest.mark.parametrize("metric", [MapAgreement(), VectorAgreement(), IdentityAgreement()])
def test_without_evidence_nothing_is_measured(metric):
    assert metric.lacks(sets(normal(8, 2, seed=0)))
