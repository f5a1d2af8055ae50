"""Classifiers of attributes: the loss, what is right, evaluations of them and by them."""

import copy
import csv

import numpy as np
import pytest
import torch
from faces import draw_values, save_photos, write_list
from helpers import train
from test_classification import NONE, Stub, stream

import degradations
from configs import UserError, compose
from configs.values import to_plain
from diffusion import commands, load
from diffusion.data import CelebA
from diffusion.data.files.attributes import ATTRIBUTES, LIST
from diffusion.data.pixels import to_float, to_uint8
from diffusion.evaluation.attributes import MAJORITY
from diffusion.evaluation.bench import EvaluationContext
from diffusion.evaluation.losses import choose_evenly
from diffusion.metrics.intervals import balanced_share, share
from diffusion.objectives.attributes import AttributeClassification, AttributeClassifier
from diffusion.objectives.classification import NetworkClassifier
from diffusion.objectives.times import CleanTimes
from diffusion.runs import checkpoint
from diffusion.runs.defaults import add_run_defaults
from diffusion.training.fit import fill_signals
from models.attributes import AttributeSignal

pytestmark = pytest.mark.commands

VALUES = draw_values()
CPU = ["trainer.threads=1", "trainer.accelerator=cpu", "data.size=8", "model.base=8", "model.emb_dim=32"]
SMALL = ["experiment=classifier_celeba64", *CPU, "model.multipliers=[1,2]"]
SAMPLES = ["experiment=ddpm_celeba64", "debug=fast", *CPU, "model=nano", "callbacks.pictures.count=0"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = save_photos(tmp_path_factory.mktemp("celeba") / "faces", VALUES)
    write_list(root.parent / LIST, VALUES)
    return root


@pytest.fixture(scope="module")
def judge(photos, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs"), *SMALL, f"data.root={photos}", "max_steps=40", "batch=16",
                 "optimizer.warmup=5", "optimizer.lr=0.01", "ema=0.9", "callbacks.accuracy.every=20", "run.name=judge",
                 experiment="classifier_celeba64")


@pytest.fixture(scope="module")
def conditional(photos, judge):
    """A model that is told the attributes, beside the judge; mirrored images keep theirs."""
    return train(judge.root, *SAMPLES, f"data.root={photos}", "data.signals=[attributes]", "condition=attributes",
                 "run.name=told", experiment="ddpm_celeba64")


def evaluate(run, *overrides):
    return commands.evaluate(compose("evaluate", add_run_defaults(
        [f"run={run.folder}", *overrides, "device=cpu", "sampler.num_steps=2", "metrics=quick", "count=12"])))


def values(result, images):
    return {name: number["value"] for name, number in result["rows"][images].items()}


def held_out(photos):
    images = CelebA(photos, size=8, signals=["attributes"]).split("test")
    return to_float(images.images), images.signals["attributes"].numpy() > 0


class TestCriterion:
    logits = torch.tensor([[3.0, -1.0, 0.2], [0.0, -40.0, 60.0]])
    truth = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])

    def test_the_loss_is_the_mean_binary_cross_entropy(self):
        losses = AttributeClassification(CleanTimes())(
            AttributeClassifier(Stub(self.logits)), NONE, degradations.build("gaussian"), torch.zeros(2, 3, 2, 2),
            {"attributes": self.truth}, stream(2))
        s = self.logits.double().numpy() * (2 * self.truth.numpy() - 1)
        assert losses.values.numpy() == pytest.approx(np.log1p(np.exp(-s)).mean(1), rel=1e-5)
        assert not losses.t.any()

    def test_what_is_right_is_the_share_of_the_signs(self):
        assert AttributeClassifier(Stub()).grade_logits(self.logits, self.truth).tolist() == \
            pytest.approx([2 / 3, 2 / 3])
        assert NetworkClassifier(Stub()).grade_logits(self.logits, torch.tensor([0, 1])).tolist() == [1, 0]


