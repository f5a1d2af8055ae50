"""Every image of an archive, decoded once: pixels, names, sizes and what could not be read, kept in a cache."""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8

from configs.errors import UserError
from diffusion.data.archive import SUFFIXES, Archive, Entry, opened
from diffusion.data.decode import Decoder
from diffusion.data.progress import progress

logger = logging.getLogger(__name__)

FORMAT = 1
"""Part of every key; to be raised when the same file comes to decode to other pixels."""

NAMES_SHOWN = 10


@dataclass(frozen=True)
class Index:
    """The readable images of an archive, in the order of their names.

    :ivar key: a hash of where the archive is, what its files are, and how they are decoded
    :ivar names: paths inside the archive, sorted
    :ivar sizes: width and height of each image, upright, before cropping
    :ivar broken: why a file was left out, by name
    :ivar pixels: the decoded images; a read-only map of the cache file where there is one
    """

    key: str
    names: list[str]
    sizes: list[tuple[int, int]]
    broken: dict[str, str]
    pixels: UInt8[np.ndarray, "n c h w"]


def default_cache() -> Path:
    """``thaw`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thaw"


def index(root: Path, decoder: Decoder, cache: Path | None) -> Index:
    """Indexes the folder or zip at ``root``, or takes the index from the folder ``cache`` if nothing has changed since.

    Files that cannot be decoded are left out, with a warning. A damaged cache is rebuilt; one that cannot be written
    is done without, with a warning.

    :raises UserError: there is no folder or zip, or not one readable image in it
    """
    with opened(root) as archive:
        entries = archive.entries()
        if not entries:
            wanted = "files that end in " + " ".join(SUFFIXES)
            raise UserError(f"no images in {root}", wanted, "data.root=/path/to/images")
        place = f"{root.resolve()} {astuple(decoder)} {FORMAT}"
        key = _hash(place + repr([astuple(entry) for entry in entries]))
        store = None if cache is None else cache / f"{root.stem}-{_hash(place)[:16]}.npy"
        found = None if store is None else _load(store, key)
        if found is None:
            found, lasting = _decode_all(archive, entries, decoder, key, root)
            if store is not None and lasting and _save(store, found):
                # The map lets go of the memory that the pixels took.
                found = _load(store, key) or found
    if found.broken:
        _warn(root, found.broken, len(entries))
    return found


def _decode_all(archive: Archive, entries: list[Entry], decoder: Decoder, key: str, root: Path) -> tuple[Index, bool]:
    """The index, and whether it may be kept: a file that the system failed to deliver may be there the next time."""
    pixels = np.zeros((len(entries), decoder.channels, decoder.size, decoder.size), np.uint8)

    def decode(row: int) -> tuple[int, int] | Exception:
        try:
            pixels[row], full = decoder(archive.read(entries[row].name))
            return full
        # Pillow's readers raise whatever comes up in them, SyntaxError and struct.error included.
        except Exception as error:
            return error

    start = time.monotonic()
    # Pillow releases the interpreter lock while it decodes and resizes.
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        results = list(progress(pool.map(decode, range(len(entries))), len(entries), f"decoding {root.name}"))
    finally:
        pool.shutdown(cancel_futures=True)
    logger.info("decoded %d images of %s in %.1f s", len(entries), root, time.monotonic() - start)

    good = [row for row, result in enumerate(results) if isinstance(result, tuple)]
    failed = {entries[row].name: result for row, result in enumerate(results) if isinstance(result, Exception)}
    broken = {name: f"{type(error).__name__}: {error}" for name, error in failed.items()}
    if not good:
        name, reason = next(iter(broken.items()))
        raise UserError(f"none of the {len(entries)} images in {root} can be read; {name}: {reason}",
                        "image files that Pillow can open", "data.root=/path/to/images")
    names, sizes = [entries[row].name for row in good], [result for result in results if isinstance(result, tuple)]
    lasting = not any(_is_of_the_system(error) for error in failed.values())
    return Index(key, names, sizes, broken, pixels[good] if failed else pixels), lasting


def _is_of_the_system(error: Exception) -> bool:
    """Whether the machine failed rather than the file; what Pillow raises about content has no errno."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


def _load(store: Path, key: str) -> Index | None:
    """The stored index, or None if there is none, or it is of other content, or damaged."""
    try:
        record: dict[str, Any] = json.loads(store.with_suffix(".json").read_bytes())
        if record["key"] != key:
            return None
        pixels = np.load(store, mmap_mode="r")
        if _checksum(pixels) != record["sha256"]:
            raise ValueError("the pixels do not have the checksum in the index")
        sizes = [(width, height) for width, height in record["sizes"]]
        return Index(key, record["names"], sizes, record["broken"], pixels)
    except FileNotFoundError:
        return None
    # Damaged bytes can provoke any error in the two parsers, and all of them mean the same.
    except Exception as error:
        logger.warning("the cache %s is damaged and will be rebuilt (%s)", store, error)
        return None


def _save(store: Path, index: Index) -> bool:
    """Stores the pixels, and beside them the index, which has their checksum, so that a torn pair is noticed."""
    record = {"key": index.key, "names": index.names, "sizes": index.sizes, "broken": index.broken}
    text = json.dumps(record | {"sha256": _checksum(index.pixels)}).encode()
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_whole(store, lambda file: np.save(file, index.pixels))
        write_whole(store.with_suffix(".json"), lambda file: file.write(text))
        return True
    except OSError as error:
        logger.warning("the decoded images cannot be kept in %s (%s) and will be decoded again the next time; "
                       "data.cache=/a/folder/that/can/be/written avoids that", store.parent, error)
        return False


def _checksum(pixels: UInt8[np.ndarray, "n c h w"]) -> str:
    return hashlib.sha256(pixels.data).hexdigest()


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes the whole file or nothing."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            write(file)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _hash(text: str) -> str:
    # A file name need not be valid text.
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _warn(root: Path, broken: dict[str, str], total: int) -> None:
    shown = "; ".join(f"{name} ({reason})" for name, reason in list(broken.items())[:NAMES_SHOWN])
    more = f"; and {len(broken) - NAMES_SHOWN} more" if len(broken) > NAMES_SHOWN else ""
    logger.warning("left out %d of %d files in %s that cannot be read: %s%s", len(broken), total, root, shown, more)
