"""Runs of format 2, as the version wrote them that introduced it: later versions sample, evaluate and go on."""

import shutil

import numpy as np
import pytest
from helpers import ROOT, done
from PIL import Image

from diffusion import load
from diffusion.runs import checkpoint

pytestmark = pytest.mark.commands

RUNS = {"hot": "ddpm_digits", "cold": "generate_blur_mnist", "classifier": "classifier_digits"}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A copy of them, in a folder from which the commands are called."""
    shutil.copytree(ROOT / "tests" / "format_2", tmp_path / "tests" / "format_2")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tests" / "format_2"


@pytest.mark.parametrize("name", ["hot", "cold"])
def test_it_samples_what_it_has_sampled(runs, tmp_path, name):
    run = runs / RUNS[name] / name
    done("sample.py", f"run={run}", "samples=0-3", "sampler.num_steps=4", "device=cpu", f"out={tmp_path / 'out'}")
    for path in sorted((run / "expected").iterdir()):
        before, now = (np.array(Image.open(folder / path.name)).astype(int) for folder in (run / "expected",
                                                                                          tmp_path / "out"))
        assert np.abs(before - now).max() <= 1, path.name
        assert before.std() > 1


@pytest.mark.parametrize("name", list(RUNS))
def test_it_is_evaluated(runs, name):
    run = runs / RUNS[name] / name
    done("evaluate.py", f"run={run}", "count=8", "metrics=quick", "sampler.num_steps=2", "judge=none", "device=cpu",
         "baseline=false")
    assert len(list(run.glob("evaluations/*/evaluation.json"))) == 1


@pytest.mark.parametrize("name", list(RUNS))
def test_it_goes_on(runs, name):
    run = runs / RUNS[name] / name
    command = next(line for line in (run / "environment.json").read_text().splitlines() if '"command"' in line)
    arguments = command.split('"')[3].split()
    assert "this run is complete: step 20" in done(*arguments)
    before = checkpoint.read_latest(run / "checkpoints")
    said = done(*[a for a in arguments if not a.startswith("max_steps")], "max_steps=22")
    assert "resuming at step 20" in said
    after = checkpoint.read_latest(run / "checkpoints")
    assert before is not None
    assert after is not None
    assert after["step"] == 22
    assert after.keys() - before.keys() == {"skips"}, "what is newer than these runs"
    assert before.keys() <= after.keys()
    for part in ("raw", "ema", "frozen"):
        assert before[part].keys() == after[part].keys()
    assert load(run, device="cpu").step == 22
