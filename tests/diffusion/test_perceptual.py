"""Images compared through the eyes of a network: the distance, and runs that are trained with it."""

import copy

import pytest
import torch
import torchvision
from helpers import CLASSIFIER, train

from configs import UserError
from diffusion import load
from diffusion.metrics.lpips import FILES
from diffusion.metrics.lpips import distance as lpips
from diffusion.metrics.perceptual import ClassifierDistance, ClassifierPerceptual, LPIPSPerceptual
from diffusion.objectives.perceptual import Perceptual, compare_maps
from diffusion.runs import checkpoint

KL = ["experiment=autoencoder_digits", "debug=fast", "trainer.threads=1", "trainer.accelerator=cpu", "model.base=4",
      "callbacks.pictures.count=0"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_maps_are_compared_by_direction():
    a = [normal(2, 3, 2, 2), normal(2, 5, 1, 1)]
    torch.testing.assert_close(compare_maps(a, [3 * f for f in a]), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(compare_maps(a, [-f for f in a]), torch.full((2,), 4.0))
    b = [normal(2, 3, 2, 2, seed=1), normal(2, 5, 1, 1, seed=2)]
    expected = [sum((2 - 2 * torch.cosine_similarity(f, g, dim=1)).mean((1, 2)) for f, g in zip(a, b)) / 2]
    torch.testing.assert_close(compare_maps(a, b), expected[0])


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return train(tmp_path_factory.mktemp("judge"), *CLASSIFIER, "run.name=judge", "seed=1").folder


def test_the_distance_of_restorations(judge, hot):
    """In the features of the judge that is named; without one, or by one of other images, it is not measured."""
    assert ClassifierDistance(None).lacks() == ClassifierDistance("none").lacks() == "a classifier by name: judge=RUN"
    assert "classify" in str(ClassifierDistance(str(hot.folder)).lacks())
    metric, a, b = ClassifierDistance(str(judge)), normal(70, 1, 16, 16), normal(70, 1, 16, 16, seed=1)
    assert metric.lacks() is None
    assert not metric(a, a).any()
    torch.testing.assert_close(metric(a, b), ClassifierPerceptual(str(judge))(a, b).detach())
    with pytest.raises(UserError, match="trained on"):
        metric(normal(1, 1, 8, 8), normal(1, 1, 8, 8))


def test_a_classifier(judge):
    look, a = ClassifierPerceptual(str(judge)), normal(2, 1, 16, 16).requires_grad_()
    b, before = normal(2, 1, 16, 16, seed=1), copy.deepcopy(look.model.weights.state_dict())
    assert not look(b, b).any()
    distance = look(a, b)
    assert (distance > 0).all()
    distance.sum().backward()
    assert a.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in look.model.weights.state_dict().items())
    assert not any(p.requires_grad for p in look.model.weights.parameters())


def test_its_last_map_is_that_of_its_features(judge):
    net, x = load(judge, device="cpu").classifier.network, normal(2, 1, 16, 16)
    maps, t = net.maps(x, torch.zeros(2)), torch.zeros(2)
    assert torch.equal(net.act(net.norm(maps[-1])).mean((2, 3)), net.features(x, t))
    assert [f.shape[2] for f in maps] == sorted((f.shape[2] for f in maps), reverse=True)


def test_a_run_with_it_needs_it_for_the_training_alone(judge, tmp_path):
    settings = [*KL, "objective/perceptual=classifier", f"objective.perceptual.run={judge}"]
    run = train(tmp_path, *settings, "max_steps=2")
    assert run.config["objective"]["perceptual"]["step"] == 3
    assert "perceptual" in run.metrics.read_text().splitlines()[0]
    content = checkpoint.read_latest(run.checkpoints)
    assert content is not None
    assert not any("perceptual" in name for name in content["raw"])
    away = judge.with_name("away")
    judge.rename(away)
    try:
        assert load(run.folder, device="cpu").evaluator.reconstruct(normal(1, 1, 16, 16)).isfinite().all()
    finally:
        away.rename(judge)


@pytest.mark.parametrize(("settings", "got"), [
    (["objective/perceptual=classifier"], "without its run"),
    (["objective/perceptual=classifier", "objective.perceptual.run=JUDGE", "data.size=32"], "trained on"),
    (["objective/perceptual=lpips"], "LPIPS without")])
def test_what_is_refused_leaves_no_run(judge, tmp_path, monkeypatch, settings, got):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    settings = [each.replace("JUDGE", str(judge)) for each in settings]
    with pytest.raises(UserError, match=got):
        train(tmp_path / "runs", *KL, *settings)
    assert not (tmp_path / "runs").exists()


def test_lpips(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / FILES["squeeze"]
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    look, (a, b) = LPIPSPerceptual("squeeze"), (normal(2, 1, 32, 32, seed=i).clamp(-1, 1) for i in range(2))
    assert isinstance(look, Perceptual)
    torch.testing.assert_close(look(a, b), lpips("squeeze", a, b))
    assert not look(a, a).any()
    leaf = (2 * a).requires_grad_()
    look(leaf, b).sum().backward()
    assert leaf.grad[leaf.abs() > 1].any(), "a gradient beyond the range of images"
    with pytest.raises(UserError, match="at least 32"):
        look.check_shape((1, 16, 16))
