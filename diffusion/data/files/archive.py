"""A folder and a zip archive of images, seen alike: a sorted list of files, and their bytes."""

import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Protocol, runtime_checkable

from configs.errors import UserError
from configs.values import read_limit
from diffusion.data.files.arrays import ARRAY, encode_pixels, map_images, name_rows
from diffusion.data.files.layout import choose_splits

SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo", ".bmp", ".dib", ".gif", ".webp",
            ".avif", ".tif", ".tiff", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
            *([".heic", ".heif"] if find_spec("pillow_heif") else []))
"""The endings of the files that are taken for images, whatever their case."""
WORDS = ("", ".txt", ".text", ".caption", ".captions", ".json", ".jsonl", ".csv", ".tsv", ".md", ".rst", ".yaml",
         ".yml", ".xml", ".html", ".htm", ".log", ".ini", ".cfg", ".py", ".ipynb", ".sh", ".sha256", ".md5", ".tag")
"""The endings of files that nobody expects to be images."""
TEXTS = (".txt", ".csv", ".jsonl")
"""The endings of the files that may say something about images."""
MOST_BYTES = 2**30
"""Bytes of a file that is read, unless ``THAW_MOST_BYTES`` says more: a small archive can hold a file of any size."""
LITTER = ("__MACOSX", "Thumbs.db")
_NAME = attrgetter("name")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that by its name is an image: its path inside the archive (with ``/``), its size in bytes, and a stamp
    that changes with its content (the modification time in a folder, the CRC in a zip)."""

    name: str
    bytes: int
    stamp: int


@runtime_checkable
class Archive(Protocol):
    """Image files by name.

    :ivar others: how many files are left aside, by their endings; known once ``entries`` has been asked
    :ivar texts: the paths of those that end in ``TEXTS``, sorted; known then, too
    """

    others: Counter[str]
    texts: list[str]

    def entries(self) -> list[Entry]:
        """All image files, sorted by name, without hidden files and what operating systems leave behind."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of a file. May be called by several threads at once.

        :raises ValueError: it has more than ``MOST_BYTES``
        """
        ...


class _Folder:
    def __init__(self, root: Path):
        self.root = root
        self.others: Counter[str] = Counter()
        self.texts: list[str] = []

    def entries(self) -> list[Entry]:
        self.others.clear()
        self.texts.clear()
        try:
            found = sorted(self._walk(self.root, "", ()), key=_NAME)
        except OSError as error:
            raise UserError(f"{error.filename} cannot be listed ({error.strerror})", "a readable folder",
                            "change its permissions") from error
        self.texts.sort()
        return found

    def read(self, name: str) -> bytes:
        path = self.root / name
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("no file")
        _limit(status.st_size)
        return path.read_bytes()

    def _walk(self, folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
        """Follows symbolic links, except back to a folder that it is in."""
        here = folder.stat()
        identity = (here.st_dev, here.st_ino)
        if identity in above:
            return
        for found in os.scandir(folder):
            name = prefix + found.name
            if found.is_dir():
                if not _is_litter(name):
                    yield from self._walk(Path(found.path), name + "/", (*above, identity))
            elif _is_image(name):
                try:
                    status = found.stat()
                except OSError:
                    # A dangling link is listed all the same, so that it is reported when it cannot be read.
                    status = found.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                    yield Entry(name, status.st_size, status.st_mtime_ns)
            elif not _is_litter(name):
                self.others[_ending(name)] += 1
                if name.lower().endswith(TEXTS):
                    self.texts.append(name)


class _Zip:
    def __init__(self, file: zipfile.ZipFile):
        self.file = file
        self.others: Counter[str] = Counter()
        self.texts: list[str] = []

    def entries(self) -> list[Entry]:
        images = {info.filename: info for info in self.file.infolist() if _is_image(info.filename)}
        others = [info for info in self.file.infolist()
                  if not (info.is_dir() or _is_image(info.filename) or _is_litter(info.filename))]
        self.others = Counter(_ending(info.filename) for info in others)
        self.texts = sorted(info.filename for info in others if info.filename.lower().endswith(TEXTS))
        if any(info.flag_bits & 1 for info in images.values()):
            raise UserError(f"{self.file.filename} is protected by a password", "an archive that opens without one",
                            "unpack it, then data.root=/the/unpacked/folder")
        return [Entry(name, images[name].file_size, images[name].CRC) for name in sorted(images)]

    def read(self, name: str) -> bytes:
        _limit(self.file.getinfo(name).file_size)
        return self.file.read(name)


class _Array:
    """The images of an npz, as if each were a file that is called by its row."""

    def __init__(self, path: Path):
        with zipfile.ZipFile(path) as file:
            self.stamp = file.getinfo(ARRAY).CRC
            self.others = Counter(_ending(name) for name in file.namelist() if name != ARRAY)
        self.texts: list[str] = []
        self.images = map_images(path, read_limit("MOST_BYTES", MOST_BYTES))
        self.rows = {name: row for row, name in enumerate(name_rows(len(self.images)))}

    def entries(self) -> list[Entry]:
        return [Entry(name, self.images[0].nbytes, self.stamp) for name in self.rows]

    def read(self, name: str) -> bytes:
        return encode_pixels(self.images[self.rows[name]])


class _Splits:
    """The archives of a folder that are splits by their names, such as ``train.zip`` and ``test.zip``, as if unpacked
    into folders of these names."""

    def __init__(self, parts: dict[str, _Zip]):
        self.parts = parts
        self.others: Counter[str] = Counter()
        self.texts: list[str] = []

    def entries(self) -> list[Entry]:
        found = sorted((replace(entry, name=f"{split}/{entry.name}")
                        for split, part in self.parts.items() for entry in part.entries()), key=_NAME)
        self.others = sum((part.others for part in self.parts.values()), Counter())
        self.texts = sorted(f"{split}/{text}" for split, part in self.parts.items() for text in part.texts)
        return found

    def read(self, name: str) -> bytes:
        split, _, inside = name.partition("/")
        return self.parts[split].read(inside)


@contextmanager
def open_archive(root: Path) -> Iterator[Archive]:
    """The folder, zip or npz file at ``root``, read in place; zips are closed when the context ends. A folder whose
    zips are splits by their names, such as ``train.zip`` and ``test.zip``, is read as if they were unpacked.

    :raises UserError: it is neither (as ``check_root``), or a zip is damaged
    """
    check_root(root)
    with ExitStack() as stack:
        if root.is_file():
            archive = stack.enter_context(_zip(root))
            yield _Array(root) if ARRAY in archive.file.namelist() else archive
            return
        zips = {path.stem: path for path in sorted(root.glob("*.[zZ][iI][pP]")) if path.is_file()}
        if choose_splits(zips) is not None:
            yield _Splits({split: stack.enter_context(_zip(path)) for split, path in zips.items()})
        else:
            yield _Folder(root)


@contextmanager
def _zip(path: Path) -> Iterator[_Zip]:
    try:
        file = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} cannot be read as a zip archive ({error})", "a sound archive",
                        "copy or download it again") from error
    with file:
        yield _Zip(file)


def check_root(root: Path) -> None:
    """Raises a ``UserError`` unless ``root`` is a folder or a zip file; for a missing path it names the nearest one."""
    wanted = "a folder or a .zip file of images"
    if not root.exists():
        raise UserError(f"there is nothing at {root}", wanted, f"data.root={_nearest(root) or '/path/to/images'}")
    if not root.is_dir() and not zipfile.is_zipfile(root):
        raise UserError(f"{root} is a file, but no zip archive, or one cut short", wanted, f"data.root={root.parent}")


def _nearest(missing: Path) -> Path | None:
    """The existing path that a misspelt one most likely means."""
    below = Path()
    while not missing.parent.exists():
        missing, below = missing.parent, Path(missing.name) / below
    try:
        matches = get_close_matches(missing.name, os.listdir(missing.parent), n=1)
    except OSError:
        return None
    if not matches:
        return None
    corrected = missing.parent / matches[0]
    return corrected / below if (corrected / below).exists() else corrected


def describe_others(others: Mapping[str, int]) -> str:
    """The files that are no images to us, by their endings, in words: ``30 .heic, 2 .mov``; texts go without saying."""
    told = sorted(((count, ending) for ending, count in others.items() if ending not in WORDS), reverse=True)
    words = ", ".join(f"{count} {ending}" for count, ending in told[:8]) + (", ..." if len(told) > 8 else "")
    apple = any(ending in (".heic", ".heif") for _, ending in told)
    return words + (" (Pillow does not read these: convert them, or pip install pillow-heif)" if apple else "")


def suggest_root(root: Path) -> Path | None:
    """The zip file in a folder without images that its user most likely means: the only one."""
    zips = [path for path in root.glob("*.zip") if zipfile.is_zipfile(path)] if root.is_dir() else []
    return zips[0] if len(zips) == 1 else None


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _limit(size: int) -> None:
    most = read_limit("MOST_BYTES", MOST_BYTES)
    if size > most:
        raise ValueError(f"{size / 2**20:.0f} MB, more than the {most / 2**20:.0f} MB of an image file: "
                         f"make it smaller first, or allow it: THAW_MOST_BYTES={size}")


def _is_litter(name: str) -> bool:
    return any((part.startswith(".") and part != ".") or part in LITTER for part in name.split("/"))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not _is_litter(name)