class TestTraining:
    def test_it_learns_what_can_be_seen(self, judge, photos):
        images, truth = held_out(photos)
        model = load(judge.folder, device="cpu")
        right = (model.classify(images).logits.numpy() > 0) == truth
        assert right[:, :2].all(), "bright halves"
        rows = list(csv.DictReader((judge.folder / "accuracy.csv").open()))
        assert [row["step"] for row in rows] == ["20", "40"]
        assert float(rows[-1]["accuracy"]) == pytest.approx(right.mean())

    def test_the_run_knows_what_it_predicts(self, judge):
        model = load(judge.folder, device="cpu")
        assert model.config["model"]["classes"] == 40
        assert model.use(AttributeClassifier).words == list(ATTRIBUTES)
        assert isinstance(model.classifier, NetworkClassifier)

    def test_stopped_and_resumed_equals_uninterrupted(self, photos, tmp_path):
        settings = [*SMALL, "debug=fast", f"data.root={photos}", "max_steps=4", "model.dropout=0.2",
                    "callbacks.accuracy.every=1", "run.name=one"]
        whole = train(tmp_path / "a", *settings)
        part = train(tmp_path / "b", *settings)
        checkpoint.list_checkpoints(part.checkpoints)[4].unlink()
        train(tmp_path / "b", *settings)
        mine, theirs = (checkpoint.read_latest(run.checkpoints) for run in (whole, part))
        assert mine is not None
        assert theirs is not None
        for kind in ("raw", "ema"):
            assert all(torch.equal(value, theirs[kind][name]) for name, value in mine[kind].items())
        assert (whole.folder / "accuracy.csv").read_text() == (part.folder / "accuracy.csv").read_text()

    @pytest.mark.parametrize(("settings", "words", "fix"), [
        (["data.signals=[]"], "images without attributes", "data.signals=[attributes]"),
        (["model.classes=39"], "39 for images of 40 attributes", "model.classes=40"),
        (["model.classes=41"], "41 logits for 40 attributes", "model.classes=40"),
        (["objective=classification"], "images without classes", "a folder of images for each class"),
        (["condition=attributes"], "a classifier with a condition", "condition=none")])
    def test_what_does_not_fit_is_refused_before_any_step(self, settings, words, fix, photos, tmp_path):
        with pytest.raises(UserError, match=words) as error:
            train(tmp_path, *SMALL, f"data.root={photos}", *settings)
        assert fix in error.value.fix
        assert not list(tmp_path.rglob("*.pt"))

    def test_the_names_are_those_of_the_data(self):
        config = to_plain(compose("train", [*SMALL, "data.root=x"]))
        filled = fill_signals(copy.deepcopy(config), {"attributes": {"words": ["a", "b"]}})
        assert (filled["model"]["classes"], filled["objective"]["words"]) == (2, ["a", "b"])


class TestEvaluation:
    def test_accuracies(self, judge, photos):
        result = evaluate(judge)
        images, truth = held_out(photos)
        logits = load(judge.folder, device="cpu").classify(images).logits.numpy()
        right, rows = (logits > 0) == truth, values(result, "test split")
        balanced = {word: (right[truth[:, a], a].mean() + right[~truth[:, a], a].mean()) / 2
                    for a, word in enumerate(ATTRIBUTES) if 0 < truth[:, a].sum() < len(truth)}
        assert rows["accuracy"] == pytest.approx(right.mean())
        assert rows["balanced accuracy"] == pytest.approx(np.mean(list(balanced.values())))
        for a, word in enumerate(ATTRIBUTES):
            assert rows[f"accuracy {word}"] == pytest.approx(right[:, a].mean())
            assert rows.get(f"balanced accuracy {word}") == pytest.approx(balanced.get(word))
        assert result["skipped"]["balanced accuracy Young"] == "images with and without it"
        train_split = CelebA(photos, size=8, signals=["attributes"]).split("train").signals["attributes"].numpy()
        base = values(result, MAJORITY)
        assert base["accuracy"] == pytest.approx(((train_split.mean(0) > 0.5) == truth).mean())
        assert all(value == 0.5 for name, value in base.items() if name.startswith("balanced accuracy "))

    def test_other_attributes_are_refused(self, judge, monkeypatch):
        monkeypatch.setattr(CelebA, "described", {"attributes": {"words": ["a"]}})
        with pytest.raises(UserError, match="other attributes"):
            evaluate(judge)

    def test_samples_agree_with_what_they_were_asked_for(self, conditional, judge, photos):
        """The judge is found by the data, as one of classes is."""
        result = evaluate(conditional, "attributes=[Smiling,Young]")
        model = load(conditional.folder, device="cpu")
        samples = model.sample(range(12), attributes=["Smiling", "Young"], recipe=model.recipe(["sampler.num_steps=2"]))
        asked = np.isin(ATTRIBUTES, ["Smiling", "Young"])
        looks = load(judge.folder, device="cpu")
        seen = looks.classify(to_float(to_uint8(samples))).logits.numpy() > 0
        assert values(result, "samples")["agreement"] == pytest.approx((seen == asked).mean())
        assert "fd/classifier@12" in result["rows"]["samples"]
        real = choose_evenly(CelebA(photos, size=8, signals=["attributes"]).split("train"), 12)
        right = (looks.classify(to_float(real.images)).logits > 0) == (real.signals["attributes"] > 0)
        assert values(result, "training images")["agreement"] == pytest.approx(right.double().mean().item())
        assert "step 40" in result["protocol"]["judge"]["identity"]

    def test_without_these_attributes_it_has_features_alone(self, judge, photos, tmp_path):
        run = train(tmp_path, *SAMPLES, f"data.root={photos}", experiment="ddpm_celeba64")
        asked = [f"judge={judge.folder}", "+metrics.is._target_=diffusion.metrics.inception_score.InceptionScore"]
        result = evaluate(run, *asked)
        assert "fd/classifier@12" in result["rows"]["samples"]
        assert result["skipped"]["agreement"] == "classes of the samples"
        assert result["skipped"]["is"] == "an extractor that knows classes"

    def test_it_guides_to_no_class(self, conditional, judge):
        with pytest.raises(UserError, match="a classifier of attributes, as a guide to a class"):
            commands.sample(compose("sample", add_run_defaults(
                [f"run={conditional.folder}", "guidance=classifier", "device=cpu", "samples=0",
                 f"guidance.classifier.classifier.run={judge.folder}"])))

    def test_a_class_of_people_is_none_of_attributes(self, judge, photos):
        found = EvaluationContext(compose("evaluate", add_run_defaults([f"run={judge.folder}", "device=cpu"])))
        assert found.extractor is found.judge
        assert found.judge is not None
        assert found.judge.words == list(ATTRIBUTES)


