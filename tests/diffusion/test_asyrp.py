"""What a shift is trained for, by which answers of a judge, and how edits are measured."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import FEW, done, face_runs, scene_judge, small, text_base, train
from networks import encoder, network, randomized

import degradations
from configs import UserError
from degradations.randomness import BatchStream
from diffusion import load
from diffusion.data.pixels import to_float
from diffusion.evaluation.asyrp import find_time, measure_distances, measure_edits, replace_shifts, watch_shifts
from diffusion.loading import build_data
from diffusion.metrics.goals import Answers, find_answer, list_questions, log_probability, shows, split_questions
from diffusion.objectives.asyrp import Asyrp, Goal
from diffusion.objectives.parameterization import V
from diffusion.runs import checkpoint
from models.shifted import ShiftedNet, ask_shift

pytestmark = pytest.mark.commands

GAUSSIAN = degradations.build("gaussian", schedule="linear")


class Bright(Goal):
    """White images, of those that are not dark."""

    def choose(self, x):
        return x.flatten(1).mean(1) > -0.5

    def __call__(self, x, base):
        return (1 - x).square().flatten(1).mean(1)


class BrightAt(Bright):
    """Of noisy images, the more so the nearer they are to clean ones."""

    noisy = True

    def __call__(self, x, base, t):
        return (1 - x).square().flatten(1).mean(1) * (1 - t) + base.square().flatten(1).mean(1)


def images(n=3, dark=()):
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(3)) - 0.5
    x[list(dark)] -= 1
    return x


def shifted(seed=1):
    net = ShiftedNet(network())
    randomized(net.shift, seed)
    net.shift.requires_grad_(True)
    return net


def ask(criterion, net, x0, rows=slice(None), step=0):
    """The losses of some rows of a batch of labelled images."""
    of = range(len(x0))[rows]
    stream = BatchStream(0, step, slice(of.start, of.stop), len(x0))
    evaluator = criterion.use(net, GAUSSIAN, "32")
    return criterion(evaluator, encoder(), GAUSSIAN, x0[rows], {"label": torch.arange(len(x0))[rows]}, stream)


@pytest.mark.parametrize("noisy", [False, True])
def test_the_loss_is_its_formula(noisy):
    """Against the path written out: DDIM upwards by its equation, and the asymmetric way down."""
    net, x0, seen = shifted(), images(), BrightAt() if noisy else Bright()
    criterion = Asyrp(V(), seen, 0.5, 4, 1.0, 2.0, 3.0, drop=0.0)
    found = ask(criterion, net, x0)
    ctx, grid = encoder()({"label": torch.arange(3)}), [0.0, 0.25, 0.5, 0.75, 1.0]

    def at(t):
        alpha, sigma = GAUSSIAN.schedule(torch.tensor([t], dtype=torch.float64))
        return alpha.float(), sigma.float()

    def predict(x, t, context):
        """x0 and z of a network that answers ``alpha z - sigma x0``."""
        (alpha, sigma), v = at(t), net(x, torch.full((3,), t), context)
        x0_hat = (alpha * x - sigma * v) / (alpha**2 + sigma**2)
        return x0_hat, (x - alpha * x0_hat) / sigma

    with torch.no_grad():
        x = x0
        for t, s in itertools.pairwise(grid):
            z, (alpha_t, sigma_t), (alpha_s, sigma_s) = predict(x, s, ctx)[1], at(t), at(s)
            x = alpha_s / alpha_t * x + (sigma_s - alpha_s / alpha_t * sigma_t) * z
        goals, keeps = [], []
        for t, s in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25)):
            base, z = predict(x, t, ctx)
            edited = predict(x, t, ask_shift(ctx, 1.0, x))[0]
            keeps.append((edited - base).abs().flatten(1).mean(1))
            x = at(s)[0] * edited + at(s)[1] * z
            goals.append(seen(x, at(s)[0] * base + at(s)[1] * z, torch.full((3,), s)) if noisy else seen(edited, base))
    goal, keep = torch.stack(goals).mean(0), torch.stack(keeps).mean(0)
    torch.testing.assert_close(found.logs["goal"].detach(), goal, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.values.detach(), 2 * goal + 3 * keep, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_shift_alone():
    net, x0 = shifted(), images().requires_grad_(True)
    ask(Asyrp(V(), Bright(), num_steps=4), net, x0).values.mean().backward()
    assert x0.grad is None
    assert not any(parameter.requires_grad for parameter in net.base.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.shift.parameters())


def test_training_reaches_the_goal_more_nearly():
    net, x0, criterion = ShiftedNet(network()), images(), Asyrp(V(), Bright(), num_steps=4, keep_weight=0.0)
    net.base.requires_grad_(False)
    optimizer = torch.optim.Adam(net.shift.parameters(), 0.05)
    losses = []
    for _ in range(8):
        loss = ask(criterion, net, x0).values.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_images_of_another_source_count_nothing():
    net, criterion = shifted(), Asyrp(V(), Bright(), num_steps=4)
    found = ask(criterion, net, images(dark=[1]))
    assert found.logs["chosen"].tolist() == [1, 0, 1]
    assert (found.values > 0).tolist() == [True, False, True]
    torch.testing.assert_close(found.values[[0, 2]], ask(criterion, net, images()).values[[0, 2]])
    none = ask(criterion, net, images(dark=[0, 1, 2]))
    none.values.mean().backward()
    assert not none.values.any()
    assert not any(parameter.grad.any() for parameter in net.shift.parameters())


def test_an_image_does_not_depend_on_its_batch():
    net, criterion, x0 = shifted(), Asyrp(V(), Bright(), num_steps=4, drop=0.5), images(4)
    whole = ask(criterion, net, x0).values
    torch.testing.assert_close(ask(criterion, net, x0, slice(1, 3)).values, whole[1:3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"t_edit": 1.0}, {"start": 0.3}, {"keep_weight": -1.0}, {"drop": 2.0},
                                   {"num_steps": 0}])
def test_settings_that_mean_nothing(wrong):
    with pytest.raises(UserError):
        Asyrp(V(), Bright(), **wrong)


def test_what_cannot_be_shifted_is_refused():
    criterion = Asyrp(V(), Bright())
    with pytest.raises(UserError, match="bottleneck can be shifted"):
        criterion.use(network(), GAUSSIAN, "32")
    with pytest.raises(UserError, match="a hot model"):
        criterion.check(degradations.build("blur"))


def test_wanted_answers_are_a_cross_entropy():
    model, x = load(scene_judge(), device="cpu"), torch.rand(3, 3, 16, 16).requires_grad_(True)
    goal = Answers(scene_judge(), "colour", "blue", others=0.0)
    goal.check_shape((3, 16, 16))
    words, logits = model.classifier.words, model.classifier(x, torch.zeros(3)).logits
    digits = len(words["digit"])
    colours = logits[:, digits:digits + len(words["colour"])]
    found = goal(x, torch.rand(3, 3, 16, 16))
    torch.testing.assert_close(found, F.cross_entropy(colours, torch.full((3,), words["colour"].index("blue")),
                                                      reduction="none"))
    found.sum().backward()
    assert x.grad.any()
    assert not any(parameter.requires_grad for parameter in goal.model.weights.parameters())
    said = words["colour"][colours[0].argmax()]
    assert shows(model, logits[:1], "colour", said).all()
    assert goal.choose(x.detach()).all(), "all of them, if no source is said"
    other = Answers(scene_judge(), "colour", "blue", words["colour"][colours[0].argmin()])
    assert not other.choose(x.detach()[:1]).any()


def test_a_judge_of_noisy_images_looks_at_them(tmp_path):
    run = str(train(tmp_path, *small("judge_scenes_digits"), *FEW, "max_steps=1", "run.name=noisy",
                    "degradation=gaussian", "degradation/schedule=linear", "objective/times=uniform").folder)
    goal, model = Answers(run, "colour", "blue", others=0.0), load(run, device="cpu")
    x, t = torch.rand(3, 3, 16, 16), torch.tensor([0.1, 0.5, 0.9])
    assert goal.noisy
    assert not Answers(scene_judge(), "colour", "blue").noisy
    expected = -log_probability(model, model.classifier(x, t).logits, "colour", "blue")
    torch.testing.assert_close(goal(x, x, t), expected)
    goal.check(GAUSSIAN)
    with pytest.raises(UserError, match="other noisy images"):
        goal.check(degradations.build("gaussian"))
    Answers(scene_judge(), "colour", "blue").check(GAUSSIAN)


def test_other_answers_are_to_stay():
    """Against the divergences of the distributions, written out."""
    model, x, base = load(scene_judge(), device="cpu"), torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    alone, both = (Answers(scene_judge(), "colour", "blue", others=others) for others in (0.0, 2.0))
    expected = torch.zeros(2)
    for name, after in split_questions(model, model.classify(x).logits).items():
        p, q = split_questions(model, model.classify(base).logits)[name].softmax(1), after.softmax(1)
        expected += 0 if name == "colour" else (p * (p / q).log()).sum(1)
    torch.testing.assert_close(both(x, base) - alone(x, base), 2 * expected, atol=1e-5, rtol=1e-3)


def test_attributes_are_questions_too():
    model, x = load(face_runs(16)[1], device="cpu"), torch.rand(3, 3, 16, 16)
    odds = model.classify(x).logits[:, model.classifier.questions.index("Smiling")]
    for value in (True, False):
        found = log_probability(model, model.classify(x).logits, "Smiling", value)
        torch.testing.assert_close(found, F.logsigmoid(odds if value else -odds))
        assert torch.equal(shows(model, model.classify(x).logits, "Smiling", value), (odds > 0) == value)
    assert find_answer(model, "Smiling", 1) == find_answer(model, "Smiling", True) == 1


@pytest.mark.parametrize(("settings", "shape", "got"), [
    ({"run": None, "question": "colour", "target": "blue"}, (3, 16, 16), "without the judge"),
    ({}, (3, 16, 16), "wants nothing"), ({"question": "colour", "target": "blue"}, (3, 32, 32), "trained on"),
    ({"question": "colour", "target": "beige"}, (3, 16, 16), "colour is beige"),
    ({"question": "colour", "target": "red", "source": "beige"}, (3, 16, 16), "colour is beige"),
    ({"question": "taste", "target": "sweet"}, (3, 16, 16), "about taste"),
    ({"run": "base", "question": "colour", "target": "blue"}, (3, 16, 16), "as a judge of edits")])
def test_judges_that_cannot_answer(settings, shape, got):
    run = {"base": text_base(), None: None}[settings["run"]] if "run" in settings else scene_judge()
    with pytest.raises(UserError, match=got):
        Answers(**{**settings, "run": run}).check_shape(shape)


def test_the_time_of_the_edit():
    times, distances = [0.2, 0.4, 0.6, 0.8], [0.0, 0.1, 0.4, 0.9]
    assert find_time(times, distances, 0.1) == 0.4
    assert find_time(times[::-1], distances[::-1], 0.2) == 0.6
    with pytest.raises(UserError, match=r"none above 0\.9"):
        find_time(times, distances, 1.0)


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A run that has learned an edit for three steps."""
    return train(tmp_path_factory.mktemp("asyrp"), *small("asyrp_scenes"), *FEW, "run.name=edited", "optimizer.lr=0.05",
                 "callbacks.pictures.count=0").folder


