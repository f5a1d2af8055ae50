"""Locks: one process holds one, and one follows it: at once if it is known to be dead, or after a silence."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest
from helpers import DIGITS, ROOT, train
from locks import fork, take_at_once, write
from omegaconf import OmegaConf

from configs import UserError, compose
from configs.processes import main_process
from diffusion.runs import lock as module
from diffusion.runs.files import read_clock
from diffusion.runs.lock import SILENCE, Holder, Lock, make_once
from diffusion.runs.run import Run
from diffusion.training.module import Training

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_NAME")
JOBS = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT")


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    for name in (*RANKS, *JOBS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def lock(tmp_path):
    made = Lock(tmp_path / "x.lock", "x is being made")
    yield made
    made.release()


def test_one_at_a_time(lock, tmp_path):
    other = Lock(lock.path, "x is being made", fix="make y")
    with lock:
        assert lock.held
        assert not other.held
        lock.check()
        with pytest.raises(UserError, match=rf"x is being made by another process \(pid {os.getpid()} on ") as error:
            other.take()
        assert error.value.fix == "make y"
        other.release()
        other.check()
        assert lock.held
    assert list(tmp_path.iterdir()) == []
    take_at_once(other)


def test_a_process_that_ended_without_a_word(lock):
    """It does not wait for its beats; and what locks is there without torch."""
    code = f"import sys; from pathlib import Path; from diffusion.runs.lock import Lock; " \
        f"Lock(Path({str(lock.path)!r}), 'x').take(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
    assert lock.path.exists()
    take_at_once(lock)


def test_a_process_that_is_dead_and_still_listed(lock):
    child, _ = fork(lambda: (lock.take(), os.kill(os.getpid(), signal.SIGKILL)), wait=False)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert lock.path.exists()
    take_at_once(lock)
    os.waitpid(child, 0)


def test_another_process_with_the_number_of_the_dead_one(lock):
    me = Holder.describe_self()
    assert me.start
    write(lock.path, host=me.host, pid=me.pid, start=str(int(me.start) - 1))
    take_at_once(lock)


@pytest.mark.parametrize("changed", [{"host": "elsewhere"}, {"boot": "another boot"}, {"pid": os.getppid()},
                                     {"start": None, "pid": os.getpid()}])
@pytest.mark.parametrize(("silent", "left"), [(0, None), (SILENCE - 50, 50), (SILENCE + 1, 0)])
def test_others_are_waited_for(lock, changed, silent, left, monkeypatch):
    """By the clock of the file system: this machine's is wrong."""
    monkeypatch.setattr(time, "time", lambda: 0.0)
    me = Holder.describe_self()
    start = module.find_start(os.getppid()) if changed.get("pid") == os.getppid() else me.start
    other = write(lock.path, silent, **{"host": me.host, "pid": 2**22 + 7, "start": start, **changed})
    if left == 0:
        take_at_once(lock)
        return
    with pytest.raises(UserError, match=f"pid {json.loads(other)['pid']} on {json.loads(other)['host']}") as error:
        lock.take()
    assert lock.path.read_bytes() == other
    assert ("nothing was heard" in error.value.got) == (left is not None)
    seconds = [int(word) for word in error.value.fix.split() if word.isdigit()]
    assert not seconds if left is None else left - 30 <= seconds[0] <= left
    assert len(list(lock.path.parent.iterdir())) == 1


def test_patience_is_an_argument(tmp_path):
    write(tmp_path / "x.lock", silent=2)
    take_at_once(Lock(tmp_path / "x.lock", "x", silence=1))


