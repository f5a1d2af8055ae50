"""The errors that are meant for a person: what was asked for cannot be done, or cannot be written."""

import errno
import os
import shutil
import traceback
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_ERROR = 4000
"""Letters of one part of a message: what a stranger's file says may be of any length."""

DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Unicode's signs that turn the direction of what follows."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk without room, or a user without."""
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EIO,
          errno.EEXIST)
"""Errors of a place where nothing can be written."""


class UserError(ValueError):
    """Something the user asked for cannot be done, with the way out.

    The message has three parts: what was *got*, what was *wanted*, and the override or action that *repairs* it.
    The commands print it without a traceback and end with exit code 2.
    """

    def __init__(self, got: str, wanted: str, fix: str):
        got, wanted, fix = (escape(part if len(part) <= LONGEST_ERROR else f"{part[:LONGEST_ERROR]} ...")
                            for part in (got, wanted, fix))
        super().__init__(f"{got}\n  wanted: {wanted}\n  try:    {fix}")
        self.got, self.wanted, self.fix = got, wanted, fix

    def __reduce__(self):
        return type(self), (self.got, self.wanted, self.fix)


def escape(text: str) -> str:
    """The text with what a terminal would obey written out (``\\x1b[2J``), but for line ends and tabs: file names and
    what stands in files may hold anything."""
    return "".join(letter if letter in "\n\t" or (unicodedata.category(letter) not in ("Cc", "Cs")
                                                  and unicodedata.bidirectional(letter) not in DIRECTIONS)
                   else letter.encode("unicode_escape", "surrogatepass").decode() for letter in text)


class WriteError(UserError):
    """A file that cannot be written: a disk that is full or read-only, or a place that is none."""


@contextmanager
def explain_failure(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns the errors of a system that cannot write into words.

    :param path: what is written
    :param needed: its bytes, if they are known
    :raises WriteError: in the place of an ``OSError``
    """
    try:
        yield
    except OSError as error:
        said = describe_failure(error, path, needed)
        if said is None:
            raise
        raise said from error


def describe_failure(error: OSError, path: Path | None = None, needed: int | None = None) -> WriteError | None:
    """What to say to a person about a write that the system refused; None for errors of other kinds.

    :param path: what was written; None takes what the error names
    """
    path = path or (Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None)
    if error.errno in FULL:
        size = f": {format_bytes(needed)} needed" if needed is not None else ""
        there = next((place for place in ([path, *path.parents] if path else []) if place.is_dir()), None)
        free = f", {format_bytes(shutil.disk_usage(there).free)} free" if there and size else ""
        return WriteError(f"no space left for {path or 'a file'}{size}{free}", "a disk with room",
                          "free some space and give the same command again, or another place: run.root=, out=")
    if error.errno in CLOSED:
        return WriteError(f"cannot write {path or 'a file'}: {error.strerror}", "a place that can be written",
                          "another place: run.root=, out=, or a copy of the run where you may write")
    return None


def format_bytes(count: int) -> str:
    """``48 MB``, in powers of 1000, rounded up."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count} {unit}"
        count = -(-count // 1000)
    return ""


def describe_error(error: BaseException) -> str:
    """An error that nobody foresaw, in a line with the place in the code: ``TypeError: no (unet.py, line 3)``."""
    reason = " ".join(map(str.strip, str(error).splitlines()[:3]))
    places = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}{': ' if reason else ''}{reason}{place}"
