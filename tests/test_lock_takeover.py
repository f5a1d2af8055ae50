"""Dead locks that several processes find at once: one of them follows, whatever happens on the way."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time

import pytest
from locks import fork, take_at_once, write

from configs import UserError
from diffusion.runs import lock as module
from diffusion.runs.files import read_clock
from diffusion.runs.lock import SILENCE, Lock

FORK = multiprocessing.get_context("fork")
PATIENCE = 300
"""Seconds after which a process is given up."""


@pytest.fixture
def lock(tmp_path):
    made = Lock(tmp_path / "x.lock", "x is being made")
    yield made
    made.release()


def test_of_ten_that_find_one_dead_lock_one_wins(tmp_path):
    rounds, count = 12, 10
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
            gate.wait(PATIENCE)
            with contextlib.suppress(UserError):
                mine.take()
                (folder / f"won-{number}").touch()
                gate.wait(PATIENCE)
                mine.check()
                continue
            gate.wait(PATIENCE)

    children = [FORK.Process(target=contend, args=(number,)) for number in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(PATIENCE)
    assert [child.exitcode for child in children] == [0] * count
    assert [len(list(folder.glob("won-*"))) for folder in folders] == [1] * rounds
    assert [len(list(folder.iterdir())) for folder in folders] == [2] * rounds


def test_never_two_inside_while_holders_die_and_release(tmp_path):
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
def test_another_was_faster(lock, gone, monkeypatch):
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


def test_meanwhile_others_are_refused(lock, monkeypatch):
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


def test_the_holder_comes_back(lock, monkeypatch):
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
def test_killed_at_any_moment(before, tmp_path):
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
            fork(take_killed, lock, "os.rename", 1)
            assert len(list(folder.glob("lock.*"))) == 1
        killed = fork(take_killed, lock, "", at)[1] == signal.SIGKILL
        take_at_once(lock)
    assert at > 5


def take_killed(lock, kind, number):
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
