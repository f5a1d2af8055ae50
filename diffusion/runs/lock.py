"""One process at a time: a lock that lies in a file."""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO

from configs import UserError


class Lock:
    """A lock for a piece of work that one process at a time may do; as a context, it is held inside.

    :param path: of the file; its folder must exist
    :param what: is guarded, for messages
    """

    def __init__(self, path: Path, what: str):
        self.path, self.what = path, what
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Take it.

        :raises UserError: if another process holds it
        """
        while self._file is None:
            file = self.path.open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise UserError(f"{self.what} is the work of another process now", "one process at a time",
                                "wait for it") from None
            if os.fstat(file.fileno()).st_nlink:
                self._file = file
            else:
                file.close()  # released between the two lines above

    def check(self) -> None:
        """Stop where the lock has been lost.

        :raises UserError: if another process holds it
        """
        if self._file is None:
            raise UserError(f"{self.what} without its lock", "one process at a time", "the same command again")

    def release(self) -> None:
        """Let others take it."""
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            self._file.close()
            self._file = None

    def __enter__(self) -> "Lock":
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
