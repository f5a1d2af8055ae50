"""Where x_T comes from: what is fitted, kept in the checkpoint, and drawn."""

import pytest
import torch
from helpers import small, train
from oracles import state_of

import degradations
from configs import UserError, build, compose, registry
from degradations.randomness import Streams
from diffusion import commands, load
from diffusion.priors import ColorPrior, DatasetPrior, MixturePrior, Prior
from diffusion.runs import checkpoint
from diffusion.runs.defaults import add_run_defaults
from scripts.fit_prior import fit_prior

BLUR = {"collapse": True}


def images(n, size=16, seed=0):
    """Pictures whose mean colours are two clouds, an orange one for two thirds of them, a blue one for the rest."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.tensor([[0.6, 0.2, -0.4], [-0.5, 0.0, 0.7]])[(torch.arange(n) % 3 == 2).long()]
    noise = torch.randn(n, 3, size, size, generator=generator)
    noise = noise - noise.mean((2, 3), keepdim=True)
    return colours[:, :, None, None] + 0.05 * torch.randn(n, 3, 1, 1, generator=generator) + 0.2 * noise


def streams(n, seed=0):
    return Streams(seed, tuple(range(n)))


class TestMixture:
    @pytest.mark.parametrize("components", [1, 2])
    def test_mean_colours_have_the_law_of_the_images(self, components):
        blur, x0 = degradations.build("blur", **BLUR), images(900)
        prior = MixturePrior(components=components, noise=0.0)
        prior.fit(x0.split(64), blur)
        x_T, state = prior.sample((2000, 3, 8, 8), blur, streams(2000))
        assert not list(state)
        assert torch.equal(x_T, x_T[..., :1, :1].expand_as(x_T))
        found, wanted = x_T[:, :, 0, 0], x0.mean((2, 3))
        torch.testing.assert_close(found.mean(0), wanted.mean(0), atol=0.05, rtol=0)
        torch.testing.assert_close(found.T.cov(), wanted.T.cov(), atol=0.03, rtol=0)
        orange = found[:, 0] > 0.35
        assert (orange & (found[:, 0] < 0.85)).float().mean() > (0.6 if components == 2 else 0.2)
        assert ((found[:, 0] > -0.3) & ~orange).float().mean() < 0.01 or components == 1

    def test_it_is_what_the_operator_leaves(self):
        """``D(x_T, 1) = x_T``."""
        halved = degradations.build("downsample", first="average")
        for operator, size in ((degradations.build("blur", **BLUR), 1), (halved, 2)):
            prior = MixturePrior(size, noise=0.0)
            prior.fit(images(100).split(32), operator)
            x_T, state = prior.sample((5, 3, 16, 16), operator, streams(5))
            torch.testing.assert_close(operator.forward(x_T, torch.ones(5), state), x_T, atol=1e-6, rtol=0)

    def test_small_images_are_those_of_the_last_level(self):
        down, prior, x0 = degradations.build("downsample"), MixturePrior(2, noise=0.0), images(2000)
        prior.fit(x0.split(64), down)
        x_T, _ = prior.sample((2000, 3, 16, 16), down, streams(2000))
        last = down.forward(x0, torch.ones(2000), state_of(down, x0.shape))
        found, wanted = (x[..., ::8, ::8].flatten(1) for x in (x_T, last))
        torch.testing.assert_close(found.mean(0), wanted.mean(0), atol=0.05, rtol=0)
        torch.testing.assert_close(found.T.cov(), wanted.T.cov(), atol=0.03, rtol=0)

    def test_the_noise_breaks_the_symmetry(self):
        blur, x0 = degradations.build("blur", **BLUR), images(50)
        plain, broken = MixturePrior(noise=0.0), MixturePrior()
        plain.fit([x0], blur)
        broken.load_state_dict(plain.state_dict())
        a, b = (prior.sample((4, 3, 16, 16), blur, streams(4))[0] for prior in (plain, broken))
        assert (b - a).std().item() == pytest.approx(0.002, rel=0.1)

    def test_a_sample_does_not_depend_on_its_batch(self):
        blur, prior = degradations.build("blur", **BLUR), MixturePrior(components=2)
        prior.fit([images(60)], blur)
        whole = prior.sample((6, 3, 8, 8), blur, streams(6))[0]
        alone = prior.sample((2, 3, 8, 8), blur, Streams(0, (4, 1)))[0]
        assert torch.equal(alone, whole[[4, 1]])

    def test_other_settings_than_those_of_the_fit(self):
        blur, prior = degradations.build("blur", **BLUR), MixturePrior()
        prior.fit([images(50)], blur)
        for other in (MixturePrior(components=2), MixturePrior(size=2)):
            with pytest.raises(UserError, match="fitted with 1 components"):
                other.load_state_dict(prior.state_dict())

    @pytest.mark.parametrize(("components", "count"), [(1, 1), (5, 4)])
    def test_too_few_images(self, components, count):
        with pytest.raises(UserError, match=f"from {count} images"):
            MixturePrior(components=components).fit([images(count)], degradations.build("blur"))


class TestColour:
    def test_the_end_of_inpainting(self):
        veil = degradations.build("inpaint_color")
        x_T, state = ColorPrior().sample((5, 3, 8, 8), veil, streams(5))
        assert torch.equal(x_T, veil.forward(torch.randn(5, 3, 8, 8), torch.ones(5), state))
        assert x_T.abs().max() <= 0.5


class TestOthers:
    def test_images_of_the_other_set_each_once(self):
        morph, prior = degradations.build("animorph"), DatasetPrior(20)
        prior.fit(torch.zeros(20, 1, 16, 16).split(8), morph)
        assert prior.state_dict()["images"].dtype == torch.uint8
        x_T, state = prior.sample((20, 1, 16, 16), morph, streams(20, seed=4))
        assert torch.equal(state["z"], x_T)
        kept = morph.draw((20, 1, 16, 16), streams(20))["z"]
        assert sorted(x_T.flatten(1).sum(1).tolist()) == pytest.approx(sorted(kept.flatten(1).sum(1).tolist()), abs=1)
        again = DatasetPrior(20)
        again.load_state_dict(prior.state_dict())
        assert torch.equal(again.sample((2, 1, 16, 16), morph, Streams(4, (7, 3)))[0], x_T[[7, 3]])
        assert not torch.equal(again.sample((20, 1, 16, 16), morph, streams(20, seed=5))[0], x_T)


@pytest.mark.parametrize(("prior", "degradation", "fix"), [
    ("mixture", "gaussian", "prior=noise"), ("mixture", "inpaint", "prior=degraded"),
    ("color", "blur", "prior=degraded"),
    ("dataset", "gaussian", "prior=noise"), ("dataset", "blur", "prior=degraded"), ("noise", "snow", "prior=degraded")])
def test_a_prior_of_another_operator_is_refused(prior, degradation, fix):
    with pytest.raises(UserError) as error:
        build("prior", prior).check(build("degradation", degradation))
    assert error.value.fix == fix


def test_noise_does_not_end_what_only_adds():
    with pytest.raises(UserError, match="prior=noise"):
        build("prior", "noise").check(build("degradation", "gaussian", schedule="additive"))


@pytest.mark.parametrize("settings", [{"components": 0}, {"size": 0}, {"noise": -1.0}, {"count": 1}])
def test_unusable_settings_are_refused(settings):
    with pytest.raises(UserError, match="mixture"):
        build("prior", "mixture", **settings)
    with pytest.raises(UserError, match="at least 1"):
        build("prior", "dataset", count=0)


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """A small run that makes digits from blur."""
    return train(tmp_path_factory.mktemp("runs"), *small("generate_blur_celeba64"), "data=digits", "data.size=16",
                 "callbacks.pictures.count=0", "run.name=generator")


class TestInARun:
    def test_the_checkpoint_holds_the_fit(self, generator):
        for path in checkpoint.list_checkpoints(generator.checkpoints).values():
            fitted = {f"prior.{name}" for name in ("weights", "means", "factors")}
            assert fitted == set(checkpoint.read(path)["frozen"])
            assert not fitted & set(checkpoint.read(path)["raw"])

    def test_it_generates(self, generator):
        model = load(generator.folder, device="cpu")
        samples = model.sample(range(3), recipe=model.recipe(["sampler.num_steps=2"]))
        assert samples.shape == (3, 1, 16, 16)
        x_T, _ = model.trajectory(range(3))
        mean, spread = model.prior.means.mean().item(), model.prior.factors.max().item()
        assert (x_T.mean((1, 2, 3)) - mean).abs().max() < 5 * spread + 0.01

    def test_how_it_is_used_may_differ_from_how_it_was_trained(self, generator):
        model = load(generator.folder, device="cpu")
        plain, _ = model.trajectory(range(3), recipe=model.recipe(["prior=mixture", "prior.noise=0"]))
        assert torch.equal(plain, plain[..., :1, :1].expand_as(plain))
        with pytest.raises(UserError, match=r"fit_prior\.py") as error:
            model.trajectory([0], recipe=model.recipe(["prior=mixture", "prior.components=3"]))
        assert "components=3" in error.value.got

    def test_it_restores_too(self, generator):
        model = load(generator.folder, device="cpu")
        recipe = model.recipe(["prior=degraded", "sampler.num_steps=2"])
        assert model.sample([0], recipe=recipe, images=torch.zeros(1, 1, 16, 16)).isfinite().all()

    def test_going_on_keeps_the_fit(self, generator):
        before = load(generator.folder, device="cpu").prior.state_dict()
        train(generator.folder.parents[1], *small("generate_blur_celeba64"), "data=digits", "data.size=16",
              "callbacks.pictures.count=0", "run.name=generator", "max_steps=4")
        after = load(generator.folder, device="cpu")
        assert after.step == 4
        assert set(before) == {"weights", "means", "factors"}
        assert all(torch.equal(after.prior.state_dict()[name], before[name]) for name in before)


def test_a_prior_that_was_not_fitted(cold, tmp_path):
    with pytest.raises(UserError, match=r"fit_prior\.py run=FOLDER prior=mixture"):
        load(cold.folder, device="cpu").sample([0], recipe=load(cold.folder).recipe(["prior=mixture"]))
    overrides = add_run_defaults([f"run={cold.folder}", "prior=mixture", "samples=0", f"out={tmp_path / 'samples'}"])
    with pytest.raises(UserError, match="was not fitted"):
        commands.sample(compose("sample", overrides))
    assert not (tmp_path / "samples").exists()


def test_fitted_by_the_script(tmp_path):
    run = train(tmp_path, *small("cold_blur_digits"), "callbacks.pictures.count=0", "run.name=late")
    asked = compose("sample", [f"run={run.folder}", "prior=mixture", "prior.components=2"])
    made = fit_prior(asked)
    assert made.folder == run.folder.with_name("late,prior=mixture")
    model, first = load(made.folder, device="cpu"), load(run.folder, device="cpu")
    assert isinstance(model.prior, MixturePrior)
    assert model.prior.means.shape == (2, 1)
    assert made.config["prior"] == registry.node("prior", "mixture", components=2)
    assert model.sample(range(2), recipe=model.recipe(["sampler.num_steps=2"])).shape == (2, 1, 16, 16)
    assert made.config["derived"]["step"] == first.step == model.step
    assert all(torch.equal(value, model.weights.state_dict()[name])
               for name, value in first.weights.state_dict().items())
    assert not isinstance(first.prior, MixturePrior)
    with pytest.raises(UserError, match="holds a run"):
        fit_prior(asked)
    fit_prior(compose("sample", [f"run={run.folder}", "prior=mixture", "prior.components=3", "overwrite=true"]))
    assert load(made.folder, device="cpu").prior.means.shape == (3, 1)
    with pytest.raises(UserError, match="nothing to fit"):
        fit_prior(compose("sample", [f"run={run.folder}", "prior=degraded"]))
    with pytest.raises(UserError, match="holds a run"):  # one that was trained is never replaced
        fit_prior(compose("sample", [f"run={run.folder}", "prior=mixture", f"out={run.folder}", "overwrite=true"]))


def test_most_priors_have_nothing_to_fit():
    assert {name for name in registry.available("prior") if not build("prior", name).fitted} == {"mixture", "dataset"}
    assert Prior().fitted