class TestBalancedShare:
    hits = torch.tensor([True, True, False, True, False, False, True, True])
    positive = torch.tensor([True, True, True, False, False, False, False, False])

    def test_the_interval_combines_those_of_both_kinds(self):
        number = balanced_share(self.hits, self.positive)
        one, other = share(self.hits[:3]), share(self.hits[3:])
        assert number.value == pytest.approx((2 / 3 + 3 / 5) / 2)
        assert (2 * (number.value - number.low)) ** 2 == \
            pytest.approx((one.value - one.low) ** 2 + (other.value - other.low) ** 2)
        assert (2 * (number.high - number.value)) ** 2 == \
            pytest.approx((one.value - one.high) ** 2 + (other.value - other.high) ** 2)

    def test_the_pseudo_values_have_its_mean_and_variance(self):
        number = balanced_share(self.hits, self.positive)
        assert number.pseudo_values.mean().item() == pytest.approx(number.value)
        variance = (2 / 3 * 1 / 3 / 3 + 3 / 5 * 2 / 5 / 5) / 4
        assert number.pseudo_values.var(correction=0).item() / 8 == pytest.approx(variance)

    def test_it_is_never_certain(self):
        number = balanced_share(torch.ones(8, dtype=torch.bool), self.positive)
        assert number.value == number.high == 1
        assert number.low < 0.8


class TestSignal:
    signal = AttributeSignal(["Smiling", "Young", "Male"], 8)

    def test_names_are_what_is_true(self):
        raw = self.signal.read([["Young", "Smiling"], "Male", []])
        assert raw.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
        assert self.signal.write(raw) == [["Smiling", "Young"], ["Male"], []]
        assert torch.equal(self.signal.read(self.signal.write(raw)), raw)
        assert self.signal.caption(["Smiling", "Young"]) == "Smiling, Young"
        assert self.signal.is_single(["Young"])
        assert not self.signal.is_single([["Young"], []])

    @pytest.mark.parametrize("value", [["Yuong"], "Yuong", 3, [3]])
    def test_others_are_refused(self, value):
        with pytest.raises(UserError, match=r"=(Yuong|3)") as error:
            self.signal.read([value])
        assert "Smiling, Young, Male" in error.value.wanted

    def test_a_mirrored_image_has_the_same(self):
        raw = torch.rand(3, 3)
        assert torch.equal(self.signal.mirror(raw, 8), raw)
