"""``evaluate.py`` and the restorations of ``sample.py``, against the same numbers by hand."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import COLD, DIGITS, train
from omegaconf import OmegaConf
from PIL import Image

from configs import UserError, build, compose
from degradations.base import State
from degradations.shapes import flatten_rows
from diffusion import commands, load
from diffusion.data.pixels import to_float, to_uint8
from diffusion.data.sets.digits import Digits
from diffusion.evaluation import bench, subjects
from diffusion.evaluation.losses import spread_indices
from diffusion.evaluation.report import Report, compare, folder_name
from diffusion.evaluation.subjects import state_sampling
from diffusion.metrics.extractors.classifier import ClassifierExtractor
from diffusion.metrics.frechet import frechet
from diffusion.metrics.intervals import MetricValue
from diffusion.metrics.pairs import SSIM, mse
from diffusion.pictures import save_each
from diffusion.runs.defaults import add_run_defaults
from diffusion.runs.run import Run
from diffusion.sampling.command import require_finite
from diffusion.sampling.job import restore

pytestmark = pytest.mark.commands

COUNT = 40
QUICK = ["sampler.num_steps=3"]


@pytest.fixture(scope="module")
def data():
    return build("data", "digits")


@pytest.fixture(scope="module")
def images(data):
    return to_float(data.split("test").images[:COUNT])


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A classifier that has learned most of the digits."""
    return train(tmp_path_factory.mktemp("judges"), "experiment=classifier_digits", "run.name=judge", "max_steps=60",
                 "optimizer.warmup=10", "callbacks.accuracy.every=60", "trainer.threads=1", "trainer.accelerator=cpu",
                 experiment="classifier_digits")


def config(*overrides):
    return compose("evaluate", add_run_defaults([*overrides, f"count={COUNT}", "batch=9", "device=cpu"]))


def evaluate(run, *overrides):
    result = commands.evaluate(config(f"run={run.folder}", *QUICK, *overrides))
    written = json.loads(run.evaluations[-1].read_text())
    assert written == json.loads(json.dumps(result)), "what is printed is what is kept"
    return result


def values(result, images):
    return {name: number["value"] for name, number in result["rows"][images].items()}


@pytest.fixture
def seen(judge, data):
    """Features and logits by the judge, by hand."""
    model = load(judge.folder, device="cpu")
    return lambda images: model.classify(to_float(to_uint8(images)))


@pytest.mark.parametrize("rounding", ["uint8", "none"])
def test_restoration(cold, judge, data, seen, rounding):
    result = evaluate(cold, f"rounding={rounding}", f"judge={judge.folder}")
    held_out = data.split("test")
    chosen = spread_indices(296, COUNT)
    originals, signals = held_out.batch(chosen)
    images = to_float(originals)
    assert list(result["rows"]) == ["degraded", "direct", "cold1", "cold2"]
    model = load(cold.folder, device="cpu")
    x_T = model.degradation.forward(images, torch.ones(COUNT), State())
    expected = {"degraded": x_T, "direct": model.direct(x_T, 1.0, indices=range(COUNT))}
    for name in ("cold1", "cold2"):
        expected[name] = model.sample(range(COUNT), recipe=model.recipe([f"sampler={name}", *QUICK]), images=images)
    for name, restored in expected.items():
        rows, x = values(result, name), to_float(to_uint8(restored)) if rounding == "uint8" else restored
        difference = flatten_rows((x - images) / 2).double()
        assert rows["rmse"] == pytest.approx(difference.square().mean().sqrt().item(), rel=1e-3), name
        assert rows["rmse/image"] == pytest.approx(difference.square().mean(1).sqrt().mean().item(), rel=1e-3), name
        assert rows["psnr"] == pytest.approx(-10 * mse(x, images).log10().mean().item(), rel=1e-3), name
        assert rows["ssim"] == pytest.approx(SSIM()(x, images).mean().item(), rel=1e-3), name
        answer = seen(restored)
        distance = frechet(answer.features, seen(images).features)
        assert rows[f"fd/classifier@{COUNT}"] == pytest.approx(distance, rel=0.02, abs=0.01), name
        assert rows["agreement"] == (answer.logits.argmax(1) == signals["label"]).double().mean().item()
    assert len({values(result, name)["rmse"] for name in expected}) == 4
    assert "kid" not in " ".join(result["rows"]["direct"]), "biased for pairs"
    assert result["cost"]["cold2"]["evaluations/sample"] == 3


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_generation(hot, judge, data, seen, weights):
    result = evaluate(hot, f"weights={weights}", "seed=2", f"judge={judge.folder}")
    assert list(result["rows"]) == ["samples", "training images", "loss"]
    model = load(hot.folder, device="cpu", weights=weights)
    samples = seen(model.sample(range(COUNT), seed=2, recipe=model.recipe(QUICK)))
    name = f"fd/classifier@{COUNT}"
    held_out = data.split("test")
    reference = seen(to_float(held_out.images))
    rows, real = values(result, "samples"), values(result, "training images")
    assert rows["agreement"] == (samples.logits.argmax(1) == torch.arange(COUNT) % 10).double().mean().item()
    assert rows[name] == pytest.approx(frechet(samples.features, reference.features), rel=0.02)
    assert real["agreement"] >= 0.9
    assert real[name] < rows[name]
    assert real["precision/classifier"] > rows["precision/classifier"]
    for number in result["rows"]["samples"].values():
        assert number["low"] <= number["value"] <= number["high"]
    protocol = result["protocol"]
    assert protocol["count"] == COUNT
    assert protocol["seed"] == 2
    assert protocol["weights"] == weights
    assert protocol["sampler"].startswith("DDIM")
    assert protocol["reference"]["count"] == 296
    assert protocol["checkpoint"].startswith("step-00000012.")
    assert "step 60" in protocol["extractor"]["identity"]
    cost = result["cost"]["samples"]
    assert cost["evaluations/sample"] == 6, "three steps, each with and without the condition"
    assert cost["GFLOP/sample"] > 0
    assert (hot.evaluations[-1].parent / "nearest.png").is_file()


