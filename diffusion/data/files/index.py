"""Every image of an archive, decoded once: pixels, names and what could not be read, kept in a cache."""

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from jaxtyping import UInt8

from configs.errors import UserError, WriteError
from configs.values import hash_plain
from diffusion.data.base import digest
from diffusion.data.files.archive import SUFFIXES, Archive, Entry, describe_others, open_archive, suggest_root
from diffusion.data.files.beside import has_captions
from diffusion.data.files.decode import Decoder, explain
from diffusion.data.files.progress import progress
from diffusion.data.files.threads import in_order
from diffusion.runs.files import write_whole
from diffusion.runs.lock import make_once

logger = logging.getLogger(__name__)

FORMAT = 3
"""Part of every key; to be raised when the same file comes to decode to other pixels, or the cache to other files."""

TASK = 2**20
"""Bytes of pixels that a thread works on at a time."""

NAMES_SHOWN = 10
DARK = 64
"""Brightness in 0..255 that some pixel of a set of images should have."""


@dataclass(frozen=True)
class Index:
    """The readable images of an archive, in the order of their names.

    :ivar names: paths inside the archive, sorted
    :ivar digests: the ``diffusion.data.base.digest`` of each image
    :ivar broken: why a file was left out, by name
    :ivar pixels: the decoded images; a read-only map of the cache file where there is one
    :ivar brightest: the largest value of all pixels; None if a cache of an older version does not say
    :ivar captions: whether captions lie beside the images
    """

    names: list[str]
    digests: UInt8[np.ndarray, "n 16"]
    broken: dict[str, str]
    pixels: UInt8[np.ndarray, "n c h w"]
    brightest: int | None = None
    captions: bool = False


def default_cache() -> Path:
    """``thaw`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thaw"


def choose_cache(cache: str | Path | Literal[False] | None) -> Path | None:
    """The folder that ``data.cache`` means; None for False, no cache."""
    return None if cache is False else Path(cache or default_cache()).expanduser()


def index(root: Path, decoder: Decoder, cache: Path | None) -> Index:
    """Indexes the folder or zip at ``root``, or takes the index from the folder ``cache`` if nothing has changed since.

    The pixels go straight into the cache, as ``.pixels``, bytes in the order (n, c, h, w), and need no memory. Beside
    them is a ``.json`` with the rest; its digests prove the pixels whenever they are taken. Files that cannot be
    decoded are left out, with a warning. A damaged cache is rebuilt. Without a cache, and with a warning where it
    cannot be written, the pixels are in memory.

    :raises UserError: there is no folder or zip, or not one readable image in it
    """
    with open_archive(root) as archive:
        entries = archive.entries()
        others = describe_others(archive.others)
        if not entries:
            wanted = "files that end in " + " ".join(SUFFIXES)
            raise UserError(f"no images in {root}" + (f", but {others}" if others else ""), wanted,
                            f"data.root={suggest_root(root) or '/path/to/images'}")
        if others:
            logger.warning("not read in %s: %s", root, others)
        work = _Decoding(root, archive, entries, decoder)
        found = None if cache is None else work.cached(cache)
        found = found or work.in_memory()
    if found.broken:
        _warn(root, found.broken, len(entries))
    if found.brightest is not None and found.brightest < DARK:
        logger.warning("dark: the brightest pixel of all images in %s is %d of 255; 16-bit grey is scaled by its whole "
                       "range, of which 12-bit values use 6 %%: scale the files up if that is not meant", root,
                       found.brightest)
    return replace(found, captions=has_captions(found.names, archive.texts))


@dataclass(frozen=True)
class _Decoding:
    """The files of an archive that is open, and what to make of them."""

    root: Path
    archive: Archive
    entries: list[Entry]
    decoder: Decoder

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image."""
        return self.decoder.channels, self.decoder.size, self.decoder.size

    def cached(self, cache: Path) -> Index | None:
        """The index from the folder ``cache``, made there if need be; None if it cannot be written."""
        place = f"{self.root.resolve()} {astuple(self.decoder)} {FORMAT}"
        store = cache / f"{self.root.stem}-{_hash([place])[:16]}.pixels"
        key = _hash(chain([place], (f"{entry.name} {entry.bytes} {entry.stamp}" for entry in self.entries)))
        try:
            return make_once(store, lambda: _load(store, key, self.shape), lambda: self._store(store, key),
                             f"{self.root} is being decoded")
        except (OSError, WriteError) as error:
            reason = error.got if isinstance(error, WriteError) else error
            logger.warning("the decoded images cannot be kept in %s (%s); they stay in memory and will be decoded "
                           "again the next time; data.cache=/a/folder/that/can/be/written avoids that", cache, reason)
            return None

    def in_memory(self) -> Index:
        pixels = np.empty((len(self.entries), *self.shape), np.uint8)
        rows = iter(pixels)
        record, _ = self.run(lambda image: np.copyto(next(rows), image))
        return _index(record, pixels[: len(record["names"])])

    def run(self, keep: Callable[[UInt8[np.ndarray, "c h w"]], object]) -> tuple[dict[str, Any], bool]:
        """Decodes all files and calls ``keep`` with the pixels of each in turn.

        :returns: names, digests in hexadecimal and broken files, and whether this may be kept: a file that the system
            failed to deliver may be there the next time
        """
        start, names, digests, failed, brightest = time.monotonic(), [], [], {}, 0
        size = _per_task(self.shape)
        tasks = (self.entries[first : first + size] for first in range(0, len(self.entries), size))
        results = chain.from_iterable(in_order(self._decode, tasks))
        for entry, result in zip(self.entries,
                                 progress(results, len(self.entries), f"decoding {self.root.name}"), strict=True):
            if isinstance(result, Exception):
                failed[entry.name] = result
            else:
                keep(result[0])
                brightest = max(brightest, int(result[0].max()))
                names.append(entry.name)
                digests.append(result[1].hex())
        logger.info("decoded %d images of %s in %.1f s", len(names), self.root, time.monotonic() - start)
        broken = {name: explain(error) for name, error in failed.items()}
        if not names:
            name, reason = next(iter(broken.items()))
            raise UserError(f"none of the {len(broken)} images in {self.root} can be read; {name}: {reason}",
                            "image files that Pillow can open", "data.root=/path/to/images")
        lasting = not any(_is_of_the_system(error) for error in failed.values())
        return {"names": names, "digests": "".join(digests), "broken": broken, "brightest": brightest}, lasting

    def _decode(self, entries: list[Entry]) -> list[tuple[UInt8[np.ndarray, "c h w"], bytes] | Exception]:
        results = []
        for entry in entries:
            try:
                pixels = np.ascontiguousarray(self.decoder(self.archive.read(entry.name)))
                results.append((pixels, digest(pixels)))
            # Pillow's readers raise whatever comes up in them, SyntaxError and struct.error included.
            except Exception as error:
                results.append(error)
        return results

    def _store(self, store: Path, key: str) -> Index:
        record: dict[str, Any] = {}

        def write(file: IO[bytes]) -> None:
            found, lasting = self.run(lambda image: file.write(image.data))
            # Without a key, nobody takes it from the cache again.
            record.update({"key": key if lasting else None} | found)
            record["sum"] = hash_plain(record, 16)

        if shutil.disk_usage(store.parent).free < len(self.entries) * math.prod(self.shape):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_whole(store, write)
        write_whole(store.with_suffix(".json"), lambda file: file.write(json.dumps(record).encode()))
        return _index(record, _mapped(store, len(record["names"]), self.shape))


