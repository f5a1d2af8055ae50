"""Files that appear whole or not at all."""

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

from configs.errors import explain_failure


def write_whole(path: Path, content: str | bytes | Callable[[IO[bytes]], object]) -> None:
    """Write the whole file or nothing, on the disk before it has its name, also when several processes write it at
    once. The folder must exist.

    :param content: text, bytes, or a function that writes into the open file
    :raises WriteError: if it cannot be written; the file that was there stays
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    if isinstance(content, str):
        content = content.encode()
    with explain_failure(path, len(content) if isinstance(content, bytes) else None):
        try:
            with partial.open("xb") as file:
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


def append_whole(path: Path, text: str) -> None:
    """Write the text at the end of a file, or nothing of it.

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
            raise


def make_folder(path: Path) -> None:
    """Make a folder and those that it is in, and see that files can be written there.

    :raises WriteError: if not
    """
    with explain_failure(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            code = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(code, os.strerror(code), str(path))
