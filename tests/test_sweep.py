"""Several runs at once: the names of their folders, what a failure does, where a second start goes on, the table."""

import csv
import json
import logging
import os
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import DIGITS, ROOT, command, small, train
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from configs import UserError, compose
from configs.values import to_plain
from diffusion.runs import checkpoint
from diffusion.runs.defaults import add_run_defaults
from diffusion.runs.identity import name_job
from diffusion.runs.run import Run
from diffusion.training.module import Training
from scripts import sweep_table

pytestmark = pytest.mark.commands

SETTINGS = [*(word for word in DIGITS if word != "precision=32"), "callbacks.pictures.count=0"]


@pytest.fixture
def sweep(monkeypatch, tmp_path, capfd):
    """``train.py -m`` in this process; gives the exit code and what was said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)

    def sweep(*arguments: str, mode: tuple[str, ...] = ("-m",)) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *mode, *SETTINGS, *arguments])
        try:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
            code = 0
        except SystemExit as error:
            code = int(str(error.code))
        finally:
            GlobalHydra.instance().clear()
        said = capfd.readouterr()
        return code, said.out + said.err

    return sweep


def folders(root: Path) -> dict[str, list[int]]:
    """The saved steps of every run in ``runs/debug/ddpm_digits``, by the name of its folder without what all share."""
    shared = name_job(SETTINGS)
    found = {path.name: list(checkpoint.list_checkpoints(path / "checkpoints"))
             for path in root.glob("runs/debug/ddpm_digits/*")}
    return {name.removeprefix(shared + ","): steps for name, steps in found.items()}


class TestNames:
    @pytest.mark.parametrize(("overrides", "name"), [
        (["experiment=ddpm_digits", "seed=0", "optimizer.lr=0.0003"], "optimizer.lr=0.0003,seed=0"),
        (["optimizer.lr=0.0003", "max_steps=9", "seed=0", "logger=wandb", "trainer.devices=2", "callbacks.log.every=1",
          "run.root=x", "debug=fast", "sampling=[start=0.5]", "data.cache=/c", "data.download=true"],
         "optimizer.lr=0.0003,seed=0"),
        (["objective/parameterization=eps", "model=small"], "model=small,objective.parameterization=eps"),
        (["+data.extra=1", "++model.base=8", "~optimizer.clip"], "data.extra=1,model.base=8,~optimizer.clip="),
        (["precision='32'", "data.root=photos"], "data.root=photos,precision=32"),
        (["max_steps=9"], ""),
    ])
    def test_they_are_the_jobs_own_settings(self, overrides, name):
        assert name_job(overrides) == name

    def test_odd_values_are_made_safe_and_stay_apart(self):
        values = ["/a/b c", "/a/b-c", "/x/b c", "b c", "b-c", "[1,2]", "[1,-2]", "'ü/é'", "..", "a\nb", ""]
        names = [name_job([f"data.root={value}"]) for value in values]
        assert len(set(names)) == len(values)
        for name in names:
            assert not set(name.removeprefix("data.root=")) & set("/ ,[]'\n=")
            assert name.isascii()
        assert names[0].startswith("data.root=b-c-")

    def test_long_ones_are_cut_and_stay_apart(self):
        many = [f"model.setting_{i}={i}" for i in range(40)]
        names = {name_job([*many, f"seed={seed}"]) for seed in range(3)}
        assert len(names) == 3
        assert all(len(name) == 120 for name in names)


class TestRuns:
    def test_failures_are_reported_at_the_end_and_a_second_start_goes_on(self, sweep, tmp_path):
        """A bad value is refused, a loss is not finite; then one more value, and the others are left as they are."""
        code, said = sweep("optimizer.lr=-1,1e30,1e-3", "seed=0", "max_steps=2", "optimizer.clip=null",
                           "callbacks.guard.bad=0")
        assert code == 2
        names = {lr: f"optimizer.clip=null,optimizer.lr={lr},seed=0" for lr in ("1e+30", "0.001", "0.002")}
        assert folders(tmp_path) == {names["1e+30"]: [], names["0.001"]: [2]}
        assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
        report = said[said.index("jobs of the sweep that failed: 2"):]
        assert "optimizer.lr=-1\n  wanted" in report
        assert f"in runs/debug/ddpm_digits/{name_job(SETTINGS)},{names['1e+30']}\nsteps that changed nothing" \
            in report
        assert "Traceback" not in said

        files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")
                 if names["0.001"] in str(path) and path.is_file()}
        code, said = sweep("max_steps=2", "seed=0", "optimizer.lr=0.0010,2e-3", "optimizer.clip=null")
        assert code == 0
        assert folders(tmp_path) == {names["1e+30"]: [], names["0.001"]: [2], names["0.002"]: [2]}
        assert {path: path.stat().st_mtime_ns for path in files} == files
        assert said.count("this run is complete") == 1

        folder = str(next(path.parent for path in files if path.name == "config.yaml"))
        assert compose("sample", add_run_defaults([f"run={folder}"])).run == folder, "no quotes needed"

    def test_an_error_that_nobody_foresaw_is_shown_and_the_others_run(self, sweep, tmp_path, monkeypatch):
        whole, jobs = Training.configure_optimizers, []

        def breaks_once(self):
            jobs.append(self)
            if len(jobs) == 1:
                raise RuntimeError("out of memory")
            return whole(self)

        monkeypatch.setattr(Training, "configure_optimizers", breaks_once)
        code, said = sweep("seed=0,1", "max_steps=1")
        assert code == 2
        assert "Traceback" in said
        assert said.count("out of memory") >= 2
        assert folders(tmp_path) == {"seed=0": [], "seed=1": [1]}

    @pytest.mark.crash
    def test_ctrl_c_saves_and_stops_all(self, sweep, tmp_path, monkeypatch):
        step = Training.training_step

        def interrupted(self, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGINT)
            return step(self, batch, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(Training, "training_step", interrupted)
            code, _ = sweep("seed=0,1", "max_steps=2", "callbacks.checkpoint.every=100")
        assert code == 130
        assert folders(tmp_path) == {"seed=0": [1]}
        code, _ = sweep("seed=0,1", "max_steps=2", "callbacks.checkpoint.every=100")
        assert code == 0
        assert folders(tmp_path) == {"seed=0": [1, 2], "seed=1": [2]}

    def test_a_name_comes_before_the_jobs_own(self, sweep, tmp_path):
        sweep("seed=1", "max_steps=1", "run.name=study")
        assert set(folders(tmp_path)) == {f"study,{name_job(SETTINGS)},seed=1"}

    def test_without_a_sweep_the_name_is_the_hash(self, sweep, tmp_path):
        sweep("max_steps=1", mode=())
        [folder] = tmp_path.glob("runs/debug/ddpm_digits/*")
        assert len(folder.name) == 8
        assert int(folder.name, 16) >= 0

    def test_several_processes_are_refused(self, sweep, tmp_path):
        code, said = sweep("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
        assert code == 2
        assert said.count("one command for each run") == 2, "when it happens, and in the report"
        assert not list(tmp_path.iterdir())


def made(folder: Path, *overrides: str, steps: int, losses: list[float], rows: dict | None = None) -> Run:
    """A run as train.py and evaluate.py leave it, without the training."""
    run = Run(folder)
    run.checkpoints.mkdir(parents=True)
    run.record(to_plain(compose("train", ["experiment=ddpm_digits", "max_steps=30", *overrides])))
    (run.checkpoints / f"step-{steps:08d}.0.pt").touch()
    table = [f"{10 * i},{loss},{speed}" for i, (loss, speed) in enumerate(zip(losses, (5.0, 100.0, 7.0)), 1)]
    run.metrics.write_text("\n".join(["step,loss,images_per_s", *table]))
    if rows is not None:
        (folder / "evaluations" / "one").mkdir(parents=True)
        (folder / "evaluations" / "one" / "evaluation.json").write_text(json.dumps({"rows": rows}))
    return run


class TestTable:
    @pytest.fixture
    def runs(self, tmp_path):
        made(tmp_path / "a", "optimizer.lr=0.001", steps=30, losses=[0.9, 0.7, 0.5],
             rows={"samples": {"agreement": {"value": 0.9}, "fd": {"value": 1.5}}, "real": {}})
        made(tmp_path / "deep" / "b", "objective/parameterization=eps", "optimizer.lr=0.002", steps=20,
             losses=[0.8, 0.6])
        made(tmp_path / "c", steps=30, losses=[0.9]).metrics.write_text("step,loss\n1,?")
        (made(tmp_path / "d", steps=30, losses=[0.9]).folder / "config.yaml").write_text("{")
        (tmp_path / "a" / "wandb" / "files").mkdir(parents=True)
        (tmp_path / "a" / "wandb" / "files" / "config.yaml").touch()
        return tmp_path

    def test_it_says_in_what_the_runs_differ_and_how_they_did(self, runs):
        first, third, fourth, second = sweep_table.table(runs)
        assert first == {"run": "a", "parameterization": "V", "lr": 0.001, "state": "done", "step": 30, "loss": 0.5,
                         "images/s": 7.0, "samples.agreement": 0.9, "samples.fd": 1.5}
        assert second == {"run": "deep/b", "parameterization": "Eps", "lr": 0.002, "state": "unfinished", "step": 20,
                          "loss": 0.6, "images/s": 52.5, "samples.agreement": None, "samples.fd": None}
        assert third["state"] == "broken: metrics.csv (ValueError)"
        assert (third["lr"], third["loss"]) == (0.001, None)
        assert fourth["state"].startswith("broken: config.yaml")
        assert (fourth["lr"], fourth["step"], fourth["loss"]) == (None, 30, 0.9)

    def test_names_are_as_short_as_they_can_be(self):
        assert sweep_table.short(["optimizer.lr", "ema", "a.x.size", "b.x.size", "x.size"]) == [
            "lr", "ema", "a.x.size", "b.x.size", "x.size"]

    def test_sorting(self):
        rows = [{"run": "a", "loss": 0.5}, {"run": "c", "loss": None}, {"run": "b", "loss": 0.1}]
        assert [row["run"] for row in sweep_table.arranged(rows, "loss")] == ["b", "a", "c"]
        assert [row["run"] for row in sweep_table.arranged(rows, "run")] == ["a", "b", "c"]
        assert sweep_table.arranged(rows, None) == rows
        with pytest.raises(UserError, match="--sort loss"):
            sweep_table.arranged(rows, "los")

    def test_all_forms_hold_the_same_cells(self, runs, capsys, monkeypatch):
        rows = sweep_table.table(runs)

        def said(*arguments: str) -> str:
            monkeypatch.setattr(sys, "argv", ["sweep_table.py", str(runs), *arguments])
            sweep_table.main()
            return capsys.readouterr().out

        assert json.loads(said("--json")) == rows
        table = list(csv.DictReader(said("--csv").splitlines()))
        assert [row["samples.fd"] for row in table] == ["1.5", "", "", ""]
        first, rule, *lines = said("--markdown").splitlines()
        assert first.split(" | ")[1:3] == ["parameterization", "lr"]
        assert [line.count("|") for line in (rule, *lines)] == [first.count("|")] * 5
        monkeypatch.setenv("COLUMNS", "300")
        assert all(row["state"] in said() for row in rows)

    def test_no_runs_and_no_torch(self, tmp_path):
        script = "import sys, runpy; sys.argv = sys.argv[1:]; sys.path.append('scripts'); " \
                 "sys.modules['torch'] = None; runpy.run_path(sys.argv[0], run_name='__main__')"
        result = command("-c", script, "scripts/sweep_table.py", str(tmp_path))
        assert result.returncode == 2, result.stderr
        assert "no runs below" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.crash
def test_two_processes_train_as_one(tmp_path):
    """``trainer=ddp`` on two CPU processes: the batch is the global one, so the losses and the weights are those of a
    single process."""
    settings = [*SETTINGS, "precision=32", "max_steps=2", "callbacks.checkpoint.every=0"]
    result = command("train.py", *settings, f"run.root={tmp_path}", "run.name=two", "trainer=ddp",
                     "trainer.devices=2", timeout=300)
    assert result.returncode == 0, result.stderr
    runs = {"one": train(tmp_path, *settings), "two": Run(tmp_path / "ddpm_digits" / "two")}
    losses = {name: [float(row["loss"]) for row in csv.DictReader(run.metrics.open())] for name, run in runs.items()}
    assert len(losses["one"]) == 2
    np.testing.assert_allclose(losses["two"], losses["one"], rtol=1e-5)
    weights = {name: checkpoint.read_latest(run.checkpoints) for name, run in runs.items()}
    assert weights["one"] is not None
    assert weights["two"] is not None
    for key, value in weights["one"]["raw"].items():
        np.testing.assert_allclose(weights["two"]["raw"][key], value, rtol=1e-3, atol=1e-4)
    assert OmegaConf.load(runs["two"].folder / "config.yaml").batch == 8
    recorded = json.loads((runs["two"].folder / "environment.json").read_text())
    assert "ddp_process" not in recorded["command"], "the first process writes the record"


@pytest.mark.crash
def test_two_processes_move_a_codebook_as_one(tmp_path):
    """Uses of the codes are counted, and dead ones revived, over all processes."""
    settings = [*small("autoencoder_digits_vq"), "model.codes=64", "max_steps=3", "callbacks.checkpoint.every=0",
                "callbacks.pictures.count=0", f"run.root={tmp_path}"]
    result = command("train.py", *settings, "run.name=two", "trainer=ddp", "trainer.accelerator=cpu",
                     "trainer.devices=2", timeout=300)
    assert result.returncode == 0, result.stderr
    one = checkpoint.read_latest(train(tmp_path, *settings, "run.name=one").checkpoints)
    two = checkpoint.read_latest(tmp_path / "autoencoder_digits_vq" / "two" / "checkpoints")
    assert one is not None
    assert two is not None
    [name] = [key for key in one["raw"] if key.endswith("codebook")]
    assert one["raw"][name].shape[0] == 64
    for key, value in one["raw"].items():
        np.testing.assert_allclose(two["raw"][key], value, rtol=1e-3, atol=1e-4, err_msg=key)
