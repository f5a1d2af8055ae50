"""Locks that hold on every file system, NFS too: a file that says who holds it, and is touched while it is held.

There is no ``flock`` in them, which on some file systems holds for one machine only, or not at all. Two things are
needed, which NFS does at once, too: of several processes that give a file the same new name only one succeeds
(``link``), and a file takes the place of another (``rename``).

A lock is dead if its process is known to be: one of this machine that has ended, or the same SLURM job before it was
started again. Of others nothing is known: theirs is dead after :data:`SILENCE` without a touch, by the clock of the
file system, since those of machines differ.

Who finds a dead lock puts his own in its place, and needs the lock of this succession for it: a second file, named by
the content of the first. No content comes back. So who has the succession, and still finds that content, is alone with
it, and nobody ends a lock that he has not judged. A process that is killed on the way leaves the lock of a succession
that is dead, too, and is taken over in the same way.

A machine may sleep, or lose its connection, for longer than the others wait for it. So a holder asks :meth:`Lock.check`
before it writes.
"""

import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from configs import UserError
from configs.cluster import find_job
from configs.errors import explain_failure
from configs.processes import find_boot, find_start, is_gone
from diffusion.runs.files import HEX, make_folder, name_partial, read_clock, remove_leftovers

log = logging.getLogger(__name__)
T = TypeVar("T")

