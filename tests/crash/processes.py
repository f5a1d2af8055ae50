"""Commands in processes that are forked from one that has loaded torch, so that starting them takes no time."""

import contextlib
import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults import Fault, watch

ROOT = Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["diffusion.commands", "diffusion.training.fit", "diffusion.sampling.command",
                                "diffusion.evaluation.command", "diffusion.tasks.restore", "diffusion.tasks.classify",
                                "hydra", "sklearn.datasets", "sklearn.mixture", "rich.table"])
PATIENCE = 240
"""Seconds after which a command is given up."""
PART = 4
"""Samples of a part of an archive."""


@dataclass
class Ended:
    """A command that has ended.

    :ivar code: its exit code; that of a process that was killed is -9
    :ivar said: what it printed
    :ivar seconds: how long it took
    :ivar writes: the names of the files that it wrote, in order
    """

    code: int
    said: str
    seconds: float
    writes: list[str]


class Command:
    """A script of this project that runs in the folder ``place``, in a session of its own.

    :param arguments: the script's path from the root of the project, and its arguments
    :param place: where it runs; its cache is there, too
    :param fault: at one of its writes
    :param atomic: whether files appear whole
    :param context: of :mod:`multiprocessing`, by which its process is made
    """

    def __init__(self, arguments: Sequence[str], place: Path, fault: Fault | None = None, atomic: bool = True,
                 context: Any = CONTEXT):
        self.log, self.trace = (place.with_name(f"{place.name}.{kind}") for kind in ("said", "writes"))
        for path in (self.log, self.trace):
            path.write_text("")
        self.process = context.Process(target=_run, args=(list(arguments), place, self.log, self.trace, fault, atomic))
        self.begin = time.monotonic()
        self.process.start()

    def wait(self) -> Ended:
        """Wait until it ends, and give what came of it."""
        self.process.join(PATIENCE)
        late = self.process.exitcode is None
        self.kill()
        assert not late, f"not done after {PATIENCE} s: {self.log.read_text()}"
        return Ended(int(self.process.exitcode or 0), self.log.read_text(), time.monotonic() - self.begin,
                     self.trace.read_text().splitlines())

    def kill(self) -> None:
        """SIGKILL for it and its children."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # if it has not got as far as to have a group of its own
        self.process.join()


def run(arguments: Sequence[str], place: Path, fault: Fault | None = None, atomic: bool = True,
        after: float | None = None, context: Any = CONTEXT) -> Ended:
    """Run a command to its end, or kill it after so many seconds; arguments as of :class:`Command`."""
    command = Command(arguments, place, fault, atomic, context)
    try:
        if after is not None:
            command.process.join(max(0, after - (time.monotonic() - command.begin)))
            command.kill()
        return command.wait()
    finally:
        command.kill()


def _run(arguments: list[str], place: Path, log: Path, trace: Path, fault: Fault | None, atomic: bool) -> None:
    os.setsid()
    os.chdir(place)
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    said = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(said, number)
    os.close(said)
    import configs.cli
    import diffusion.sampling.parts

    configs.cli.subprocess = Forking  # type: ignore[attr-defined]
    diffusion.sampling.parts.MOST = PART
    watch(trace, fault, atomic)
    _run_script(arguments)


def _run_script(arguments: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    script = ROOT / arguments[0]
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *arguments[1:]]
    runpy.run_path(str(script), run_name="__main__")


def _run_fresh(arguments: list[str]) -> None:
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()  # that of the process that this one was forked from
    _run_script(arguments)


def in_own_namespace(task: Callable[..., None], *arguments: Any) -> str:
    """Run a function in a process that may mount disks, which nobody else sees; gives what went wrong in it."""
    reader, writer = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_run_apart, args=(writer, task, arguments))
    process.start()
    writer.close()
    try:
        return reader.recv()
    except EOFError:
        return "the process has died"
    finally:
        process.join()


def _run_apart(writer: Any, task: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    wrong = ""
    try:
        isolate()
        task(*arguments)
    except Exception:
        wrong = traceback.format_exc()
    writer.send(wrong)


def isolate() -> None:
    """Give this process a namespace of users, in which it is root, and one of mounts.

    :raises OSError: if the system does not permit it
    """
    new_mounts, new_users = 0x00020000, 0x10000000  # CLONE_NEWNS and CLONE_NEWUSER of sched.h; os has them since 3.12
    user, group, system = os.getuid(), os.getgid(), ctypes.CDLL(None, use_errno=True)
    if system.unshare(new_mounts | new_users):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def mount(place: Path, *options: str) -> None:
    """Mount a disk in memory on a folder.

    :param options: of ``mount -o``
    """
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)], check=True)


class Forking:
    """In the place of the module ``subprocess`` for :func:`configs.cli.child`: its commands are forked too, in the
    same group of processes."""

    class Popen:
        """``python SCRIPT ...`` in a fork."""

        def __init__(self, arguments: Sequence[str]):
            _, script, *rest = arguments
            sys.stdout.flush()
            path = os.path.relpath(Path(script).resolve(), ROOT)
            self.process = multiprocessing.get_context("fork").Process(target=_run_fresh, args=([path, *rest],))
            self.process.start()

        def __enter__(self) -> "Forking.Popen":
            return self

        def __exit__(self, *_: object) -> None:
            self.process.join()

        def wait(self) -> None:
            self.process.join()

        @property
        def returncode(self) -> int | None:
            return self.process.exitcode

