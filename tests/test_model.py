"""A trained model in Python; the average of its weights; how its learning rate moves."""

import math

import pytest
import torch
from helpers import COLD, DIGITS, train
from torch import nn

from configs import UserError, build
from degradations.base import State
from diffusion import load
from diffusion.data.pixels import to_float
from diffusion.model import Model
from diffusion.runs import checkpoint
from diffusion.training.ema import EMA

QUICK = ["sampler.num_steps=4"]


@pytest.fixture(scope="module")
def model(hot) -> Model:
    return load(hot.folder, device="cpu")


@pytest.fixture(scope="module")
def restorer(cold) -> Model:
    return load(cold.folder, device="cpu")


@pytest.fixture(scope="module")
def quick(model):
    return model.recipe(QUICK)


@pytest.fixture(scope="module")
def images():
    return to_float(build("data", "digits").split("test").images[:5])


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


class TestSampling:
    def test_shape_and_range(self, model):
        """As the run is meant to be sampled. Not clipped, but images: the schedule does not blow them up."""
        samples = model.sample(range(3))
        assert samples.shape == (3, 1, 16, 16)
        assert samples.dtype == torch.float32
        assert samples.abs().max() < 10
        assert samples.std() > 0.01

    @pytest.mark.parametrize("overrides", [["sampler=ddim"], ["sampler=ddpm"], ["sampler=ddim", "sampler.eta=0.7"],
                                           ["sampler=ddpm", "guidance=none"]], ids=" ".join)
    def test_a_sample_depends_on_seed_and_index_alone(self, model, overrides):
        recipe = model.recipe([*overrides, *QUICK])
        whole = model.sample(range(6), recipe=recipe)
        close(model.sample(range(6), recipe=recipe, batch=2), whole)
        close(model.sample([5, 3], recipe=recipe), whole[[5, 3]])
        assert (model.sample(range(6), recipe=recipe, seed=1) - whole).flatten(1).abs().amax(1).min() > 0.01
        assert torch.equal(model.sample(range(6), recipe=recipe), whole)

    def test_classes_go_round_and_may_be_chosen(self, model, quick):
        cycled = model.sample([0, 3, 13], recipe=quick)
        close(model.sample([0, 3, 13], recipe=quick, label=[0, 3, 3]), cycled)
        threes = model.sample([0, 3, 13], recipe=quick, label=3)
        close(threes[1:], cycled[1:])
        assert (threes[0] - cycled[0]).abs().max() > 1e-4
        assert model.condition([8, 9, 10], {})["label"].tolist() == [8, 9, 0]
        close(model.sample(range(3), recipe=quick, label=[1, 2, 3], batch=2),
              model.sample(range(3), recipe=quick, label=[1, 2, 3]))

    @pytest.mark.parametrize("label", [10, -1, [1, 2]])
    def test_impossible_labels(self, model, quick, label):
        with pytest.raises(UserError, match=r"0 \.\. 9|2 values of label for 3 samples"):
            model.sample(range(3), recipe=quick, label=label)

    def test_a_label_for_an_unconditional_model(self, restorer, images):
        with pytest.raises(UserError, match="unconditional"):
            restorer.sample(range(5), label=1, images=images)

    def test_guidance_for_an_unconditional_model(self, restorer, images):
        with pytest.raises(UserError, match="guidance=none"):
            restorer.sample(range(5), recipe=restorer.recipe(["guidance=cfg"]), images=images)

    def test_recipes_change_what_is_asked(self, model):
        mine, other = model.recipe(), model.recipe(["sampler.num_steps=7", "guidance.cfg.scale=5", "start=0.5"])
        assert (mine.sampler.num_steps, mine.parts[0].scale, mine.start) == (50, 2, 1.0)
        assert (other.sampler.num_steps, other.parts[0].scale, other.start) == (7, 5, 0.5)
        assert model.recipe(["guidance=none"]).parts == []

    def test_the_wrong_sampler_is_refused(self, restorer, images):
        with pytest.raises(UserError, match="cold2"):
            restorer.sample(range(5), recipe=restorer.recipe(["sampler=ddim"]), images=images)

    def test_unknown_names_are_answered(self, model):
        with pytest.raises(UserError, match="ddim"):
            model.recipe(["sampler=dimm"])


class TestRestoration:
    def test_images_are_degraded_and_restored(self, restorer, images):
        recipe = restorer.recipe(["sampler.num_steps=5"])
        restored = restorer.sample(range(5), recipe=recipe, images=images)
        assert restored.shape == images.shape
        x_T = restorer.degradation.forward(images, torch.ones(5), State())
        close(restorer.sample(range(5), recipe=recipe, images=x_T, degraded=True), restored)
        close(restorer.sample([2, 4], recipe=recipe, images=images[[2, 4]]), restored[[2, 4]])
        close(restorer.sample(range(5), recipe=recipe, images=images, batch=2), restored)

    def test_it_needs_images(self, restorer):
        with pytest.raises(UserError, match="input=FOLDER"):
            restorer.sample(range(2))

    def test_direct_is_the_first_estimate(self, restorer, images):
        recipe = restorer.recipe(["sampler.num_steps=5"])
        x_T, frames = restorer.trajectory(range(5), images=images, recipe=recipe)
        close(restorer.direct(x_T, 1.0, indices=range(5)), next(iter(frames)).estimate.x0.detach())

    def test_a_hot_model_starts_from_an_image_half_way(self, model, images):
        """SDEdit through the recipe: the closer to clean the start, the closer to the image the end."""
        distances = [(model.sample(range(5), images=images, recipe=model.recipe(
            ["prior=degraded", f"start={start}", "sampler.num_steps=3", "guidance=none"])) - images).abs().mean()
            for start in (0.02, 0.5)]
        assert distances[0] < 0.5 * distances[1]


