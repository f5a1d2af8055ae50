"""``evaluate.py`` and the restorations of ``sample.py``, against the same numbers by hand."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from configs import build, compose
from degradations.base import State
from diffusion import load, tasks
from diffusion.data.pixels import to_float, to_uint8
from diffusion.evaluation import spread
from diffusion.metrics import judge
from diffusion.metrics.distances import frechet, rmse_per_image, rmse_pooled
from diffusion.run import with_defaults
from diffusion.sampling import restore

COUNT = 20
QUICK = ["sampler.num_steps=3"]


@pytest.fixture(scope="module")
def data():
    return build("data", "digits")


@pytest.fixture(scope="module")
def images(data):
    return to_float(data.split("test").images[:COUNT])


def evaluate(run, *overrides):
    arguments = with_defaults([f"run={run.folder}", f"count={COUNT}", "batch=9", *QUICK, "device=cpu", *overrides])
    result = tasks.evaluate(compose("evaluate", arguments))
    assert json.loads((run.folder / "evaluation.json").read_text()) == result
    assert result["classifier_accuracy"] >= 0.97
    return {row["images"]: row for row in result["rows"]}


def test_restoration(cold, data):
    rows, images = evaluate(cold), to_float(data.split("test").batch(spread(296, COUNT))[0])
    assert list(rows) == ["degraded", "direct", "cold1", "cold2"]
    model, critic = load(cold.folder, device="cpu"), judge.fitted(data)
    x_T = model.degradation.forward(images, torch.ones(COUNT), State())
    expected = {"degraded": x_T, "direct": model.direct(x_T, 1.0, indices=range(COUNT))}
    for name in ("cold1", "cold2"):
        recipe = model.recipe([f"sampler={name}", *QUICK])
        expected[name] = model.sample(range(COUNT), recipe=recipe, images=images)
    for name, by_hand in expected.items():
        assert rows[name]["rmse"] == pytest.approx(rmse_pooled(by_hand, images), rel=1e-4), name
        assert rows[name]["rmse/image"] == pytest.approx(rmse_per_image(by_hand, images), rel=1e-4), name
        distance = frechet(critic.features(by_hand), critic.features(images))
        assert rows[name][f"fd/classifier@{COUNT}"] == pytest.approx(distance, rel=0.02, abs=0.01), name
    assert len({row["rmse"] for row in rows.values()}) == 4


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_generation(hot, data, weights):
    rows = evaluate(hot, f"weights={weights}", "seed=2")
    assert list(rows) == ["samples", "training images"]
    model, critic = load(hot.folder, device="cpu", weights=weights), judge.fitted(data)
    samples = model.sample(range(COUNT), seed=2, recipe=model.recipe(QUICK))
    name = f"fd/classifier@{COUNT}"
    reference = critic.features(to_float(data.split("test").images))
    assert rows["samples"]["agreement"] == critic.agreement(samples, torch.arange(COUNT) % 10)
    assert rows["samples"][name] == pytest.approx(frechet(critic.features(samples), reference), rel=0.02)
    assert rows["training images"]["agreement"] >= 0.9
    assert rows["training images"][name] < rows["samples"][name]


class TestRestore:
    def test_in_batches_of_any_size(self, hot, images, data):
        """With a class per image, which must follow its image."""
        model = load(hot.folder, device="cpu")
        recipe = model.recipe([*QUICK, "prior=degraded", "start=0.6"])
        labels = data.split("test").labels[:5].tolist()
        x_T, direct, restored = restore(model, recipe, images[:5], range(5), label=labels, batch=2)
        first, frames = model.trajectory(range(5), label=labels, recipe=recipe, images=images[:5])
        frame = next(iter(frames))
        torch.testing.assert_close(x_T, first, atol=1e-5, rtol=0)
        torch.testing.assert_close(direct, frame.estimate.x0.detach(), atol=1e-4, rtol=0)
        expected = model.sample(range(5), label=labels, recipe=recipe, images=images[:5])
        torch.testing.assert_close(restored, expected, atol=1e-4, rtol=0)

    def test_a_conditional_model_is_told_the_images_own_classes(self, hot, images, data, tmp_path):
        overrides = [*QUICK, "prior=degraded", "start=0.9"]
        tasks.sample(compose("sample", with_defaults([f"run={hot.folder}", *overrides, "samples=[7,2,5]", "device=cpu",
                                                      f"out={tmp_path}"])))
        model, indices = load(hot.folder, device="cpu"), [7, 2, 5]
        labels = data.split("test").labels[indices].tolist()
        assert labels != indices, "the default would be another class"
        expected = to_uint8(model.sample(indices, label=labels, recipe=model.recipe(overrides), images=images[indices]))
        for i, image in zip(indices, expected):
            got = np.asarray(Image.open(tmp_path / f"{i:06d}.png")).astype(int)
            assert np.abs(got - image[0].numpy()).max() <= 1


@pytest.mark.parametrize(("n", "count"), [(10, 3), (7, 7), (5, 9), (1000, 1), (296, 200)])
def test_what_is_measured_is_spread_over_the_set(n, count):
    chosen = spread(n, count)
    assert len(chosen) == min(n, count)
    assert chosen[0] == 0
    gaps = torch.diff(chosen, append=torch.tensor([n]))
    assert set(gaps.tolist()) <= {n // len(chosen), -(-n // len(chosen))}
