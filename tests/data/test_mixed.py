"""Several data sets as one: shares, weights, and what does not fit together."""

import pytest
import torch
from helpers import DIGITS, train

from configs import UserError, construct
from diffusion.data import Digits
from diffusion.data.sets.mixed import Mixed
from diffusion.objectives.restoration import Objective
from diffusion.runs import checkpoint


def halves(**settings) -> Mixed:
    return Mixed({"a": Digits(16, 1, False), "b": Digits(16, 1, False)}, 16, 1, **settings)


def test_the_images_of_all_sets():
    mixed, alone = halves(), Digits(16, 1, False)
    for name in ("train", "test"):
        part, one = mixed.split(name), alone.split(name)
        assert torch.equal(part.images, torch.cat([one.images, one.images]))
        assert torch.equal(part.labels, torch.cat([one.labels, one.labels]))
    assert mixed.described == alone.described
    assert "weight" not in mixed.split("train").signals
    assert mixed.fingerprint() == halves().fingerprint() != halves(weights={"a": 1.0, "b": 0.5}).fingerprint()


def test_shares_are_those_of_the_training_images():
    mixed = halves(shares={"a": 0.9, "b": 0.1}, weights={"a": 1.0, "b": 0.25})
    train_set, n = mixed.split("train"), len(Digits(16, 1, False).split("train"))
    weights = train_set.signals["weight"]
    assert (weights == 0.25).double().mean().item() == pytest.approx(0.1, abs=1e-3)
    places = train_set.rows
    assert places is not None
    assert set(places.tolist()) == set(range(2 * n)), "all images are there"
    counts = torch.bincount(places)
    for part in counts.split(n):
        assert part.max() - part.min() <= 1, "and equally often within their set"
    assert len(mixed.split("test")) == 2 * len(Digits(16, 1, False).split("test"))


@pytest.mark.parametrize(("settings", "words"), [
    ({"shares": {"a": 0.5}}, "shares"), ({"shares": {"a": 0.5, "b": 0.4}}, "add up to 1"),
    ({"shares": {"a": 1.0, "b": 0.0}}, "above 0"), ({"weights": {"a": -1.0, "b": 0.0}}, "weights"),
    ({"weights": {"a": 1.0, "c": 1.0}}, "a number for each of a, b")])
def test_numbers_that_mean_nothing(settings, words):
    with pytest.raises(UserError, match=words):
        halves(**settings)


def test_sets_that_do_not_fit_together():
    with pytest.raises(UserError, match="8 px"):
        Mixed({"a": Digits(16, 1, False), "b": Digits(8, 1, False)}, 16, 1)

    class Other(Digits):
        class_names = ["other"] * 10

    with pytest.raises(UserError, match="other signals or words"):
        Mixed({"a": Digits(16, 1, False), "b": Other(16, 1, False)}, 16, 1)


def test_a_training_with_weights(tmp_path, monkeypatch):
    """The loss of an image is multiplied by the weight of its set: 0 is the loss of the other set alone."""
    seen, plain = [], Objective.__call__

    def listen(self, *args):
        losses = plain(self, *args)
        seen.append((losses, args[4]))
        return losses

    monkeypatch.setattr(Objective, "__call__", listen)
    digits = "{_target_: diffusion.data.sets.digits.Digits, size: 16, channels: 1, flip: false}"
    node = f"{{_target_: diffusion.data.sets.mixed.Mixed, size: 16, channels: 1, flip: false, sets: {{a: {digits}, " \
           f"b: {digits}}}, shares: null, weights: WEIGHTS}}"
    runs = {}
    for name, weights in (("plain", "null"), ("weighted", "{a: 1.0, b: 0.0}")):
        runs[name] = train(tmp_path, *DIGITS, "~data", f"+data={node.replace('WEIGHTS', weights)}", f"run.name={name}",
                           "callbacks.pictures.count=0", "max_steps=1")
    (one, _), (other, condition) = seen
    weight = condition["weight"]
    assert 0 < weight.sum() < len(weight)
    assert torch.equal(other.values, one.values * weight)
    config = checkpoint.read_latest(runs["weighted"].checkpoints)["config"]
    assert isinstance(construct(config["data"]), Mixed)
