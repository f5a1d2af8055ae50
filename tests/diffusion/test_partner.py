"""Other runs in guidance: found by name, told the condition as it is, checked like any checkpoint."""

import pytest
import torch
from helpers import CLASSIFIER, DIGITS, LEARNED, train

from configs import UserError, registry
from degradations.randomness import Streams
from diffusion import load
from diffusion.model import Model
from diffusion.sampling.watchers import evaluations
from samplers.guidance.base import list_models

pytestmark = pytest.mark.commands

WEAK = "guidance.autoguidance.weak"
JUDGE = "guidance.classifier.classifier"


@pytest.fixture(scope="module")
def model(hot) -> Model:
    return load(hot.folder, device="cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An unconditional run."""
    return train(tmp_path_factory.mktemp("runs"), *DIGITS, "condition=none", "run.name=plain", *LEARNED,
                 experiment="ddpm_digits")


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A classifier of noisy digits."""
    noisy = [word.replace("classifier_digits", "noisy_classifier_digits") for word in CLASSIFIER]
    return train(tmp_path_factory.mktemp("runs"), *noisy, "run.name=judge", "max_steps=4",
                 experiment="noisy_classifier_digits")


def drawn(model, *overrides, **arguments):
    recipe = model.recipe(["sampler=ddim", "sampler.num_steps=3", *overrides])
    return model.sample(range(3), recipe=recipe, **arguments)


def test_an_earlier_checkpoint_is_a_weaker_model(hot, model):
    run = ["guidance=autoguidance", f"{WEAK}.run={hot.folder}"]
    plain = drawn(model, "guidance=none")
    assert torch.equal(drawn(model, *run, "guidance.autoguidance.scale=1"), plain)
    torch.testing.assert_close(drawn(model, *run, "guidance.autoguidance.scale=3"), plain, atol=1e-4, rtol=1e-3)
    early = drawn(model, *run, f"{WEAK}.step=6", "guidance.autoguidance.scale=3")
    assert (early - plain).abs().max() > 1e-3


@pytest.mark.parametrize(("scale", "others"), [(3, 9), (1, 0)])
def test_its_evaluations_are_counted_apart(hot, model, scale, others):
    recipe = model.recipe(["sampler=ddim", "sampler.num_steps=3", "guidance=autoguidance", f"{WEAK}.run={hot.folder}",
                           f"{WEAK}.step=6", f"guidance.autoguidance.scale={scale}"])
    with evaluations(model, recipe.parts) as counts:
        model.sample(range(3), recipe=recipe)
    assert (counts["own"], counts["others"]) == (9, others)


def test_the_weak_model_reads_the_condition_and_the_null_itself(hot, model):
    recipe = model.recipe(["guidance=autoguidance", f"{WEAK}.run={hot.folder}", f"{WEAK}.step=6"])
    (weak,) = list_models(recipe.parts)
    other, label = load(hot.folder, step=6, device="cpu"), {"label": torch.tensor([3, 5])}
    ctx = model.context(label, 2)
    x, t = torch.randn(2, *model.shape), torch.full((2,), 0.5)
    state = model.degradation.draw(x.shape, Streams(0, (0, 1)))
    for mine, theirs in ((ctx, other.context(label, 2)), (ctx.null, other.context({}, 2))):
        got = weak(x, t, mine, state=state, step=None)
        assert torch.equal(got.x0, other.restorer(x, t, theirs, state=state, step=None).x0)


def test_an_unconditional_run_as_the_null(plain, model):
    run = ["guidance=cfg_separate", f"guidance.cfg.unconditional.run={plain.folder}"]
    assert torch.equal(drawn(model, *run, "guidance.cfg.scale=1"), drawn(model, "guidance=none"))
    only = drawn(model, *run, "guidance.cfg.scale=0")
    theirs = load(plain.folder, device="cpu")
    torch.testing.assert_close(only, drawn(theirs, "guidance=none"), atol=1e-4, rtol=1e-3)


def test_a_classifier_leads_an_unconditional_model(plain, judge):
    model = load(plain.folder, device="cpu")
    with pytest.raises(UserError, match="unconditional"):
        drawn(model, label=3)
    run = ["guidance=[classifier,clip]", f"{JUDGE}.run={judge.folder}", "guidance.classifier.scale=20"]
    three, five = (drawn(model, *run, label=label) for label in (3, 5))
    assert (three - five).abs().max() > 1e-4
    recipe = model.recipe(run)
    assert model.condition(range(12), {}, recipe)["label"].tolist() == [*range(10), 0, 1]
    with pytest.raises(UserError, match="label=3"):
        drawn(model, *run, label="none")


def test_what_does_not_fit_is_refused_before_any_work(hot, cold, plain, judge, model, tmp_path):
    clean = train(tmp_path, *CLASSIFIER, "run.name=clean", "max_steps=2", experiment="classifier_digits")
    for overrides, words in (
            (["guidance=autoguidance"], r"weak\.run=RUN"),
            (["guidance=autoguidance", f"{WEAK}.run={cold.folder}"], "degradation"),
            (["guidance=autoguidance", f"{WEAK}.run={judge.folder}"], "which can classify"),
            (["guidance=autoguidance", f"{WEAK}.run={tmp_path}/nowhere"], "no run"),
            (["guidance=classifier", f"{JUDGE}.run={hot.folder}"], "experiment=classifier_digits"),
            (["guidance=classifier", f"{JUDGE}.run={clean.folder}"], "noisy_classifier")):
        with pytest.raises(UserError, match=words):
            drawn(model, *overrides)


@pytest.mark.parametrize("target", ["torch.save", "diffusion.model.load", "diffusion.runs.run.Run", "torch.nn.Linear",
                                    "diffusion.sampling.guides.load"])
def test_a_strangers_settings_build_no_other_thing(model, target):
    model.packages = registry.trusted()
    with pytest.raises(UserError, match="_target_"):
        model.recipe(["guidance=autoguidance", f"{WEAK}._target_={target}"])