def test_what_was_measured_is_not_measured_again(hot, judge, monkeypatch):
    overrides = [f"judge={judge.folder}", "seed=5", "metrics=quick"]
    first = evaluate(hot, *overrides)
    with monkeypatch.context() as patch:
        patch.setattr(subjects.SamplesSubject, "measure", lambda *_: pytest.fail("measured again"))
        assert evaluate(hot, *overrides) == first
        with pytest.raises(pytest.fail.Exception):
            evaluate(hot, *overrides, "metrics=all")
        with pytest.raises(pytest.fail.Exception):
            evaluate(hot, *overrides, "overwrite=true")
    (hot.evaluations[-1].parent / "parts.pt").write_bytes(b"damaged")
    assert evaluate(hot, *overrides)["rows"] == first["rows"], "measured anew, to the same numbers"


class TestFolders:
    @pytest.fixture
    def samples(self, hot, judge):
        """The folder of samples that an evaluation has left, and its result."""
        result = evaluate(hot, f"judge={judge.folder}")
        folder = max((hot.folder / "samples").iterdir(), key=lambda path: path.stat().st_mtime)
        return folder, result

    def test_the_folder_of_a_run_has_the_numbers_of_the_run(self, samples, judge, hot):
        folder, result = samples
        again = commands.evaluate(config(f"images={folder}", f"judge={judge.folder}"))
        assert values(again, "images") == values(result, "samples")
        assert again["protocol"]["run"] == str(hot.folder), "known from the manifest"

    def test_two_folders_without_a_run(self, samples, tmp_path, monkeypatch, images):
        folder, _ = samples
        monkeypatch.chdir(tmp_path)
        save_each(images, tmp_path / "mine", [f"{i}.png" for i in range(COUNT)])
        result = commands.evaluate(config(f"images={tmp_path}/mine", f"reference={folder}"))
        assert list(result["rows"]) == ["images"]
        assert f"fd/random@{COUNT}" in result["rows"]["images"]
        assert "agreement" in result["skipped"]
        assert (tmp_path / "runs" / "evaluations").is_dir()
        same = commands.evaluate(config(f"images={folder}", f"reference={folder}", "judge=none"))
        rows = values(same, "images")
        assert rows[f"fd/random@{COUNT}"] == pytest.approx(0, abs=1e-6)
        assert rows["precision/random"] == rows["recall/random"] == rows["coverage/random"] == 1

    def test_copies_of_the_training_are_seen(self, hot, data, tmp_path):
        train_images = to_float(data.split("train").images[:COUNT])
        save_each(train_images, tmp_path / "copies", [f"{i}.png" for i in range(COUNT)])
        result = commands.evaluate(config(f"images={tmp_path}/copies", f"run={hot.folder}", "judge=none"))
        rows = values(result, "images")
        assert rows["copied/random"] == 1
        assert rows["train distance/random"] == pytest.approx(0, abs=1e-6)
        fresh = to_float(data.split("test").images[:COUNT])
        save_each(fresh, tmp_path / "fresh", [f"{i}.png" for i in range(COUNT)])
        found = commands.evaluate(config(f"images={tmp_path}/fresh", f"run={hot.folder}", "judge=none"))
        rows = values(found, "images")
        assert rows["copied/random"] < 0.1
        assert rows["train distance/random"] == pytest.approx(1, abs=0.25)

    def test_pairs(self, images, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        names = [f"{i:03d}.png" for i in range(COUNT)]
        worse = (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
        save_each(images, tmp_path / "originals", names)
        save_each(worse, tmp_path / "restored", names)
        asked = [f"images={tmp_path}/restored", f"reference={tmp_path}/originals", "pairs=true"]
        rows = values(commands.evaluate(config(*asked)), "images")
        saved = to_float(to_uint8(worse))
        assert rows["rmse"] == pytest.approx(mse(saved, to_float(to_uint8(images))).mean().sqrt().item(), rel=1e-6)
        (tmp_path / "restored" / "007.png").unlink()
        with pytest.raises(UserError, match=r"007\.png"):
            commands.evaluate(config(*asked))


class TestAgainst:
    def test_two_runs(self, hot, judge, tmp_path):
        other = train(tmp_path, *DIGITS, "run.name=other", "max_steps=2", "callbacks.pictures.count=0",
                      experiment="ddpm_digits")
        mine, theirs = (config(f"run={run.folder}", f"judge={judge.folder}", *QUICK) for run in (hot, other))
        result = commands.evaluate(mine, theirs)
        rows = result["comparison"]["samples"]
        first, second = (values(commands.evaluate(each), "samples") for each in (mine, theirs))
        for name, row in rows.items():
            assert (row["a"], row["b"]) == (first[name], second[name])
            assert row["difference"] == pytest.approx(first[name] - second[name])
            assert row["paired"]
            assert row["exceeds"] == (row["low"] > 0 or row["high"] < 0)
        assert rows.keys() == first.keys()
        [written] = hot.folder.glob("evaluations/*/comparison.json")
        assert json.loads(written.read_text())["rows"] == result["comparison"]

    def test_a_run_and_itself(self, cold, judge):
        mine = config(f"run={cold.folder}", f"judge={judge.folder}", *QUICK)
        result = commands.evaluate(mine, mine)
        assert set(result["comparison"]) == {"degraded", "direct", "cold1", "cold2"}
        for rows in result["comparison"].values():
            assert not any(row["exceeds"] or row["difference"] for row in rows.values())

    def test_another_reference_is_refused(self, hot, judge):
        mine, theirs = (config(f"run={hot.folder}", f"judge={judge.folder}", f"split={split}", "metrics=quick", *QUICK)
                        for split in ("test", "train"))
        with pytest.raises(UserError, match=r"reference\.what: 'test split of Digits' and 'train split of Digits'"):
            commands.evaluate(mine, theirs)

    def test_samples_and_a_folder_are_not_paired(self, hot, judge, images, tmp_path):
        save_each(images, tmp_path, [f"{i}.png" for i in range(COUNT)])
        mine, theirs = (config(place, f"judge={judge.folder}", "metrics=quick", "~metrics.agreement", *QUICK)
                        for place in (f"run={hot.folder}", f"images={tmp_path}"))
        theirs.run = str(hot.folder)
        with pytest.raises(UserError, match="cannot be compared"):
            compare(Report({"what": "samples", "count": 3}, ["samples"]), Report({"what": "images", "count": 4}, []))
        row = commands.evaluate(mine, theirs)["comparison"]["samples"][f"fd/classifier@{COUNT}"]
        assert not row["paired"]
        assert row["difference"] > 0
        assert row["exceeds"], "a model of twelve steps and real digits"


def test_a_classifier_is_measured_by_its_accuracy(judge, data):
    result = commands.evaluate(config(f"run={judge.folder}"))
    held_out = data.split("test")
    answer = load(judge.folder, device="cpu").classify(to_float(held_out.images))
    right = (answer.logits.argmax(1) == held_out.labels).double().mean().item()
    assert values(result, "test split")["accuracy"] == right
    assert right > 0.9
    number = result["rows"]["test split"]["accuracy"]
    assert number["low"] < right < number["high"] <= 1


class TestWhoLooks:
    def test_a_classifier_of_the_same_images_is_found(self, hot, judge, tmp_path):
        for run, experiment in ((hot, "ddpm_digits"), (judge, "classifier_digits")):
            (tmp_path / experiment).mkdir()
            (tmp_path / experiment / "run").symlink_to(run.folder)
        found = bench.EvaluationContext(config(f"run={tmp_path}/ddpm_digits/run"))
        assert found.judge is not None
        assert found.extractor is found.judge
        assert not [*ClassifierExtractor.find_runs([tmp_path], Digits(size=8))]
        random = bench.EvaluationContext(config(f"run={tmp_path}/ddpm_digits/run", "extractor=random"))
        assert (random.extractor.name, random.judge.name) == ("random", "classifier")

    def test_without_one_it_is_random_features(self, hot, caplog):
        caplog.set_level("INFO")
        found = bench.EvaluationContext(config(f"run={hot.folder}"))
        assert found.extractor.name == "random"
        assert "experiment=classifier_digits" in caplog.text

    def test_numbers_are_called_by_the_literature_only_where_they_are_the_same(self, hot):
        found = bench.EvaluationContext(config(f"run={hot.folder}"))
        found.extractor = SimpleNamespace(name="inception", official={"fd": "FID"})
        assert found._named("fd", 10_000) == "FID@10k"
        assert found._named("fd", 2500) == "FID@2500"
        assert found._named("recall", 10_000) == "recall/inception"
        found.extractor = SimpleNamespace(name="inception-1a2b3c4d", official={})
        assert found._named("fd", 10_000) == "fd/inception-1a2b3c4d@10k"


class TestRefused:
    """In words, and before samples are drawn wherever that is possible."""

    @pytest.mark.parametrize(("overrides", "words"), [
        (["split=validation"], "test or train"),
        (["rounding=up"], "uint8 or none"),
        (["baseline=3"], "true or false"),
        (["pairs=true"], "two folders"),
        (["~metrics"], "at least one"),
        (["reference=/nowhere/at/all"], "nothing at /nowhere/at/all"),
        (["judge=/nowhere/at/all"], "no run in /nowhere/at/all"),
        (["extractor=classifier"], "extractor.run="),
        (["metrics.neighbors.k=0"], "at least one neighbour"),
        (["metrics.memorization.rare=2"], "a share"),
        (["metrics.fd._target_=diffusion.metrics.frechet.Moments"], "a Metric or PairMetric"),
    ])
    def test_settings(self, hot, overrides, words):
        with pytest.raises(UserError, match=words):
            commands.evaluate(config(f"run={hot.folder}", *overrides))

    def test_neither_run_nor_images(self):
        with pytest.raises(UserError, match="what is to be measured"):
            commands.evaluate(config())

    def test_no_run_and_no_reference(self, images, tmp_path):
        save_each(images, tmp_path, [f"{i}.png" for i in range(COUNT)])
        with pytest.raises(UserError, match="reference=FOLDER"):
            commands.evaluate(config(f"images={tmp_path}"))

    def test_a_judge_that_makes_images(self, hot, cold):
        with pytest.raises(UserError, match="which can restore images"):
            commands.evaluate(config(f"run={hot.folder}", f"judge={cold.folder}"))

    def test_a_judge_of_other_images(self, judge, tmp_path):
        small = train(tmp_path, *COLD, "data.size=8", "run.name=small", "callbacks.pictures.count=0")
        with pytest.raises(UserError, match=r"8 x 8 px, grey.*16 x 16 px, grey"):
            commands.evaluate(config(f"run={small.folder}", f"judge={judge.folder}", *QUICK))

    def test_too_few_samples(self, images, hot, tmp_path):
        save_each(images[:5], tmp_path, [f"{i}.png" for i in range(5)])
        with pytest.raises(UserError, match=r"5 images, too few for metrics\.neighbors"):
            commands.evaluate(config(f"images={tmp_path}", f"run={hot.folder}", "judge=none"))

    def test_images_of_another_size(self, hot, tmp_path):
        save_each(torch.zeros(COUNT, 1, 8, 8), tmp_path, [f"{i}.png" for i in range(COUNT)])
        with pytest.raises(UserError, match="8 x 8 px, grey, and a reference of 16 x 16 px, grey"):
            commands.evaluate(config(f"images={tmp_path}", f"run={hot.folder}", "judge=none"))

    def test_samplers_that_do_not_fit(self, cold):
        for samplers in ("ddim", "[ddim]", "[]"):
            with pytest.raises(UserError, match="cold1"):
                commands.evaluate(config(f"run={cold.folder}", f"samplers={samplers}"))

    def test_samples_that_are_no_numbers(self):
        images = torch.zeros(3, 1, 4, 4)
        require_finite(images, [{"index": i} for i in (4, 5, 6)])
        images[1, 0, 2, 2] = float("nan")
        with pytest.raises(UserError, match="sample 5 "):
            require_finite(images, [{"index": i} for i in (4, 5, 6)])


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
        commands.sample(compose("sample", add_run_defaults([f"run={hot.folder}", *overrides, "samples=[7,2,5]",
                                                         "device=cpu", f"out={tmp_path}"])))
        model, indices = load(hot.folder, device="cpu"), [7, 2, 5]
        labels = data.split("test").labels[indices].tolist()
        assert labels != indices, "the default would be another class"
        expected = to_uint8(model.sample(indices, label=labels, recipe=model.recipe(overrides), images=images[indices]))
        for i, image in zip(indices, expected):
            got = np.asarray(Image.open(tmp_path / f"{i:06d}.png")).astype(int)
            assert np.abs(got - image[0].numpy()).max() <= 1


@pytest.mark.parametrize(("n", "count"), [(10, 3), (7, 7), (5, 9), (1000, 1), (296, 200)])
def test_what_is_measured_is_spread_over_the_set(n, count):
    chosen = spread_indices(n, count)
    assert len(chosen) == min(n, count)
    assert chosen[0] == 0
    gaps = torch.diff(chosen, append=torch.tensor([n]))
    assert set(gaps.tolist()) <= {n // len(chosen), -(-n // len(chosen))}


@pytest.mark.skipif("THAW_DATA" not in os.environ, reason="THAW_DATA names a folder with the real data sets")
def test_the_papers_blurred_mnist():
    """RMSE 0.287 of the 10,000 test digits under all twenty kernels (Bansal et al. 2022, table 1)."""
    held_out = build("data", "mnist", root=os.environ["THAW_DATA"]).split("test")
    blur = build("degradation", "blur", levels=20, padding="circular", **{"kernels.size": 11, "kernels.std": 7.0})
    outcome = subjects.PairScores({"rmse": build("metrics", "quick")["rmse"]}, held_out)
    for rows in torch.arange(len(held_out)).split(1000):
        x0 = to_float(held_out.batch(rows)[0])
        outcome.add(blur.forward(x0, torch.ones(len(x0)), State()), rows)
    assert outcome.numbers()["rmse"].value == pytest.approx(0.287, abs=0.001)


def test_the_folder_that_evaluations_are_in_is_the_runs(cold):
    assert all(path.is_relative_to(cold.folder) for path in Run(cold.folder).evaluations)


def test_a_class_of_the_same_name_is_another_one():
    """The protocol has the composed config with the full names of the classes, not their last parts alone."""
    cfg = compose("evaluate", ["run=x"])
    stated = []
    for package in ("samplers", "guest"):
        node = OmegaConf.create({"_target_": f"{package}.ddim.DDIM", "num_steps": 5})
        stated.append(state_sampling(cfg, node))
    one, other = stated
    assert one["sampler"] == other["sampler"] == "DDIM (num_steps 5)"
    assert one != other
    assert folder_name({"what": "samples", "count": 1, **one}) != folder_name({"what": "samples", "count": 1, **other})


@pytest.mark.parametrize(("change", "paired"), [({}, True), ({"seed": 1}, False), ({"condition": {"label": 3}}, False)])
def test_samples_are_paired_by_seed_and_condition(change, paired):
    protocol = {"what": "samples", "count": 4, "seed": 0, "condition": {}}
    number = MetricValue(1.0, 0.0, 2.0, "by hand", torch.tensor([0.0, 1.0, 1.0, 2.0]).double())
    one, other = (Report(p, ["samples"], {"samples": {"x": number}}) for p in (protocol, protocol | change))
    assert compare(one, other)["samples"]["x"]["paired"] == paired