def test_a_run_keeps_its_base(edited):
    mine, theirs = (checkpoint.read_latest(Path(folder) / "checkpoints") for folder in (edited, text_base()))
    assert all(name.startswith("net.shift.") for name in mine["raw"])
    for name, value in theirs["ema"].items():
        if name.startswith("net."):
            assert torch.equal(mine["frozen"][name.replace("net.", "net.base.", 1)], value)


def read_colour(judge, x):
    """What a judge says of the first image."""
    logits = judge.classify(x[:1].clamp(-1, 1)).logits
    return next(colour for colour in list_questions(judge)["colour"] if shows(judge, logits, "colour", colour))


def test_the_mean_shift_of_one_image_is_its_own(edited):
    model, judge, x = load(edited, device="cpu"), load(scene_judge(), device="cpu"), torch.rand(1, 3, 16, 16)
    overrides = ["sampler.num_steps=4", "prior=inverted", "prior.num_steps=4"]
    plain = model.sample([0], recipe=model.recipe([*overrides, "guidance.asyrp.strength=0"]), images=x)
    numbers, pictures = measure_edits(model, judge, x, "colour", read_colour(judge, plain), "blue", overrides)
    assert torch.equal(pictures[1], plain)
    assert torch.equal(pictures[4], pictures[5])
    assert not torch.equal(pictures[4], pictures[1])
    assert numbers["mean shift / own"] == 1
    assert {"flipped", "monotone", "p(target), strength -1"} <= set(numbers)


