"""Locks of other processes, for the tests of locks."""

import contextlib
import json
import os
from dataclasses import asdict

from diffusion.runs.files import read_clock
from diffusion.runs.lock import Holder


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
