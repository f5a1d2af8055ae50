"""The commands of the pages about clusters as they stand there, made small, on a real SLURM."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import ROOT, read_commands
from PIL import Image
from submissions import over, read_log, require_same, start, wait_until

from diffusion.data.sets.cifar10 import CLASSES
from diffusion.runs.run import Run

pytestmark = pytest.mark.slurm

PAGES = ("docs/clusters.md", "docs/many_samples.md")
TINY = ["debug=fast", "batch=16", "callbacks.pictures.count=0", "model.base=8", "model.head_dim=8", "trainer.threads=1",
        "trainer.accelerator=cpu"]
FEWER = [(r"--ntasks-per-node=\d+", "--ntasks-per-node=1"), (r"trainer\.devices=\d+", "trainer.devices=1"),
         (r"--gpus-per-node=\d+", "--gpus-per-node=1"), (r"--array=0-\d+", "--array=3-5:2"),
         (r"hydra\.sweeper\.n_(trials|jobs)=\d+", r"hydra.sweeper.n_\1=2"), ("samples=0-63", "samples=0-3"),
         ("samples=0-49999", "samples=0-1199"), ("count=200", "count=70"), (r"hydra\.launcher\.timeout_min=\d+", "")]
LAUNCHER = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=5"]
QUICK = ["sampler=ddim", "sampler.num_steps=2", "device=cpu"]


def find(*words: str) -> list[str]:
    """The first command of the pages that has all these words in it, with fewer processes, jobs and samples."""
    commands = [command for page in PAGES for command in read_commands(page, "python", "srun", "sbatch")]
    found = next(command for command in commands if all(word in " ".join(command) for word in words))
    for pattern, smaller in FEWER:
        found = [re.sub(pattern, smaller, word) for word in found]
    return [word for word in found if word]


def submit(command: list[str], log: str) -> str:
    """Submit a job; gives its number."""
    said = subprocess.run([command[0], "--parsable", f"--output={log}", *command[1:]], capture_output=True, text=True,
                          timeout=60, check=True)
    return said.stdout.strip().split(";")[0]


@pytest.fixture
def desk(run, monkeypatch, tmp_path):
    """The folder in which the pages' commands are typed."""
    monkeypatch.setenv("SBATCH_TIMELIMIT", "5")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "evaluate.py").symlink_to(ROOT / "evaluate.py")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    return run


def train(desk, *names: str) -> None:
    """Train, in this folder, the runs that the pages name, such as ``ddpm_digits/first``."""
    for name in names:
        experiment, name = name.split("/")
        done = desk(sys.executable, "train.py", f"experiment={experiment}", f"run.name={name}", "run.root=runs", *TINY)
        assert done.returncode == 0, done.stderr


def test_no_command_is_left_out():
    used = [("sbatch", "train.sbatch"), ("srun", "train.py"), ("sbatch", "sample_array.sbatch"), ("sbatch", "--wrap"),
            ("srun", "sample.py")]
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    commands = [" ".join(command) for page in pages for command in read_commands(str(page), "srun", "sbatch")]
    assert len(commands) == len(used)
    assert all(any(command.startswith(program) and script in command for command in commands)
               for program, script in used)


def test_trainings_on_two_nodes_are_that_of_one_process(desk):
    """Those of ``srun`` and of ``sbatch``; the first holds its network in shards."""
    rng = np.random.default_rng(0)
    for split, name in [(split, name) for split in ("train", "test") for name in CLASSES]:
        folder = Path("FOLDER", split, name)
        folder.mkdir(parents=True)
        for i in range(2):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    more = [*TINY, "max_steps=4", "run.name=a",
            "model.dropout=0", "precision=32"]  # the noise of dropout and the rounding of bfloat16 differ by process
    many = submit([*find("sbatch", "train.sbatch"), *more, "run.root=batch"], "batch.log")
    command = find("srun", "train.py")
    shards = ["trainer=fsdp" if word == "trainer=ddp" else word for word in command]
    direct = start([*shards, *more, "run.root=direct"])
    alone = [word for word in command[command.index("train.py"):] if not word.startswith("trainer")]
    one = desk(sys.executable, *alone, *more, "run.root=one")
    assert one.returncode == 0, one.stderr
    said, why = direct.communicate(timeout=200)
    assert direct.returncode == 0, said + why
    wait_until(lambda: over(many))
    assert "done: step 4" in read_log(Path("batch.log"))
    assert read_log(Path("batch.log")).count("run folder") == 1, "one process speaks"
    for root in ("direct", "batch"):
        require_same(Path(root, "ddpm_cifar10/a"), Path("one/ddpm_cifar10/a"), 1e-5)