def test_shifts_are_watched_and_replaced():
    net, x, t = shifted(), images(), torch.full((3,), 0.5)
    ctx = ask_shift(encoder()({"label": torch.arange(3)}), 1.0, x)
    with watch_shifts(net) as made:
        net(x, t, ctx)
    assert [shift.shape for shift in made] == [(16, 4, 4)]
    with replace_shifts(net, [torch.zeros_like(made[0])]):
        assert torch.equal(net(x, t, ctx), net.base(x, t, ctx))
    assert not net.shift._forward_hooks
    with pytest.raises(UserError, match="learned no shift"), watch_shifts(network()):
        pass


def test_distances_rise_with_the_noise():
    """Of noisy images; what a network believes that has learned nothing is of no order."""
    model, judge = load(text_base(), device="cpu"), load(scene_judge(), device="cpu")
    found = measure_distances(model, judge, torch.rand(2, 3, 16, 16) * 2 - 1, 4)
    assert found.times == [0.25, 0.5, 0.75, 1.0]
    assert all(0 <= distance <= 4 for distance in (*found.noisy, *found.estimates))


def test_the_script(edited, tmp_path):
    few = ["count=2", "num_steps=2", "device=cpu", "edited=0", "boosted=0"]
    said = done("scripts/asyrp.py", f"run={text_base()}", f"judge={scene_judge()}", *few)
    assert "objective.t_edit=0.5" in said
    judge, config = load(scene_judge(), device="cpu"), load(edited, device="cpu").config
    colour = read_colour(judge, to_float(build_data(config, {}, ["diffusion"]).split("test").images[:1]))
    said = done("scripts/asyrp.py", f"run={edited}", f"judge={scene_judge()}", *few, f"source={colour}",
                f"picture={tmp_path / 'edits.png'}", 'sampling=["guidance.asyrp.t_edit=0.5"]')
    assert "flipped" in said
    assert (tmp_path / "edits.png").is_file()
    assert "all images" in done("scripts/asyrp.py", f"run={edited}", f"judge={scene_judge()}", *few, code=2)
