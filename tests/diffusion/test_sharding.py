"""A training of which each of two processes holds half."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import CLASSIFIER, DIGITS, ROOT, train
from lightning.pytorch.callbacks import Callback

from configs import UserError
from diffusion.runs import checkpoint
from diffusion.runs.run import Run

SETTINGS = [*DIGITS, "batch=8", "callbacks.pictures.count=2", "run.name=a", "optimizer.lr=0.01",
            "optimizer.decay=none", "ema=0.5"]
FSDP = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.threads=1"]


class Measure(Callback):
    """Writes down the bytes that this process holds of the weights, their average, and the optimizer's state."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_train_end(self, trainer, pl_module) -> None:
        optimizer = pl_module.optimizers(use_pl_optimizer=False)
        states = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
        held = [pl_module.weights.parameters(), pl_module.ema.model.parameters(), states]
        sizes = [sum(getattr(value, "_local_tensor", value).nbytes for value in part) for part in held]
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(sizes))


@pytest.mark.crash
def test_it_goes_on_from_one_process_to_two_with_half_each_and_back(tmp_path):
    """Weights, average and the optimizer's state are those of a training by one process, and each of the two holds half
    of the network's, plus the small encoder of the condition; with activations that are computed again."""
    for name in ("one", "two"):
        train(tmp_path / name, *SETTINGS, "max_steps=2", experiment="ddpm_digits")
    whole = train(tmp_path / "one", *SETTINGS, "max_steps=6", experiment="ddpm_digits")
    places = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    said = subprocess.run([sys.executable, "train.py", *SETTINGS, *FSDP, "max_steps=4", f"run.root={tmp_path / 'two'}",
                           "trainer.gradient_checkpointing=true",
                           f"+callbacks.measure={{_target_:test_sharding.Measure,folder:'{tmp_path}'}}"],
                          cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(places)})
    assert said.returncode == 0, said.stdout + said.stderr
    assert "resuming at step 2" in said.stderr
    run = Run(tmp_path / "two" / "ddpm_digits" / "a")
    assert {path.name for path in run.pictures.iterdir()} >= {"samples-00000004.png", "estimates-00000004.png"}
    parameters = sum(value.nbytes for value in read(run)["raw"].values())
    for rank in (0, 1):
        weights, average, states = json.loads((tmp_path / f"{rank}.json").read_text())
        assert weights == average
        assert states == 2 * weights
        assert weights <= 0.55 * parameters

    again = train(tmp_path / "two", *SETTINGS, "max_steps=6", experiment="ddpm_digits")
    a, b = read(whole), read(again)
    for key in ("raw", "ema"):
        assert list(a[key]) == list(b[key])
        for name, value in a[key].items():
            assert torch.allclose(value, b[key][name], rtol=0, atol=1e-5), (key, name)
    mine, theirs = (content["optimizers"]["net"] for content in (a, b))
    assert mine["param_groups"] == theirs["param_groups"]
    for place, state in mine["state"].items():
        for key, value in state.items():
            assert torch.allclose(value, theirs["state"][place][key], rtol=0, atol=1e-5)


def read(run: Run) -> dict:
    """The newest checkpoint."""
    content = checkpoint.read_latest(run.checkpoints)
    assert content is not None
    return content


def test_a_classifier_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a restorer"):
        train(tmp_path, *CLASSIFIER, *FSDP, "max_steps=1")