def _is_of_the_system(error: Exception) -> bool:
    """Whether the machine failed rather than the file; what Pillow raises about content has no errno."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


def _load(store: Path, key: str, shape: tuple[int, int, int]) -> Index | None:
    """The stored index, or None if there is none, or it is of other content, or damaged."""
    try:
        record = json.loads(store.with_suffix(".json").read_bytes())
        if record.pop("sum") != hash_plain(record, 16):
            raise ValueError("the index does not have the checksum in it")
        if record["key"] != key:
            return None
        found = _index(record, _mapped(store, len(record["names"]), shape))
        size = _per_task(shape)
        tasks = ((found.pixels[first : first + size], found.digests[first : first + size])
                 for first in range(0, len(found.names), size))
        if not all(in_order(_is_sound, tasks)):
            raise ValueError("the pixels do not have the digests in the index")
        return found
    except FileNotFoundError:
        return None
    # Damaged bytes can provoke any error in the parsers, and all of them mean the same.
    except Exception as error:
        logger.warning("the cache %s is damaged and will be rebuilt (%s)", store, error)
        return None


def _is_sound(part: tuple[UInt8[np.ndarray, "n c h w"], UInt8[np.ndarray, "n 16"]]) -> bool:
    return all(digest(image) == expected.tobytes() for image, expected in zip(*part, strict=True))


def _mapped(store: Path, count: int, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "n c h w"]:
    if store.stat().st_size != count * math.prod(shape):
        raise ValueError(f"{store.stat().st_size} bytes for {count} images")
    return np.memmap(store, np.uint8, "r", shape=(count, *shape))


def _index(record: dict[str, Any], pixels: UInt8[np.ndarray, "n c h w"]) -> Index:
    digests = np.frombuffer(bytes.fromhex(record["digests"]), np.uint8).reshape(len(pixels), 16)
    return Index(record["names"], digests, record["broken"], pixels, record.get("brightest"))


def _per_task(shape: tuple[int, int, int]) -> int:
    return max(1, min(256, TASK // math.prod(shape)))


def _hash(texts: Iterator[str] | list[str]) -> str:
    whole = hashlib.sha256()
    for text in texts:
        # A file name need not be valid text.
        whole.update(text.encode(errors="surrogateescape") + b"\n")
    return whole.hexdigest()


def _warn(root: Path, broken: dict[str, str], total: int) -> None:
    shown = "; ".join(f"{name} ({reason})" for name, reason in list(broken.items())[:NAMES_SHOWN])
    more = f"; and {len(broken) - NAMES_SHOWN} more" if len(broken) > NAMES_SHOWN else ""
    logger.warning("left out %d of %d files in %s that cannot be read: %s%s", len(broken), total, root, shown, more)
