"""Files that appear whole or not at all."""

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

from configs.errors import explain_failure


def write_whole(path: Path, content: str | bytes | Callable[[IO[bytes]], object]) -> None:
    """Write the whole file or nothing, on the disk before it has its name, also when several processes write it at
    once. The folder must exist. What a killed process leaves of it, :func:`make_folder` removes.

    :param content: text, bytes, or a function that writes into the open file
    :raises WriteError: if it cannot be written; the file that was there stays
    """
    if isinstance(content, str):
        content = content.encode()
    with explain_failure(path, len(content) if isinstance(content, bytes) else None), _open_partial(path) as file:
        partial = Path(file.name)
        try:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)  # before it is closed: without its lock, it would be a leftover
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _open_partial(path: Path) -> IO[bytes]:
    """The new file that is to become ``path``, ``.NAME.<16 hexadecimal digits>.partial`` beside it. It is locked as
    long as it is open, and the system ends the lock with the process, however that ends."""
    while True:
        file = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial").open("xb")
        with contextlib.suppress(OSError):  # a file system without locks, where leftovers stay
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # removed as a leftover before it was locked


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
    for leftover in path.glob(".*." + "[0-9a-f]" * 16 + ".partial"):
        # An error says that it is being written, or has just got its name, or that nobody can tell.
        with contextlib.suppress(OSError), leftover.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()