@pytest.mark.parametrize(("theirs", "mine", "dead"), [
    (("7", 0), {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, True),
    (("7", 1), {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, False),
    (("7", 2), {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, False),
    (("7", 0), {"SLURM_JOB_ID": "7"}, False),
    (("7", 0), {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"}, False),
    (("", 0), {"SLURM_RESTART_COUNT": "1"}, False),
    (("7_3", 0), {"SLURM_JOB_ID": "10", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3",
                  "SLURM_RESTART_COUNT": "1"}, True),
    (("7_3", 0), {"SLURM_JOB_ID": "11", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "4",
                  "SLURM_RESTART_COUNT": "1"}, False)])
def test_a_job_that_slurm_has_started_again(lock, theirs, mine, dead, monkeypatch):
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    write(lock.path, job=theirs[0], restarts=theirs[1])
    with contextlib.nullcontext() if dead else pytest.raises(UserError, match="elsewhere"):
        take_at_once(lock)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[" * 4096, b"{}", b"{" * 10**5, b'"text"', b"null",
                                     json.dumps({**asdict(Holder.describe_self()), "pid": "7"}).encode(),
                                     json.dumps({**asdict(Holder.describe_self()), "pid": -1}).encode(),
                                     json.dumps({**asdict(Holder.describe_self()), "pid": 2**70}).encode()])
def test_a_file_that_names_nobody_is_waited_for(lock, content):
    lock.path.write_bytes(content)
    with pytest.raises(UserError, match="it does not say which"):
        lock.take()
    now = read_clock(lock.path.parent)
    os.utime(lock.path, (now - SILENCE - 1, now - SILENCE - 1))
    take_at_once(lock)


class TestWhileItIsHeld:
    def test_lost(self, lock):
        lock.take()
        other = write(lock.path)
        assert not lock.held
        with pytest.raises(UserError, match=r"x is being made by another process \(pid 77 on elsewhere\), which has "
                                            "taken over"):
            lock.check()
        lock.release()
        assert lock.path.read_bytes() == other

    def test_removed(self, lock):
        lock.take()
        lock.path.unlink()
        with pytest.raises(UserError, match="has been removed"):
            lock.check()

    def test_it_beats_until_it_is_lost(self, lock, monkeypatch):
        monkeypatch.setattr(module, "BEAT", 0.01)

        def beats(patience):
            os.utime(lock.path, (1, 1))
            until = time.monotonic() + patience
            while time.monotonic() < until and lock.path.stat().st_mtime == 1:
                time.sleep(0.01)
            return lock.path.stat().st_mtime > 1

        lock.take()
        assert beats(60)
        write(lock.path)
        assert not beats(0.3)

    def test_a_fork_does_not_release_it(self, lock):
        lock.take()
        assert fork(lock.release)[1] == 0
        assert fork(lock.check)[1] == 0
        assert lock.held


def test_a_file_system_without_links(lock, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    take_at_once(lock)
    write(lock.path, silent=SILENCE + 1)
    take_at_once(lock)
    write(lock.path)
    with pytest.raises(UserError, match="elsewhere"):
        lock.take()


@pytest.mark.parametrize(("known", "main"), [
    ({}, True), ({"LOCAL_RANK": "0"}, True), ({"LOCAL_RANK": "1"}, False),
    ({"NODE_RANK": "1"}, False), ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
    ({"GROUP_RANK": "1"}, False), ({"NODE_RANK": "0", "GROUP_RANK": "1"}, True),
    ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
    ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
    ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, True),
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, True), ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, False),
    ({"SLURM_PROCID": "3"}, True),
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_JOB_NAME": "bash"}, True),
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash", "LOCAL_RANK": "1"}, False)])
def test_the_main_process(known, main, monkeypatch):
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    assert main_process() == main


class TestRuns:
    SETTINGS = (*DIGITS, "run.name=x", "max_steps=4", "callbacks.pictures.count=0", "callbacks.log.every=1",
                "callbacks.checkpoint.every=1", "callbacks.checkpoint.keep=0")

    def start(self, root, *more):
        return Run.start(compose("train", [f"run.root={root}", *self.SETTINGS, *more]), "test")

    def test_a_training_that_was_taken_over_writes_nothing_more(self, tmp_path, monkeypatch):
        plain, path, files = Training.training_step, tmp_path / "test" / "x" / ".lock", {}

        def lose(self, batch, batch_idx):
            if self.step == 2:
                write(path)
                files.update({each: each.read_bytes() for each in path.parent.rglob("*") if each.is_file()})
            return plain(self, batch, batch_idx)

        monkeypatch.setattr(Training, "training_step", lose)
        with pytest.raises(UserError, match="taken over"):
            train(tmp_path, *self.SETTINGS)
        assert [int(each.name[5:13]) for each in sorted(path.parent.glob("checkpoints/*"))] == [1, 2]
        assert {each: each.read_bytes() for each in path.parent.rglob("*") if each.is_file()} == files

    def test_further_ranks_hold_nothing(self, tmp_path, monkeypatch):
        with self.start(tmp_path) as first:
            monkeypatch.setenv("LOCAL_RANK", "1")
            with self.start(tmp_path) as second:
                second.lock.check()
                assert (first.lock.held, second.lock.held) == (True, False)
            assert first.lock.held

    def test_a_refused_start_holds_nothing(self, tmp_path):
        with self.start(tmp_path) as run:
            run.record(OmegaConf.to_container(compose("train", [*self.SETTINGS]), resolve=True))
            run.checkpoints.mkdir()
            (run.checkpoints / "step-00000001.0.pt").touch()
        with pytest.raises(UserError, match="another run"):
            self.start(tmp_path, "seed=1")
        with self.start(tmp_path) as run:
            assert run.lock.held

    def test_what_another_process_has_taken_over_stays(self, tmp_path):
        run = self.start(tmp_path)
        run.record({})
        write(run.folder / ".lock")
        with pytest.raises(UserError, match="taken over"), run:
            run.lock.check()
        assert sorted(path.name for path in run.folder.iterdir()) == [".lock", "config.yaml", "environment.json"]


def test_who_it_is_says_itself_again():
    me = Holder.describe_self()
    assert Holder.parse(json.dumps(asdict(me)).encode()) == me
    assert me != Holder.describe_self()
    assert not me.is_dead(replace(me, token="another"))


class TestMakeOnce:
    def test_the_first_makes_it_and_the_others_wait(self, tmp_path):
        store, made, begun = tmp_path / "cache" / "thing.bin", [], threading.Event()

        def load() -> str | None:
            return store.read_text() if store.exists() else None

        def make() -> str:
            made.append(1)
            begun.set()
            time.sleep(0.2)
            store.write_text("whole")
            return "whole"

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: make_once(store, load, make, "it is being made"), range(4)))
        assert found == ["whole"] * 4
        assert made == [1]
        assert [path.name for path in store.parent.iterdir()] == ["thing.bin"]

    def test_the_lock_of_a_dead_process_does_not_stay(self, tmp_path):
        write(tmp_path / "thing.lock", host=os.uname().nodename, pid=2**31 - 1)
        assert make_once(tmp_path / "thing.bin", lambda: 5, lambda: 1 / 0, "it is being made") == 5
        assert not list(tmp_path.iterdir())

    def test_who_fails_leaves_it_to_the_next(self, tmp_path):
        store = tmp_path / "thing.bin"
        with pytest.raises(ZeroDivisionError):
            make_once(store, lambda: None, lambda: 1 / 0, "it is being made")
        assert make_once(store, lambda: None, lambda: 5, "it is being made") == 5
