"""Classifiers are training runs: what they minimise, what they say, and what is refused."""

import copy
import csv

import pytest
import torch
from helpers import CLASSIFIER, DIGITS, train
from networks import encoder

import degradations
from configs import UserError, build, compose
from configs.values import to_plain
from degradations.randomness import BatchStream
from diffusion import commands, load
from diffusion.data.pixels import to_float
from diffusion.model import Model
from diffusion.objectives.classification import Classification, NetworkClassifier
from diffusion.objectives.times import CleanTimes, UniformTimes
from diffusion.runs import checkpoint
from diffusion.runs.defaults import add_run_defaults
from diffusion.training.fit import fill_signals
from models.classifier import Classifier
from models.conditioning import ConditionEncoder

pytestmark = pytest.mark.commands

LABELS = torch.tensor([0, 2, 1])
NONE = ConditionEncoder({}, 32)


def stream(n=3):
    return BatchStream(1, 0, slice(0, n), n)


class Stub:
    """Logits that are there already."""

    def __init__(self, logits=None):
        self.logits = logits

    def __call__(self, x, t, ctx, attn=None):
        self.x, self.t, self.ctx = x, t, ctx
        return self.logits if self.logits is not None else x.new_zeros(len(x), 3)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_the_cross_entropy_of_each_image(smoothing):
    """``-sum_k q_k log p_k`` with ``q = (1 - smoothing) [k = label] + smoothing / K``, in plain arithmetic."""
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [-1.0, 4.0, 0.5]])
    classifier = NetworkClassifier(Stub(logits))
    losses = Classification(CleanTimes(), smoothing)(classifier, NONE, degradations.build("gaussian"),
                                                     torch.zeros(3, 1, 2, 2), {"label": LABELS}, stream())
    p = logits.double().exp() / logits.double().exp().sum(1, keepdim=True)
    for row in range(3):
        q = [(1 - smoothing) * (k == LABELS[row]) + smoothing / 3 for k in range(3)]
        expected = -sum(float(q[k]) * p[row, k].log().item() for k in range(3))
        assert losses.values[row].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("degradation", degradations.available())
def test_at_time_zero_the_images_are_untouched_bit_for_bit(degradation):
    stub, x0 = Stub(), torch.randn(3, 1, 8, 8)
    d = degradations.build(degradation)
    losses = Classification(CleanTimes())(NetworkClassifier(stub), NONE, d, x0, {"label": LABELS}, stream())
    assert torch.equal(stub.x, x0)
    assert not stub.t.any()
    assert not losses.t.any()
    assert stub.ctx.emb is None


