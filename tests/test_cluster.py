"""What is done for clusters and needs none: which process this is, several runs in one command, refusals."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import COLD, DIGITS, ROOT, train
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from configs import UserError, cluster, compose
from configs.cluster import find_job, requeue
from diffusion.runs.defaults import ask_runs, list_places
from diffusion.runs.run import Run
from hydra_plugins.thaw_launchers import slurm
from thaw.commands import complete_job, prepare_arguments

pytestmark = pytest.mark.commands

OPTIONS = {"timeout_min": 30, "signal_s": 60, "more": {}}


class TestJob:
    @pytest.mark.parametrize(("environ", "job"), [
        ({}, None), ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "7_2")])
    def test_its_number(self, environ, job):
        assert find_job(environ) == job

    def test_only_the_first_process_asks_and_only_in_a_job(self, monkeypatch, tmp_path):
        (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "said"}\n')
        (tmp_path / "scontrol").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
            monkeypatch.delenv(name, raising=False)
        assert not requeue()
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("RANK", "1")
        assert requeue()
        assert not (tmp_path / "said").exists()
        monkeypatch.setenv("RANK", "0")
        assert requeue()
        assert (tmp_path / "said").read_text() == "requeue 7\n"

    def test_a_refusal_is_said(self, monkeypatch, tmp_path, caplog):
        (tmp_path / "scontrol").write_text("#!/bin/sh\necho not today >&2; exit 1\n")
        (tmp_path / "scontrol").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        assert not requeue()
        assert "not today" in caplog.text

    def test_the_signal_ends_the_process_once_it_is_back_in_the_queue(self, monkeypatch):
        asked, before = [], signal.getsignal(signal.SIGUSR1)
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setattr(cluster, "requeue", lambda: asked.append(1))
        try:
            cluster.watch_signal()
            with pytest.raises(SystemExit) as end:
                signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert end.value.code == 128 + signal.SIGUSR1
        assert asked == [1]

    def test_a_signal_at_the_very_end_does_no_harm(self):
        late = ("import os, signal\nfrom configs.cluster import watch_signal\nwatch_signal()\n"
                "class Late:\n    def __del__(self, kill=os.kill, own=os.getpid(), number=signal.SIGUSR1):\n"
                "        kill(own, number)\nlate = Late()\n")
        ended = subprocess.run([sys.executable, "-c", late], cwd=ROOT, env={**os.environ, "SLURM_JOB_ID": "7"},
                               timeout=60)
        assert ended.returncode == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs with commas in their names, of which one is a cold one."""
    root = tmp_path_factory.mktemp("runs")
    for settings, name in ((DIGITS, "a=1,b=2"), (COLD, "a=1,b=3")):
        train(root, *settings, "max_steps=1", "callbacks.pictures.count=0", f"run.name='{name}'", experiment="study")
    return root / "study"


class TestSeveralRuns:
    def test_places_may_have_commas_and_stars(self, runs):
        both = [str(runs / "a=1,b=2"), str(runs / "a=1,b=3")]
        assert list_places(",".join(both)) == both
        assert list_places(",".join(f"'{place}'" for place in both)) == both
        assert list_places(f"{runs}/*") == both
        assert list_places(both[1]) == both[1:]
        assert list_places("nowhere,nothing") == ["nowhere", "nothing"]

    def test_one_that_is_not_there_is_refused(self, runs):
        with pytest.raises(UserError, match="no run in"):
            ask_runs(["-m", f"run={runs / 'a=1,b=2'},nowhere"])
        with pytest.raises(UserError, match="-m for several"):
            prepare_arguments([f"run={runs / 'a=1,b=2'},{runs / 'a=1,b=3'}"])

    def test_each_job_gets_what_its_run_says(self, runs):
        asked = prepare_arguments(["-m", f"run={runs}/*", "label=3", "samples=0-1"])
        assert asked[0] == "-m"
        assert "++condition.label=3" in asked
        hot, cold = (compose("sample", complete_job("sample", [f"run='{runs / name}'", "samples=0-1"]))
                     for name in ("a=1,b=2", "a=1,b=3"))
        assert hot.guidance.cfg.scale == 2
        assert "cfg" not in (cold.guidance or {})

    def test_both_are_sampled(self, runs, tmp_path, monkeypatch):
        from thaw.commands import sample

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["sample.py", "-m", f"run={runs}/*", "samples=0-1", "sampler.num_steps=2",
                                          "device=cpu"])
        try:
            sample()
        finally:
            GlobalHydra.instance().clear()
        for name in ("a=1,b=2", "a=1,b=3"):
            [folder] = (runs / name / "samples").iterdir()
            assert (folder / "000001.png").is_file()
        assert not list(tmp_path.iterdir()), "nothing of the sweep stays"


class TestScore:
    def test_it_is_the_last_number_of_a_column(self, tmp_path, caplog):
        run = Run(tmp_path)
        run.metrics.write_text("step,loss,extra\n1,3.5,7\n2,2.5,\n")
        (tmp_path / "accuracy.csv").write_text("step,accuracy\n2,0.75\n")
        assert run.read_score("loss") == 2.5
        assert run.read_score("extra") == 7
        assert run.read_score("accuracy") == 0.75
        assert run.read_score(None) is None
        assert not caplog.text
        assert run.read_score("fid") is None
        assert "score=fid" in caplog.text


class TestLauncher:
    def test_a_signal_before_the_start_is_refused(self):
        with pytest.raises(UserError, match="signal_s=60"):
            slurm.SlurmLauncher(**{**OPTIONS, "timeout_min": 1})

    def test_without_submitit_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setattr(slurm, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="without submitit"):
            slurm.SlurmLauncher(**OPTIONS)

    def test_sbatch_is_told_to_signal_and_to_requeue(self):
        from submitit.slurm.slurm import _make_sbatch_string

        launcher = slurm.SlurmLauncher(**OPTIONS, partition="gpu")
        text = _make_sbatch_string("work", "logs", partition=launcher.options["partition"],
                                   additional_parameters=launcher.more)
        assert "#SBATCH --signal=USR1@60" in text
        assert "#SBATCH --requeue\n" in text
        assert "USR2" not in text

    def test_other_options_of_sbatch_can_be_typed(self):
        with initialize_config_module("configs", version_base="1.3"):
            cfg = hydra_compose("train", ["experiment=ddpm_digits", "hydra/launcher=slurm",
                                          "hydra.launcher.more={mail-type: FAIL}"], return_hydra_config=True)
        options = OmegaConf.to_container(cfg.hydra.launcher)
        assert isinstance(options, dict)
        launcher = slurm.SlurmLauncher(**{str(key): value for key, value in options.items() if key != "_target_"})
        assert launcher.more["mail-type"] == "FAIL"
        assert launcher.more["signal"] == "USR1@120"

    def test_the_log_of_a_job_is_shown_without_what_others_say(self, tmp_path):
        path = tmp_path / "log.out"
        path.write_text("submitit INFO (2026-01-01 10:00:00,000) - Starting\nfd  1.5 - 2\n\nkid 3\n"
                        "srun: error: node1\nsubmitit INFO (2026-01-01 10:00:01,000) - Job completed\nJob completed\n")
        assert slurm.read_log(path) == ["fd  1.5 - 2", "kid 3"]
        assert slurm.read_log(tmp_path / "nothing") == []