def test_samples_by_arrays_and_processes_are_those_of_one(desk, monkeypatch):
    train(desk, "ddpm_digits/first")
    quick = [*QUICK, "batch=400"]
    array = submit([*find("sbatch", "sample_array.sbatch"), *quick, "out=array"], "array-%a.log")
    script, *options, (line) = find("sbatch", "--wrap")
    wrapped = submit([script, *options, " ".join([line, *quick, "out=wrapped"])], "wrapped-%a.log")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    direct = start([*find("srun", "sample.py"), *quick, "out=direct"])
    monkeypatch.delenv("SLURM_NTASKS")
    for name in ("zip", "npz"):
        one = desk(sys.executable, "sample.py", "run=runs/ddpm_digits/first", "samples=0-1199", f"format={name}",
                   f"out={name}", *quick)
        assert one.returncode == 0, one.stderr
    said, why = direct.communicate(timeout=200)
    assert direct.returncode == 0, said + why
    assert "part 1 of 2 (srun" in why
    wait_until(lambda: over(array) and over(wrapped))
    for name in ("array", "wrapped"):
        for place, part in ((3, 1), (5, 2)):
            assert f"part {part} of 2 (SLURM array" in read_log(Path(f"{name}-{place}.log"))
    for name, whole in (("array", "zip"), ("wrapped", "npz"), ("direct", "npz")):
        for file in (f"samples.{whole}", "grid.png"):
            assert Path(name, file).read_bytes() == Path(whole, file).read_bytes(), (name, file)
        drawn = [json.loads(Path(place, "manifest.json").read_text())["samples"] for place in (name, whole)]
        assert drawn[0] == drawn[1]


def test_sweeps_and_a_search(desk):
    training = start([*find("python", "-m", "seed=0,1"), *LAUNCHER[1:], *TINY, "run.root=runs"])
    search = start([*find("python", "optuna"), *LAUNCHER[1:], *TINY, "run.root=found"])
    train(desk, "ddpm_digits/first", "cold_blur_digits/first")
    samples = start([*find("python sample.py -m"), *LAUNCHER, "seed=1", "sampler.num_steps=2", "device=cpu"])
    numbers = start([*find("python evaluate.py -m"), *LAUNCHER, "sampler.num_steps=2", "device=cpu"])
    said = {}
    for name, process in {"training": training, "search": search, "samples": samples, "numbers": numbers}.items():
        said[name], why = process.communicate(timeout=200)
        assert process.returncode == 0, said[name] + why

    assert len(re.findall(r"^seed=[01] model=(?:nano|tiny) +done +3 ", said["training"], re.MULTILINE)) == 4
    losses = [list(csv.DictReader(path.open()))[-1]["loss"] for path in Path("found").rglob("metrics.csv")]
    best = yaml.safe_load(Path("found/.sweep/optimization_results.yaml").read_text())
    assert len(losses) == 2
    assert best["best_value"] == min(map(float, losses))
    for experiment, guided in (("ddpm_digits", True), ("cold_blur_digits", False)):
        run = Run(Path("runs", experiment, "first"))
        [manifest] = [json.loads(path.read_text()) for path in run.folder.glob("samples/*seed1*/manifest.json")]
        assert [entry["index"] for entry in manifest["samples"]] == [0, 1, 2, 3]
        assert ("cfg" in (manifest["settings"]["guidance"] or {})) == guided
        [measured] = [json.loads(path.read_text())["rows"] for path in run.evaluations]
        assert all(name.split("@")[0] in said["numbers"] for row in measured.values() for name in row)