@pytest.mark.parametrize("degradation", degradations.available())
def test_at_other_times_it_sees_what_is_left(degradation):
    stub, d, x0 = Stub(), degradations.build(degradation), torch.randn(3, 1, 8, 8)
    losses = Classification(UniformTimes())(NetworkClassifier(stub), NONE, d, x0, {"label": LABELS}, stream())
    assert torch.equal(stub.t, UniformTimes()(3, d, stream()))
    assert torch.equal(stub.x, d.forward(x0, stub.t, d.draw(x0.shape, stream())))
    assert torch.equal(losses.t, stub.t)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_one_evaluation_gives_logits_and_features(precision):
    """Float32 whatever the network computes in; the same as its call; with a gradient for those who guide."""
    net, calls = Classifier(1, 3, base=8, emb_dim=32), []
    classifier = NetworkClassifier(net, precision)
    x, t = torch.randn(4, 1, 8, 8, requires_grad=True), torch.rand(4)
    net.entry.register_forward_hook(lambda module, inputs, out: calls.append(out.dtype))
    logits, features = classifier(x, t)
    assert calls == [torch.float32 if precision == "32" else torch.bfloat16]
    assert logits.dtype == features.dtype == torch.float32
    assert torch.equal(logits, classifier.output(x, t, NONE.null(4)))
    torch.testing.assert_close(net.head(features), logits, atol=0.02 * (precision != "32") + 1e-6, rtol=0)
    logits.log_softmax(1)[:, 1].sum().backward()
    assert x.grad is not None
    assert x.grad.flatten(1).any(dim=1).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A classifier of digits that has learned to read, in seconds."""
    return train(tmp_path_factory.mktemp("runs"), "experiment=classifier_digits", "model.base=16", "model.emb_dim=32",
                 "max_steps=80", "callbacks.accuracy.every=40", "callbacks.checkpoint.every=40", "run.name=first",
                 "precision=32", "trainer.threads=1", "trainer.accelerator=cpu", experiment="classifier_digits")


def table(run) -> dict[int, float]:
    return {int(row["step"]): float(row["accuracy"]) for row in csv.DictReader((run.folder / "accuracy.csv").open())}


@pytest.fixture(scope="module")
def digits():
    held_out = build("data", "digits").split("test")
    return to_float(held_out.images), held_out.labels


def test_it_learns_to_read_and_the_file_says_so(run, digits):
    images, labels = digits
    model = load(run.folder, device="cpu")
    share = (model.classify(images).logits.argmax(1) == labels).double().mean().item()
    assert share > 0.95
    assert table(run)[80] == pytest.approx(share)
    assert list(table(run)) == [40, 80]
    assert not run.pictures.exists()


def test_the_answers_are_those_of_the_network_at_time_zero(run, digits):
    images, _ = digits
    model = load(run.folder, device="cpu")
    logits, features = model.classify(images[:20])
    net = model.weights.net
    torch.testing.assert_close(features, net.features(images[:20], torch.zeros(20)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, net(images[:20], torch.zeros(20)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.classify(images[:20], batch=7).features, features, atol=1e-5, rtol=1e-5)
    assert model.config["model"]["classes"] == 10
    assert not model.readers()
    assert model.use(NetworkClassifier) is model.evaluator


def test_a_classifier_makes_no_images(run):
    model = load(run.folder, device="cpu")
    for ask in (lambda: model.sample(range(2)), lambda: model.trajectory([0]), lambda: model.restorer,
                lambda: commands.sample(compose("sample", add_run_defaults([f"run={run.folder}"])))):
        with pytest.raises(UserError, match="can classify images") as error:
            ask()
        assert "experiment=ddpm_digits" in error.value.fix
    assert not (run.folder / "samples").exists()


def test_what_makes_images_is_no_classifier(hot):
    model = load(hot.folder, device="cpu")
    with pytest.raises(UserError, match="experiment=classifier_digits"):
        model.classify(torch.zeros(1, 1, 16, 16))


def test_a_complete_run_says_nothing_of_samples(run, caplog):
    caplog.set_level("INFO")
    train(run.folder.parents[1], *CLASSIFIER, "model.base=16", "batch=128", "max_steps=80", "run.name=first",
          "optimizer.warmup=25", "callbacks.checkpoint.every=40", experiment="classifier_digits")
    assert "complete" in caplog.text
    assert "sample.py" not in caplog.text


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    settings = [*CLASSIFIER, "max_steps=6", "accumulate=2", "model.dropout=0.2", "callbacks.accuracy.every=2"]
    whole = train(tmp_path / "a", *settings)
    part = train(tmp_path / "b", *settings, "callbacks.checkpoint.every=3")
    newest = checkpoint.list_checkpoints(part.checkpoints)[6]
    newest.unlink()
    assert list(table(part)) == [2, 4, 6]
    train(tmp_path / "b", *settings)
    mine, theirs = (checkpoint.read_latest(run.checkpoints) for run in (whole, part))
    assert mine is not None
    assert theirs is not None
    for kind in ("raw", "ema"):
        assert mine[kind].keys() == theirs[kind].keys()
        for name, value in mine[kind].items():
            assert torch.equal(value, theirs[kind][name]), name
    assert table(whole) == table(part)
    assert list(table(part)) == [2, 4, 6], "no row twice"


def test_measuring_changes_nothing(tmp_path):
    """The averaged weights come and go, and the training goes on as if it had not been asked."""
    asked, left = (checkpoint.read_latest(train(tmp_path / name, *CLASSIFIER, "model.dropout=0.2", "max_steps=4",
                                           f"callbacks.accuracy.every={every}").checkpoints)
                   for name, every in (("a", 1), ("b", "null")))
    assert asked is not None
    assert left is not None
    for kind in ("raw", "ema"):
        assert all(torch.equal(value, left[kind][name]) for name, value in asked[kind].items())


@pytest.mark.parametrize("overrides", [["degradation=gaussian"], ["degradation=blur"],
                                       ["degradation=blur", "objective/times=levels"]], ids=" ".join)
def test_the_noisy_classifier_is_the_same_objective_at_other_times(overrides, tmp_path):
    """For any degradation, and whatever the prior: it samples nothing."""
    run = train(tmp_path, *CLASSIFIER, "objective/times=uniform", *overrides)
    model = load(run.folder, device="cpu")
    x, t = torch.randn(3, 1, 16, 16, requires_grad=True), torch.tensor([0.1, 0.5, 1.0])
    logits, features = model.classifier(x, t)
    assert (logits.shape, features.shape) == ((3, 10), (3, 32))
    rows = list(csv.DictReader(run.metrics.open()))
    assert any(row["loss_t0.8-1.0"] for row in rows)
    logits.sum().backward()
    assert x.grad is not None
    assert x.grad.any()


def test_augmentation_is_not_told(tmp_path):
    run = train(tmp_path, *CLASSIFIER, "augment=geometric", "data.flip=true")
    found = checkpoint.read_latest(run.checkpoints)
    assert found is not None
    assert not [name for name in found["raw"] if name.startswith("encoder.")]


def test_pictures_among_the_callbacks_draw_nothing(tmp_path):
    run = train(tmp_path, *CLASSIFIER, "callbacks=default")
    assert not run.pictures.exists()


@pytest.mark.parametrize(("settings", "words", "fix"), [
    ([*CLASSIFIER, "condition=label"], "a classifier with a condition", "condition=none"),
    ([*CLASSIFIER, "model.classes=9"], "9 for images of 10 classes", "model.classes=10"),
    ([*CLASSIFIER, "objective=ddpm"], r"answers \(1, 10\)", "objective=classification"),
    ([*CLASSIFIER, "objective.smoothing=1.0"], "smoothing=1", "objective.smoothing=0.1"),
    ([*CLASSIFIER, "objective/times=log_normal", "degradation=blur"], "log_normal", "objective/times=uniform"),
    ([*DIGITS, "objective=classification", "condition=none"], "a classification by UNet", "model=classifier"),
    ([*DIGITS, "callbacks=classifier"], "one that can classify", "experiment=classifier_digits")])
def test_what_does_not_fit_is_refused_before_any_step(settings, words, fix, tmp_path):
    with pytest.raises(UserError, match=words) as error:
        train(tmp_path, *settings)
    assert fix in error.value.fix
    assert not list(tmp_path.rglob("*.pt"))


def test_the_number_of_classes_is_that_of_the_data():
    config = to_plain(compose("train", CLASSIFIER))
    assert config["model"]["classes"] is None
    assert Model(fill_signals(copy.deepcopy(config), {"label": {"num_classes": 7}})).weights.net.head.out_features == 7
    with pytest.raises(UserError, match="images without classes"):
        fill_signals(copy.deepcopy(config), {})


def test_a_condition_that_has_no_signal_here_is_nothing_to_a_restorer():
    """The label goes to every objective; an encoder without signals makes nothing of it."""
    objective = build("objective", "ddpm")
    d, x0 = degradations.build("gaussian"), torch.randn(3, 1, 4, 4)

    def network(x, t, ctx, attn=None):
        return x if ctx.emb is None else x + ctx.emb.sum(1).view(-1, 1, 1, 1)

    restorer = objective.use(network, d, "32")
    told, not_told = (objective(restorer, NONE, d, x0, condition, stream()).values
                      for condition in ({"label": LABELS}, {}))
    assert torch.equal(told, not_told)
    assert not torch.equal(objective(restorer, encoder(), d, x0, {"label": LABELS}, stream()).values, told)
