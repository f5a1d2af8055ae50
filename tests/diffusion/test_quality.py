"""Samples that are measured during a training, and the best weights."""

import csv
import json
import logging

import pytest
from helpers import COLD, DIGITS, done, equal, train

import thaw
from configs import UserError
from diffusion.runs import checkpoint

pytestmark = pytest.mark.commands

SETTINGS = ["callbacks.pictures.count=0", "callbacks.checkpoint.every=100", "callbacks.checkpoint.keep=1",
            "optimizer.lr=0.01", "optimizer.decay=none", 'sampling=["sampler=ddim","sampler.num_steps=2"]']
MEASURED = [*SETTINGS, "callbacks=quality", "callbacks.quality.every=4", "callbacks.quality.count=8"]
LAST = 12


def read_rows(run):
    return list(csv.DictReader((run.folder / "quality.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def measured(root):
    return train(root, *DIGITS, *MEASURED, f"max_steps={LAST}", "run.name=with")


def read_last(run):
    return checkpoint.read(checkpoint.list_checkpoints(run.checkpoints)[LAST])


def test_the_training_is_the_same_with_it_and_without(root, measured):
    plain = train(root, *DIGITS, *SETTINGS, f"max_steps={LAST}", "run.name=without")
    assert equal(read_last(plain), read_last(measured), but=["config"])


def test_the_numbers_are_those_of_evaluate(measured):
    done("evaluate.py", f"run={measured.folder}", "metrics=quick", "count=8", "baseline=false", "device=cpu")
    sets = json.loads(measured.evaluations[-1].read_text())["rows"]["samples"]
    last = {name: float(value) for name, value in read_rows(measured)[-1].items() if name != "step"}
    assert last == pytest.approx({name: number["value"] for name, number in sets.items()}, rel=1e-4)


def test_the_best_weights_are_kept_and_can_be_chosen(measured):
    rows = read_rows(measured)
    assert [int(row["step"]) for row in rows] == [4, 8, 12]
    best = min(rows, key=lambda row: float(row["fd/random@8"]))
    assert {*measured.steps} == {int(best["step"]), LAST}
    assert thaw.load(measured.folder, step="best", device="cpu").step == int(best["step"])
    said = done("sample.py", f"run={measured.folder}", "step=best", "samples=0", "device=cpu")
    assert "pictures" in said


def test_a_run_that_is_stopped_goes_on_with_the_same_rows_and_the_same_best(root, measured):
    train(root, *DIGITS, *MEASURED, "max_steps=8", "run.name=stopped")
    resumed = train(root, *DIGITS, *MEASURED, f"max_steps={LAST}", "run.name=stopped")
    assert read_rows(resumed) == read_rows(measured)
    assert checkpoint.read_best(resumed.checkpoints) == checkpoint.read_best(measured.checkpoints)
    assert equal(read_last(resumed), read_last(measured), but=["config"])


def test_restorations_are_measured_and_the_costs_are_said(root, caplog):
    with caplog.at_level(logging.INFO, "diffusion"):
        run = train(root, *COLD, "callbacks.pictures.count=0", "callbacks=quality", "callbacks.quality.every=2",
                    "callbacks.quality.count=4", "callbacks.quality.score=ssim", "max_steps=2", "run.name=cold")
    assert {"rmse", "ssim"} <= {*read_rows(run)[0]}
    assert checkpoint.read_best(run.checkpoints)["score"] == "ssim"
    assert any(record.getMessage().startswith("quality: 4 samples every 2 steps, about") for record in caplog.records)


def test_a_best_that_is_not_known_or_lies_ahead_is_none(tmp_path, measured):
    checkpoint.note_best(tmp_path, {"step": 5, "score": "fd", "value": 1.0})
    checkpoint.forget_best(tmp_path, 5)
    assert checkpoint.read_best(tmp_path) == {"step": 5, "score": "fd", "value": 1.0}
    checkpoint.forget_best(tmp_path, 4)
    assert checkpoint.read_best(tmp_path) is None
    for damaged in ("", "[]", '{"step": "5", "score": "fd", "value": 1.0}'):
        (tmp_path / checkpoint.BEST).write_text(damaged)
        assert checkpoint.read_best(tmp_path) is None


@pytest.mark.parametrize(("settings", "words"), [
    (["callbacks.quality.count=3"], "too few for metrics.fd"), (["callbacks.quality.every=0"], "every=0"),
    (["callbacks.quality.evaluate=[split=other]"], "split=other")])
def test_settings_that_mean_nothing_are_refused_before_any_work(root, settings, words):
    with pytest.raises(UserError, match=words):
        train(root, *DIGITS, *MEASURED, *settings, "run.name=refused")
    assert not (root / "test/refused").exists()


def test_without_it_there_is_no_best(root):
    run = train(root, *COLD, "callbacks.pictures.count=0", "max_steps=1", "run.name=none")
    with pytest.raises(UserError, match="no weights are known to be the best"):
        thaw.load(run.folder, step="best")
