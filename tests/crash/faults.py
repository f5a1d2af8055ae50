"""What goes wrong inside a process that writes files: it is killed in the middle of one, and nothing is tidied up."""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NoReturn
from unittest.mock import patch

from diffusion.runs import files

STAGES = ("open", "half", "whole", "named")
"""Of the write of a file: it is there and empty; half of it is; all of it, without its name; it has its name."""


@dataclass(frozen=True)
class Fault:
    """What happens to a process at one of its writes.

    :ivar pattern: of the names of the files that are counted
    :ivar number: of the write, from 1
    :ivar event: one of :data:`STAGES`, where the process and its children are killed (of an appended line, ``half`` is
        half of the line); ``full``: the disk is, before the write; or names of signals that the process gets, such as
        ``SIGINT SIGINT``
    """

    pattern: str
    number: int
    event: str


def watch(trace: Path, fault: Fault | None, atomic: bool = True) -> None:
    """Note the name of each file that this process and its forks write, a line of ``trace`` each, and strike.

    :param atomic: False writes each file under its own name, in two halves: what :mod:`diffusion.runs.files` prevents
    """
    whole, append = files.write_whole if atomic else write_in_halves, files.append_whole

    def due(path: Path) -> str:
        """The event of this write."""
        with trace.open("a") as file:
            file.write(path.name + "\n")
        if fault is None or not fnmatch(path.name, fault.pattern):
            return ""
        count = sum(fnmatch(name, fault.pattern) for name in trace.read_text().splitlines())
        return fault.event if count == fault.number else ""

    def write(path: Path, content: str | bytes | Callable[[IO[bytes]], object]) -> None:
        event = due(path)
        prepare(event, path, trace)
        with dying(event) if event in STAGES else contextlib.nullcontext():
            whole(path, content)

    def add(path: Path, text: str) -> None:
        event = due(path)
        prepare(event, path, trace)
        append(path, text[:{"open": 0, "half": len(text) // 2}.get(event, len(text))])
        if event in STAGES:
            die()

    replace_function(files.write_whole, write)
    replace_function(files.append_whole, add)


def prepare(event: str, path: Path, trace: Path) -> None:
    """Do what happens before a write. Of a disk that is full, what was at ``path`` is kept beside the trace."""
    if event == "full":
        kept = trace.with_suffix(".before")
        kept.mkdir()
        if path.exists():
            shutil.copy(path, kept)
        (kept / "name").write_text(path.name)
        fill(path.parent)
    elif event not in ("", *STAGES):
        for name in event.split():
            os.kill(os.getpid(), signal.Signals[name])


def fill(folder: Path) -> None:
    """Leave no byte on the disk of a folder, by the file ``ballast`` at its root."""
    root = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_mount())
    with (root / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(root).f_bavail * os.statvfs(root).f_bsize)


@contextlib.contextmanager
def dying(stage: str) -> Iterator[None]:
    """Die at this stage of the next write."""
    opened, sync, replace = Path.open, os.fsync, Path.replace

    def open_and_die(path: Path, *arguments: Any, **more: Any) -> Any:
        file = opened(path, *arguments, **more)
        return die() if file.writable() else file

    def sync_and_die(number: int) -> NoReturn:
        if stage == "half":
            os.truncate(number, os.fstat(number).st_size // 2)
        sync(number)
        die()

    def replace_and_die(path: Path, target: Path) -> NoReturn:
        replace(path, target)
        die()

    changed = {"open": (Path, "open", open_and_die), "half": (os, "fsync", sync_and_die),
               "whole": (os, "fsync", sync_and_die), "named": (Path, "replace", replace_and_die)}[stage]
    with patch.object(*changed):
        yield
    die()


def die() -> NoReturn:
    """SIGKILL for the group of this process."""
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("unreachable")


def write_in_halves(path: Path, content: str | bytes | Callable[[IO[bytes]], object]) -> None:
    """A file as one writes it without a thought of what may happen."""
    if callable(content):
        buffer = BytesIO()
        content(buffer)
        content = buffer.getvalue()
    data = content.encode() if isinstance(content, str) else content
    with path.open("wb") as file:
        for part in (data[:len(data) // 2], data[len(data) // 2:]):
            file.write(part)
            file.flush()
            os.fsync(file.fileno())


def replace_function(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Put a function in the place of another, under all names that the loaded modules have for it."""
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is old:
                setattr(module, name, new)
