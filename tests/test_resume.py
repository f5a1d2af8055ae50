"""A run that was killed anywhere and started again ends with the same weights, bit for bit."""

import csv
import os
import signal

import pytest
import torch
from helpers import COLD, DIGITS, ROOT, process, train

from diffusion.runs import checkpoint
from diffusion.training.callbacks import log as log_module

pytestmark = pytest.mark.commands


def content(run):
    return checkpoint.read_latest(run.checkpoints)


def same(a, b, path=""):
    """Equal bit for bit, whatever is nested."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


def states(run):
    found = content(run)
    return {name: found[name] for name in ("step", "raw", "ema", "optimizers")}


def logged(run):
    """The rows of the log but for the speed."""
    rows = list(csv.DictReader(run.metrics.open()))
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in rows]


@pytest.mark.parametrize("experiment", [DIGITS, COLD], ids=["hot", "cold"])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, experiment):
    settings = [*experiment, "max_steps=6", "accumulate=2", "model.dropout=0.2", "ema=0.9", "callbacks.log.every=4"]
    whole = train(tmp_path / "a", *settings)
    assert states(whole)["step"] == 6
    part = train(tmp_path / "c", *settings, "callbacks.checkpoint.milestones=[3]", "callbacks.checkpoint.every=3")
    newest = max(checkpoint.list_checkpoints(part.checkpoints).values())
    newest.unlink()
    train(tmp_path / "c", *settings)
    same(states(whole), states(part))
    assert logged(whole) == logged(part)
    assert [row["step"] for row in logged(part)] == ["4", "6"]


@pytest.mark.parametrize("experiment", [DIGITS, COLD], ids=["hot", "cold"])
def test_the_file_of_a_resumed_run_is_the_same_byte_for_byte(tmp_path, experiment):
    """So its checksum, and with it the folders of samples and evaluations of the same weights."""
    settings = [*experiment, "max_steps=4", "callbacks.checkpoint.every=2", "callbacks.log.every=3"]
    run = train(tmp_path, *settings)
    whole = checkpoint.list_checkpoints(run.checkpoints)[4]
    whole.unlink()
    train(tmp_path, *settings)
    assert checkpoint.list_checkpoints(run.checkpoints)[4].name == whole.name


def test_accumulation_and_threads_of_data_change_rounding_only(tmp_path):
    one = states(train(tmp_path / "a", *DIGITS, "max_steps=2"))
    parts = states(train(tmp_path / "b", *DIGITS, "max_steps=2", "accumulate=4"))
    for name, value in one["raw"].items():
        torch.testing.assert_close(parts["raw"][name], value, atol=1e-3, rtol=1e-2)


@pytest.mark.crash
def test_killed_in_the_middle_of_accumulation(tmp_path):
    """A real process, a real SIGKILL between two micro-batches, the same command again."""
    settings = [*DIGITS, "max_steps=8", "accumulate=4", "callbacks.checkpoint.every=2", "callbacks.pictures.count=0",
                "run.name=x"]
    whole = train(tmp_path / "a", *settings)
    arguments = ["tests/slow_train.py", str(tmp_path / "b"), *settings]
    kills = 0
    for part in (13, 14):
        with process(*arguments, cwd=ROOT) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith("micro") and int(line.split()[1]) >= part:
                    os.kill(child.pid, signal.SIGKILL)
                    kills += 1
                    break
    assert kills == 2
    run = train(tmp_path / "b", *settings)
    same(states(whole), states(run))
    rows = run.metrics.read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", *map(str, range(1, 9))]


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    settings = [*DIGITS, "max_steps=4", "callbacks.checkpoint.every=1", "callbacks.checkpoint.keep=0"]
    run = train(tmp_path, *settings)
    whole = states(run)
    newest = max(checkpoint.list_checkpoints(run.checkpoints).values())
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(bytes(data))
    assert content(run)["step"] == 3
    newest.unlink()
    train(tmp_path, *settings)
    same(whole, states(run))


def test_the_csv_forgets_what_is_done_again(tmp_path):
    path = tmp_path / "metrics.csv"
    for step in (1, 2, 3):
        log_module.append(path, {"step": step, "loss": 0.5})
    log_module.rewind(path, 2)
    assert path.read_text().split() == ["step,loss", "1,0.5", "2,0.5"]
    path.write_text("step,loss\n1,0.5\n2,0.")
    log_module.rewind(path, 1)
    assert path.read_text().split() == ["step,loss", "1,0.5"]
    log_module.append(path, {"step": 2, "speed": 9.0, "loss": None})
    assert path.read_text().split() == ["step,loss", "1,0.5", "2,"], "the columns of a file stay"
    assert path.read_bytes() == b"step,loss\n1,0.5\n2,\n", "one kind of line end, that of a run without a resume"


@pytest.mark.parametrize(("cut", "left"), [("", None), ("step,lo", None), ("\n", None), ("step,loss\n1", "step,loss\n"),
                                           ("step,loss\n1,0.5\n1", "step,loss\n1,0.5\n")])
def test_lines_of_the_csv_that_were_cut_off_are_forgotten(tmp_path, cut, left):
    """A process was killed while it wrote a line, here the first or that of step 12."""
    path = tmp_path / "metrics.csv"
    path.write_text(cut)
    log_module.rewind(path, 4)
    assert (path.read_text() if path.exists() else None) == left
    log_module.append(path, {"step": 5, "loss": 0.5})
    assert path.read_text() == (left or "step,loss\n") + "5,0.5\n"


def test_training_longer_goes_on(tmp_path):
    run = train(tmp_path, *DIGITS, "max_steps=2")
    train(tmp_path, *DIGITS, "max_steps=4")
    assert content(run)["step"] == 4
    files = set(run.checkpoints.iterdir())
    train(tmp_path, *DIGITS, "max_steps=4")
    assert set(run.checkpoints.iterdir()) == files, "a complete run does nothing"