BEAT = 20.0
"""Seconds between two touches."""
SILENCE = 180.0
"""Seconds without a touch after which a lock may be taken over, whoever holds it."""
MOST_BYTES = 4096


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as its file says.

    :ivar token: drawn for this lock
    :ivar host: the name of the machine
    :ivar boot: see :func:`configs.processes.find_boot`
    :ivar pid: the process
    :ivar start: see :func:`configs.processes.find_start`
    :ivar job: the SLURM job, of an array with the index; empty outside of SLURM
    :ivar restarts: how often SLURM has started the job again
    """

    token: str
    host: str
    boot: str
    pid: int
    start: str | None
    job: str
    restarts: int

    @classmethod
    def describe_self(cls) -> "Holder":
        """This process."""
        restarts = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(secrets.token_hex(8), os.uname().nodename, find_boot(), os.getpid(), find_start(os.getpid()),
                   find_job() or "", int(restarts) if restarts.isdecimal() else 0)

    @classmethod
    def parse(cls, content: bytes) -> "Holder | None":
        """Who a file names, None if it does not: it is damaged, or not written yet, or of an earlier version."""
        try:
            holder = cls(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            return None
        kinds = {"pid": int, "start": str | None, "restarts": int}
        sound = all(isinstance(value, kinds.get(name, str)) for name, value in asdict(holder).items())
        return holder if sound and 0 < holder.pid < 2**31 else None

    def is_dead(self, here: "Holder") -> bool:
        """Whether it is known to have ended, by a process that looks from ``here``."""
        if self.job and self.job == here.job and self.restarts < here.restarts:
            return True
        return (self.host, self.boot) == (here.host, here.boot) and is_gone(self.pid, self.start)


class Held(UserError):
    """A lock that another process holds."""


class Lock:
    """A lock that one process holds, for as long as it lives.

    :param path: its file, in a folder that is there; it is gone when nobody holds it
    :param what: what is locked, and what is done with it: ``runs/x/y is being trained``
    :param fix: what somebody may do who does not get it
    :param silence: seconds without a touch after which it may be taken over
    """

    def __init__(self, path: Path, what: str, fix: str = "wait for it", silence: float = SILENCE):
        self.path, self.what, self.fix, self.silence = path, what, fix, silence
        self._content = b""
        self._pid = 0
        self._end = threading.Event()

    def take(self) -> None:
        """Take it, or take it over from a process that is dead.

        :raises Held: if another process holds it; :class:`configs.errors.WriteError` if it cannot be written
        """
        self._acquire()
        for succession in self.path.parent.glob(f"{glob.escape(self.path.name)}.{HEX}*"):
            with contextlib.suppress(OSError):  # to a lock that is no more: nobody needs it, and it may be another's
                succession.unlink()
        remove_leftovers(self.path.parent)
        self._end = threading.Event()
        threading.Thread(target=self._beat, args=(self._end,), daemon=True).start()

    def wait(self) -> None:
        """Take it as soon as no other process holds it.

        :raises WriteError: if it cannot be written
        """
        told = False
        while True:
            try:
                return self.take()
            except Held as held:
                if not told:
                    log.info("%s; waiting for it", held.got)
                told = True
                time.sleep(1)

    @contextlib.contextmanager
    def attempt(self) -> Iterator[bool]:
        """Hold it inside, unless another process does; gives whether."""
        try:
            self.take()
        except Held:
            yield False
            return
        try:
            yield True
        finally:
            self.release()

    def check(self) -> None:
        """See that it has not been taken over: to be called before something is written. It reads a small file. Of a
        lock that was never taken, as on the ranks of a training that write nothing, it says nothing.

        :raises UserError: if another process has it, or it was removed
        """
        if not self._content or self._is_mine():
            return
        found = self._read()
        by = f"{describe(Holder.parse(found[0]))}, which has taken over" if found else "another process, or was: the " \
            f"lock {self.path} has been removed"
        raise UserError(f"{self.what} by {by}", "one process at a time; this one has written nothing since",
                        "leave it to the other process, or stop that and give the same command again")

    def release(self) -> None:
        """Give it back. Nothing happens if it was not taken, by this process, or has been taken over."""
        self._end.set()
        if self._pid == os.getpid():
            with contextlib.suppress(OSError):  # it is dead in any case, and this may be the end after an error
                if self._is_mine():
                    self.path.unlink()
            self._content, self._pid = b"", 0

    @property
    def held(self) -> bool:
        """Whether this process holds it, at this moment."""
        return self._pid == os.getpid() and self._is_mine()

    def __enter__(self) -> "Lock":
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _acquire(self) -> None:
        here = Holder.describe_self()
        content = json.dumps(asdict(here)).encode()
        own = name_partial(self.path)
        with explain_failure(self.path, len(content)):
            try:
                own.write_bytes(content)
                while (found := self._read()) is None or found[0] != content:
                    if found is None:
                        self._create(own, content)
                    else:
                        self._require_dead(here, *found)
                        self._succeed(own, found[0])
            finally:
                own.unlink(missing_ok=True)
        self._content, self._pid = content, os.getpid()

    def _create(self, own: Path, content: bytes) -> None:
        """Give the file of this content the lock's name, if there is no lock."""
        try:
            os.link(own, self.path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links, where a lock is empty for a moment
            with contextlib.suppress(FileExistsError), self.path.open("xb") as file:
                file.write(content)

    def _require_dead(self, here: Holder, content: bytes, touched: float) -> None:
        holder = Holder.parse(content)
        if holder is not None and holder.is_dead(here):
            return
        age = max(0.0, read_clock(self.path.parent) - touched)
        if age >= self.silence:
            return
        silent, fix = "", self.fix
        if age > 2 * BEAT:
            silent = f", of which nothing was heard for {age:.0f} s"
            fix = f"the same command in {self.silence - age:.0f} s, which takes over then; or {fix}"
        raise Held(f"{self.what} by {describe(holder)}{silent}", "one process at a time", fix)

    def _succeed(self, own: Path, dead: bytes) -> None:
        """Put the file in the place of a dead lock, unless that has got a successor, or its holder has come back.

        :raises UserError: if another process is doing so
        """
        name = f"{self.path.name}.{hashlib.sha256(dead).hexdigest()[:16]}"
        right = Lock(self.path.with_name(name), self.what, self.fix, self.silence)
        right._acquire()
        try:
            found = self._read()
            if found is not None and found[0] == dead:
                os.replace(own, self.path)
        finally:
            right.release()

    def _read(self) -> tuple[bytes, float] | None:
        """The content of the file and when it was touched, None if there is none. It is opened for both: NFS asks the
        server then, and not what it remembers."""
        try:
            number = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            with open(number, "rb") as file:
                return file.read(MOST_BYTES), os.fstat(number).st_mtime
        except OSError as error:
            if error.errno == errno.ESTALE:  # another machine has just put another file in its place
                return self._read()
            if error.errno == errno.ENOENT:
                return None
            raise

    def _is_mine(self) -> bool:
        found = self._read()
        return found is not None and found[0] == self._content

    def _beat(self, end: threading.Event) -> None:
        while not end.wait(BEAT):
            with contextlib.suppress(OSError):
                if not self.held:
                    return
                os.utime(self.path)


def describe(holder: Holder | None) -> str:
    """``another process (pid 7 on b)``."""
    return f"another process ({f'pid {holder.pid} on {holder.host}' if holder else 'it does not say which'})"


def make_once(store: Path, load: Callable[[], T | None], make: Callable[[], T], what: str) -> T:
    """What a file of a cache holds: of several processes that want it the first makes it, and the others wait.

    :param load: gives it; None if it is not there
    :param make: makes and gives it
    :param what: is done, for the message of those that wait
    :raises WriteError: if nothing can be written there
    """
    lock = Lock(store.with_suffix(".lock"), what)
    found = load()
    if found is not None:
        if lock.path.exists():  # of a process that was killed once all was there
            with contextlib.suppress(UserError, OSError), lock:
                pass
        return found
    make_folder(store.parent)
    lock.wait()
    try:
        found = load()
        return make() if found is None else found
    finally:
        lock.release()