class TestTraining:
    def test_half_precision(self, tmp_path):
        run = train(tmp_path, *DIGITS, "precision=bf16", "callbacks.pictures.count=0")
        model = load(run.folder, device="cpu")
        assert all(p.dtype == torch.float32 for p in model.weights.parameters())
        samples = model.sample(range(2), recipe=model.recipe(QUICK))
        assert samples.isfinite().all()
        assert samples.dtype == torch.float32

    def test_noise_prediction_at_zero_terminal_snr_is_refused(self, tmp_path):
        settings = [*DIGITS, "degradation/schedule=zero_snr"]
        with pytest.raises(UserError, match="pure noise") as error:
            train(tmp_path, *settings, "objective/parameterization=eps")
        assert error.value.fix == "objective/parameterization=v"
        train(tmp_path, *settings, error.value.fix, "max_steps=1", "callbacks.pictures.count=0")

    @pytest.mark.parametrize(("overrides", "words"), [
        (["prior=noise"], "prior=degraded"), (["objective/parameterization=eps"], "parameterization=x0"),
        (["condition=label", "data.size=15"], "divisible"), (["precision=16"], "bf16"), (["objective.error=l3"], "l2"),
        (["optimizer.decay=sine"], "linear")], ids=lambda v: " ".join(v) if isinstance(v, list) else "")
    def test_parts_that_do_not_fit_are_refused_at_the_start(self, tmp_path, overrides, words):
        with pytest.raises(UserError, match=words):
            train(tmp_path, *COLD, *overrides)
        assert not list(tmp_path.rglob("*.pt"))

    def test_what_is_recorded(self, hot):
        """The learning rate of the CSV is the recipe's; the checkpoint counts the steps of Adam."""
        rows = [line.split(",") for line in hot.metrics.read_text().splitlines()]
        assert [row[0] for row in rows] == ["step", *map(str, range(1, 13))]
        assert all(math.isfinite(float(value)) for row in rows[1:] for value in row if value)
        content = checkpoint.read_latest(hot.checkpoints)
        assert {int(state["step"]) for state in content["optimizers"]["net"]["state"].values()} == {12}


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_is_a_recursion(decay):
    """``a <- d a + (1 - d) w``, d = min(decay, (1 + n) / (10 + n)), in scalars."""
    layer = nn.Linear(1, 1, bias=False)
    layer.register_buffer("count", torch.zeros(1))
    expected = layer.weight.item()
    ema = EMA(layer, decay)
    for n in range(1, 30):
        value = math.sin(n)
        nn.init.constant_(layer.weight, value)
        layer.count += 1
        d = min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * value
        ema.update(layer, n)
    assert ema.model.weight.item() == pytest.approx(expected, abs=1e-6)
    assert ema.model.count.item() == 29
    assert not ema.train().model.training
    assert not ema.model.weight.requires_grad


class TestRate:
    def test_warm_up_is_a_line_to_the_rate(self):
        rate = build("optimizer", "adamw", lr=0.1, warmup=5).rate
        assert [rate(i, 100) for i in range(7)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1])

    def test_no_warm_up(self):
        assert build("optimizer", "adamw", lr=0.1, warmup=0).rate(0, 100) == 0.1

    @pytest.mark.parametrize(("decay", "shape"), [("linear", lambda u: 1 - u),
                                                  ("cosine", lambda u: math.cos(math.pi * u / 2) ** 2),
                                                  ("none", lambda u: 1.0)])
    def test_decay(self, decay, shape):
        """From lr at the end of the warm-up to final * lr at max_steps."""
        rate = build("optimizer", "adamw", lr=0.1, warmup=10, decay=decay, final=0.2).rate
        for step in (10, 35, 60, 109):
            assert rate(step, 110) == pytest.approx(0.1 * (0.2 + 0.8 * shape((step - 10) / 100)))
        if decay != "none":
            assert rate(110, 110) == pytest.approx(0.02)
            assert all(rate(i, 110) > rate(i + 1, 110) for i in range(10, 110))

    def test_a_short_run_is_all_warm_up(self):
        rate = build("optimizer", "adamw", lr=0.1, warmup=500, decay="linear").rate
        assert rate(2, 3) == pytest.approx(0.1 * 3 / 500)


def test_no_condition_is_the_null_condition(model):
    """``label="none"`` is what guidance 0 gives for any class."""
    plain = model.recipe(["guidance=none", "sampler.num_steps=2"])
    unconditional = model.recipe(["guidance=cfg", "guidance.cfg.scale=0", "sampler.num_steps=2"])
    none = model.sample(range(3), label="none", recipe=plain)
    torch.testing.assert_close(none, model.sample(range(3), label=4, recipe=unconditional), atol=1e-4, rtol=1e-4)
    assert (none - model.sample(range(3), label=4, recipe=plain)).abs().max() > 1e-3
