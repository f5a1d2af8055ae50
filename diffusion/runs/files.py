"""Files that appear whole or not at all."""

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

from configs.errors import explain_failure
from configs.processes import find_boot, is_gone

HEX = "[0-9a-f]" * 16
"""Pattern of 16 hexadecimal digits."""
OLD = 24 * 3600.0
"""Seconds after which a file that is being written is taken for a leftover, whoever wrote it."""


def write_whole(path: Path, content: str | bytes | Callable[[IO[bytes]], object]) -> None:
    """Write the whole file or nothing, on the disk before it has its name, also when several processes write it at
    once. The folder must exist. What a killed process leaves of it, :func:`make_folder` removes.

    :param content: text, bytes, or a function that writes into the open file
    :raises WriteError: if it cannot be written; the file that was there stays
    """
    if isinstance(content, str):
        content = content.encode()
    with explain_failure(path, len(content) if isinstance(content, bytes) else None), \
            name_partial(path).open("xb") as file:
        partial = Path(file.name)
        try:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def name_partial(path: Path) -> Path:
    """A new name beside ``path`` for the file that is to become it, ``.NAME.<16 hexadecimal digits>.partial``: six
    digits of this machine, six of this process, and four that are drawn."""
    return path.with_name(f".{path.name}.{hash_machine()}{os.getpid():06x}{secrets.token_hex(2)}.partial")


def hash_machine() -> str:
    """Six digits for this machine since its boot, and for its table of processes."""
    return hashlib.sha256(f"{os.uname().nodename} {find_boot()}".encode()).hexdigest()[:6]


def read_clock(folder: Path) -> float:
    """Seconds since 1970 by the clock of the file system, which on a network is another than this machine's."""
    probe = name_partial(folder / "clock")
    try:
        with probe.open("xb") as file:
            return os.fstat(file.fileno()).st_mtime
    finally:
        probe.unlink(missing_ok=True)


def append_whole(path: Path, text: str) -> None:
    """Write the text at the end of a file, or nothing of it: a file that was not there is not made for it.

    :raises WriteError: if it cannot be written
    """
    data = text.encode()
    with explain_failure(path, len(data)), path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(size)
            if not size:
                path.unlink()
            raise


def make_folder(path: Path) -> None:
    """Make a folder and those that it is in, see that files can be written there, and remove what killed processes
    have left of files in it.

    :raises WriteError: if not
    """
    with explain_failure(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            code = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(code, os.strerror(code), str(path))
    remove_leftovers(path)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left of files in a folder."""
    for partial in folder.glob(f".*.{HEX}.partial"):
        with contextlib.suppress(OSError):  # somebody else's, or gone by now
            if is_leftover(partial):
                partial.unlink()


def is_leftover(partial: Path) -> bool:
    """Whether nobody writes this file any more: its process was one of this machine and is gone, or it is
    :data:`OLD`, by the clock of its file system."""
    digits = partial.name.split(".")[-2]
    if digits.startswith(hash_machine()) and is_gone(int(digits[6:12], 16)):
        return True
    return read_clock(partial.parent) - partial.stat().st_mtime > OLD
