"""Locks: one process holds one, and one follows it: at once if it is known to be dead, or after a silence."""

import contextlib
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
from helpers import DIGITS, ROOT, train
from omegaconf import OmegaConf

from configs import UserError, compose
from configs.processes import main_process
from diffusion.runs import lock as module
from diffusion.runs.files import read_clock
from diffusion.runs.lock import SILENCE, Holder, Lock
from diffusion.runs.run import Run
from diffusion.training.module import Training

FORK = multiprocessing.get_context("fork")
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


def write(path, silent=0.0, **changed):
    """The lock of another process, of which nothing has been heard for so many seconds."""
    other = {**asdict(Holder.describe_self()), "host": "elsewhere", "pid": 77, **changed}
    path.write_text(json.dumps(other))
    now = read_clock(path.parent)
    os.utime(path, (now - silent, now - silent))
    return path.read_bytes()


def fork(task, *arguments, wait=True):
    """Run a function in a process of its own, which ends without a word; gives its number and how it ended."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            task(*arguments)
            os._exit(0)
        os._exit(1)
    return child, os.waitpid(child, 0)[1] if wait else None


def take_at_once(lock):
    lock.take()
    assert lock.held
    lock.release()
    assert list(lock.path.parent.iterdir()) == []


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
    assert not seconds if left is None else left - 2 <= seconds[0] <= left
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


class TestTakingOver:
    def test_of_ten_that_find_one_dead_lock_one_wins(self, tmp_path):
        rounds, count = 20, 10
        folders = [tmp_path / str(i) for i in range(rounds)]
        for i, folder in enumerate(folders):
            folder.mkdir()
            write(folder / "lock", silent=SILENCE + 1, job=str(i))
        gate = FORK.Barrier(count)

        def contend(number):
            put = os.replace
            os.replace = lambda *names: (time.sleep(number % 3 / 500), put(*names))
            for folder in folders:
                mine = Lock(folder / "lock", "x")
                gate.wait(60)
                with contextlib.suppress(UserError):
                    mine.take()
                    (folder / f"won-{number}").touch()
                    gate.wait(60)
                    mine.check()
                    continue
                gate.wait(60)

        children = [FORK.Process(target=contend, args=(number,)) for number in range(count)]
        for child in children:
            child.start()
        for child in children:
            child.join(60)
        assert [child.exitcode for child in children] == [0] * count
        assert [len(list(folder.glob("won-*"))) for folder in folders] == [1] * rounds
        assert [len(list(folder.iterdir())) for folder in folders] == [2] * rounds

    def test_never_two_inside_while_holders_die_and_release(self, tmp_path):
        def work(number):
            mine = Lock(tmp_path / "lock", "x")
            while True:
                with contextlib.suppress(UserError):
                    mine.take()
                    break
                time.sleep(0.002)
            (tmp_path / "inside").touch(exist_ok=False)
            time.sleep(0.002)
            (tmp_path / "inside").unlink()
            if number % 2:
                mine.release()

        children = [fork(work, number, wait=False)[0] for number in range(16)]
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
        take_at_once(Lock(tmp_path / "lock", "x"))

    @pytest.mark.parametrize("gone", [False, True], ids=["holds", "has-released"])
    def test_another_was_faster(self, lock, gone, monkeypatch):
        """It has judged the lock dead, and another one takes it over before it moves on."""
        write(lock.path, silent=SILENCE + 1)
        faster, late = Lock(lock.path, "x is being made"), []

        def overtake(folder):
            if not late:
                late.append(True)
                faster.take()
                if gone:
                    faster.release()
            return read_clock(folder)

        monkeypatch.setattr(module, "read_clock", overtake)
        with contextlib.nullcontext() if gone else pytest.raises(UserError, match=f"pid {os.getpid()}"):
            lock.take()
        assert (lock.held, faster.held) == (gone, not gone)
        faster.release()

    def test_meanwhile_others_are_refused(self, lock, monkeypatch):
        write(lock.path, silent=SILENCE + 1)
        put, refused = os.replace, []

        def meanwhile(*names):
            with pytest.raises(UserError, match=f"x is being made by another process \\(pid {os.getpid()}"):
                Lock(lock.path, "x is being made").take()
            refused.append(put(*names))

        monkeypatch.setattr(os, "replace", meanwhile)
        lock.take()
        assert lock.held
        assert len(refused) == 1

    def test_the_holder_comes_back(self, lock, monkeypatch):
        """Between the judgement and the succession it releases, and a third one takes the lock."""
        dead, third = Lock(lock.path, "x is being made"), Lock(lock.path, "x is being made")
        dead.take()
        os.utime(lock.path, (1, 1))
        judge = Lock._require_dead

        def meanwhile(self, *judged):
            judge(self, *judged)
            if self is lock and not third.held:
                dead.release()
                third.take()

        monkeypatch.setattr(Lock, "_require_dead", meanwhile)
        with pytest.raises(UserError, match="x is being made"):
            lock.take()
        assert third.held
        third.release()

    @pytest.mark.parametrize("before", ["free", "dead", "dead with a dead succession"])
    def test_killed_at_any_moment(self, before, tmp_path):
        """Before each thing that it does to files, while it takes a lock and gives it back."""
        at, killed = 0, True
        while killed:
            at += 1
            folder = tmp_path / str(at)
            folder.mkdir()
            lock = Lock(folder / "lock", "x")
            if before != "free":
                fork(lock.take)
            if before == "dead with a dead succession":
                fork(_take_killed, lock, "os.rename", 1)
                assert len(list(folder.glob("lock.*"))) == 1
            killed = fork(_take_killed, lock, "", at)[1] == signal.SIGKILL
            take_at_once(lock)
        assert at > 5


def _take_killed(lock, kind, number):
    """Take a lock and give it back, or be killed at an event of the interpreter about files of this kind."""
    count = 0

    def die(event, arguments):
        nonlocal count
        if event in ("open", "os.link", "os.rename", "os.remove") and kind in event \
                and str(lock.path.parent) in str(arguments[0]):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    lock.take()
    lock.release()


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

    def test_it_beats_until_it_is_lost_or_released(self, lock, monkeypatch):
        monkeypatch.setattr(module, "BEAT", 0.01)

        def beats():
            os.utime(lock.path, (1, 1))
            until = time.monotonic() + 0.3
            while time.monotonic() < until and lock.path.stat().st_mtime == 1:
                time.sleep(0.01)
            return lock.path.stat().st_mtime > 1

        lock.take()
        assert beats()
        write(lock.path)
        assert not beats()

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
