"""The loss with the right condition, another one, and none: by hand, and of networks whose answer is known."""

import pytest
import torch
from helpers import FEW, small, text_base, train

from configs import UserError, construct
from degradations.randomness import Streams
from diffusion import load
from diffusion.data.pixels import to_float
from diffusion.evaluation.losses import choose_evenly
from diffusion.metrics.condition_loss import ConditionLoss, compare_losses
from diffusion.metrics.evidence import shuffle
from diffusion.sampling.inputs import Inputs
from diffusion.sampling.selection import derive_signals

pytestmark = pytest.mark.commands

N = 12


def take(model, n=N):
    """Held-out images of a model's data, and what is known about them."""
    images = choose_evenly(construct(model.config["data"]).split("test"), n)
    return images, derive_signals(model, Inputs(images), range(n))


def measure(model, metric=None, images=None, condition=None, batch=5):
    if images is None:
        images, condition = take(model)
    return (metric or ConditionLoss())(model, images, condition, seed=3, batch=batch)


@pytest.fixture
def labelled(hot):
    return load(hot.folder, device="cpu")


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    run = train(tmp_path_factory.mktemp("control"), *small("control_scenes_edges"), *FEW, "max_steps=3",
                "optimizer.lr=0.01", "run.name=edges", "callbacks.pictures.count=0")
    return load(run.folder, device="cpu")


def test_it_is_the_loss_of_the_training_by_hand(labelled):
    images, condition = take(labelled)
    found = measure(labelled, ConditionLoss([[0.2, 0.5]], draws=1), images, condition)["loss"]
    x0, other = to_float(images.images), condition["label"][shuffle(N)]
    objective, encoder = labelled.objective, labelled.weights.encoder
    streams = Streams(3, tuple(range(N)), step=0)
    t, state = 0.5 - 0.3 * streams.uniform("time", (N,)), labelled.degradation.draw(x0.shape, streams)
    x_t = labelled.degradation.forward(x0, t, state)
    losses = {}
    for name, ctx in (("right", encoder({"label": condition["label"]})), ("shuffled", encoder({"label": other})),
                      ("none", encoder({}, n=N))):
        out = labelled.restorer.output(x_t, t, ctx)
        target = objective.parameterization.target(x0, t, state, labelled.degradation)
        weight = objective.weighting(t, labelled.degradation, objective.parameterization)
        losses[name] = (weight * (out - target).square().flatten(1).mean(1)).detach().double()
    assert found["loss t 0.2-0.5"].value == pytest.approx(losses["right"].mean().item(), rel=1e-5)
    for name in ("shuffled", "none"):
        step = losses[name] - losses["right"]
        assert step.abs().max() > 1e-6
        assert found[f"loss t 0.2-0.5, {name}"].value == pytest.approx(losses[name].mean().item(), rel=1e-5)
        difference = found[f"loss t 0.2-0.5, {name} - right"]
        assert difference.value == pytest.approx(step.mean().item(), rel=1e-2, abs=1e-7)
        sigmas = found[f"loss t 0.2-0.5, {name} - right, in sigmas"]
        assert sigmas.value == pytest.approx((step.mean() / step.std() * N**0.5).item(), rel=1e-2)
        assert "standard error" in difference.how
    assert set(found) == {f"loss t 0.2-0.5{end}" for end in ("", ", shuffled", ", none", ", shuffled - right",
                          ", none - right", ", shuffled - right, in sigmas", ", none - right, in sigmas")}


def test_a_network_that_ignores_its_condition_differs_by_exactly_nothing(labelled, monkeypatch):
    monkeypatch.setattr(labelled.evaluator, "network", lambda x, t, ctx=None, attn=None: 0.3 * x)
    found = measure(labelled)["loss"]
    assert found["loss t 0.6-1"].value > 0
    assert all(number.value == number.low == number.high == 0 for name, number in found.items() if "right" in name)


def test_a_network_that_knows_the_image_by_its_condition_is_helped(labelled, monkeypatch):
    """It answers with what is wanted if it is told what is right, and else with nothing."""
    images, condition = take(labelled)
    condition = {"label": torch.arange(N) % 10}
    right, states = labelled.weights.encoder(condition).emb, []

    def answer(x_t, t, ctx, attn=None):
        target = labelled.objective.parameterization.target(to_float(images.images), t, states[-1],
                                                            labelled.degradation)
        return target if torch.equal(ctx.emb, right) else torch.zeros_like(x_t)

    def draw(shape, streams, draw=labelled.degradation.draw):
        states.append(draw(shape, streams))
        return states[-1]

    monkeypatch.setattr(labelled.degradation, "draw", draw)
    monkeypatch.setattr(labelled.evaluator, "output", answer)
    found = measure(labelled, None, images, condition, batch=N)["loss"]
    assert found["loss t 0.6-1"].value == 0
    assert found["loss t 0.6-1, none - right, in sigmas"].value > 5
    assert found["loss t 0.6-1, none - right"].value == found["loss t 0.6-1, shuffled - right"].value


def test_batches_do_not_matter(labelled):
    one, other = measure(labelled, batch=5)["loss"], measure(labelled, batch=12)["loss"]
    assert all(number.value == pytest.approx(other[name].value, rel=1e-4, abs=1e-6)
               for name, number in one.items() if "sigmas" not in name)


def test_control_at_scale_0_is_the_base_with_and_without_a_caption(control):
    base = load(text_base(), device="cpu")
    images, condition = take(control)
    told = {"text": condition["text"]}
    mine, theirs = (measure(model, None, images, known) for model, known in ((control, condition), (base, told)))
    assert list(mine) == ["loss", "loss, text=none"]
    assert torch.equal(mine["loss"]["loss t 0.6-1, control 0"].pseudo_values,
                       theirs["loss"]["loss t 0.6-1"].pseudo_values)
    assert torch.equal(mine["loss, text=none"]["loss t 0.6-1, control 0"].pseudo_values,
                       theirs["loss"]["loss t 0.6-1, none"].pseudo_values)
    assert mine["loss"]["loss t 0.6-1, hint shuffled - right"].value != 0
    assert mine["loss"]["loss t 0.6-1, none"].value == mine["loss, text=none"]["loss t 0.6-1"].value
    assert "loss t 0.6-1, none" not in mine["loss, text=none"]


def test_sigmas_of_known_differences():
    right = torch.zeros(4, dtype=torch.float64)
    found = compare_losses("loss", {"right": right, "none": torch.tensor([1.0, 2.0, 3.0, 4.0]).double()})
    assert found["loss, none - right"].value == 2.5
    error = (5 / 3) ** 0.5 / 2
    assert found["loss, none - right, in sigmas"].value == pytest.approx(2.5 / error)
    assert found["loss, none - right"].how.endswith(f"standard error {error:.3g}")


@pytest.mark.parametrize("wrong", [{"intervals": [[0.6]]}, {"intervals": [[0.6, 0.2]]}, {"intervals": [[0.0, 1.5]]},
                                   {"draws": 0}, {"intervals": []}])
def test_other_settings_are_refused(wrong):
    with pytest.raises(UserError, match=r"condition_loss|interval"):
        ConditionLoss(**wrong)


def test_it_needs_a_condition_and_a_loss_at_given_times(labelled, monkeypatch):
    assert ConditionLoss().lacks(labelled) is None
    monkeypatch.setattr(labelled.weights.encoder, "signals", torch.nn.ModuleDict())
    assert ConditionLoss().lacks(labelled) == "a condition"
    monkeypatch.setattr(labelled, "objective", object())
    assert "given times" in (ConditionLoss().lacks(labelled) or "")
