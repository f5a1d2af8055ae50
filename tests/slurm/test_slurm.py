"""Sweeps, time limits, preemption and deaths on a real SLURM."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from submissions import TINY, over, read_log, require_same, start, states, submit, sweep, wait_until

pytestmark = pytest.mark.slurm


def count_jobs() -> int:
    """All jobs that the accounting knows."""
    said = subprocess.run(["sacct", "-X", "-n", "-P", "-S", "1970-01-01", "--format=JobID"], capture_output=True,
                          text=True, timeout=60, check=True)
    return len(said.stdout.split())


def test_a_sweep_goes_on_over_time_limits_and_is_not_submitted_twice(run):
    """One of two jobs means nothing, which is said at once; the other is told to save before its time is over, goes
    back into the queue, and ends with the weights of a run that nobody interrupted. The same again submits nothing."""
    longer = ["seed=5", "max_steps=90", "callbacks.checkpoint.every=1000"]
    first = run(*sweep(*longer, "run.root=cut", "optimizer.clip=1,-1", "+callbacks.slow={_target_:submissions.Slow}",
                       "hydra.launcher.timeout_min=1", "hydra.launcher.signal_s=5"), timeout=300)
    assert first.returncode == 2, first.stdout + first.stderr
    assert "optimizer.clip=-1" in first.stderr
    assert "log: " in first.stderr
    [folder] = Path("cut/ddpm_digits").glob("*optimizer.clip=1*")
    number = next(word for line in first.stderr.splitlines() if line.startswith("submitted as job ")
                  for word in [line.split()[3].rstrip(":")])
    wait_until(lambda: "COMPLETED" in states(number))
    assert "REQUEUED" in states(number)

    jobs = count_jobs()
    again = run(*sweep(*longer, "run.root=cut", "optimizer.clip=1"))
    assert again.returncode == 0, again.stderr
    assert "complete" in again.stdout
    assert count_jobs() == jobs
    whole = run(sys.executable, "train.py", "-m", *TINY, *longer, "run.root=whole", "optimizer.clip=1")
    assert whole.returncode == 0, whole.stderr
    require_same(folder, Path("whole") / folder.relative_to("cut"))
    assert sorted(path.name for path in Path().iterdir()) == ["cut", "sample.py", "train.py", "whole"]


def test_a_job_that_dies_ends_the_sweep_with_an_error(run):
    start = time.monotonic()
    died = run(*sweep("max_steps=4", "+callbacks.death={_target_:submissions.Death}"))
    assert died.returncode == 2
    assert time.monotonic() - start < 120
    log = Path(next(line for line in died.stderr.splitlines() if "log: " in line).split("log: ")[1])
    assert log.is_file()
    assert "failed" in died.stdout


def test_preempted_jobs_go_on(run):
    """One of sbatch and one of a sweep make room for others, and end with the weights of a run that nobody
    interrupted."""
    settings = ["max_steps=60", "callbacks.checkpoint.every=1000", "callbacks.log.every=5", "run.name=a"]
    slow = "+callbacks.slow={_target_:submissions.Slow}"
    low = submit("train.sbatch", "--partition=low", "--nodelist=node2", "--exclusive", "--output=low.log",
                 "--signal=USR1@30", overrides=[*TINY, *settings, slow, "run.root=low"])
    swept = start(sweep(*settings, slow, "run.root=swept", "hydra.launcher.partition=low", "hydra.launcher.signal_s=30",
                        "hydra.launcher.more={nodelist: node1, exclusive: true}"))

    def said(word: str) -> bool:
        logs = [Path("low.log"), *Path("swept/.sweep").glob("*/*_log.out")]
        return len(logs) == 2 and all(word in read_log(log) for log in logs)

    wait_until(lambda: said("step 5/"))
    subprocess.run(["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap",
                    "sleep 1"], check=True, capture_output=True, timeout=60)
    whole = run(sys.executable, "train.py", *TINY, *settings, "run.root=whole")
    assert whole.returncode == 0, whole.stderr
    table, why = swept.communicate(timeout=200)
    assert swept.returncode == 0, table + why
    assert "done" in table
    wait_until(lambda: over(low))
    assert said("resuming at step")
    assert said("done: step 60")
    for folder in (*Path("low/ddpm_digits").iterdir(), *Path("swept/ddpm_digits").iterdir()):
        require_same(folder, Path("whole/ddpm_digits/a"))
