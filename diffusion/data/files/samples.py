"""The samples in a shard: files of one key, side by side, of which one is an image (the layout of WebDataset)."""

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np

from configs.errors import UserError
from configs.values import read_limit
from diffusion.data.files.archive import LITTER, MOST_BYTES, SUFFIXES
from diffusion.data.files.tar import Member, list_members

IMAGES = frozenset(suffix[1:] for suffix in SUFFIXES)
MOST_TEXT = 2**20
"""Bytes of a ``.cls``, ``.txt`` or ``.json`` file."""
MOST_CLASSES = 2**16
COLUMNS = {"offset": "q", "size": "I", "text": "q", "text_size": "I", "label": "i", "end": "I"}
"""Numbers that are kept of each sample, and their types."""
TAIL = 512
"""Bytes at the end of each image that the hash of a shard sees, beside the image's key and size."""


class Scan:
    """What is in a shard, as columns with a row for each sample, in the order of the archive.

    :ivar columns: ``offset`` and ``size`` of the image's bytes, ``text`` and ``text_size`` of those of the caption (0
        where there is none), ``label``, a place in ``words`` or -1, ``hash`` of the key, ``end``, where the key ends in
        ``keys``, all keys one after the other, and ``signal.NAME`` for each field of ``.json`` that is asked for
    :ivar words: the contents of the ``.cls`` files
    :ivar fields: the names of the numbers in each field that is an object
    :ivar others: how many files are left aside, by their endings
    :ivar members: files in the archive
    :ivar content: a hash of keys, classes, captions, fields, and of the sizes and ends of the images
    """

    def __init__(self, path: Path, signals: Sequence[str]):
        """:raises UserError: the file is no shard, or a sample is not as it should be"""
        self.path, self.signals = path, tuple(signals)
        self.words: dict[str, int] = {}
        self.fields: dict[str, list[str] | None] = {}
        self.others: Counter[str] = Counter()
        self._numbers = {name: array(kind) for name, kind in COLUMNS.items()}
        self._hashes, self._keys = array("Q"), bytearray()
        self._values: dict[str, array[float]] = {name: array("f") for name in self.signals}
        self._widths: dict[str, int] = {}
        self._whole = hashlib.blake2b(digest_size=32)
        self._most = min(2**32 - 1, read_limit("MOST_BYTES", MOST_BYTES))
        try:
            with path.open("rb", buffering=2**14) as file:
                self.members = sum(self._add(file, key, parts) for key, parts in list_samples(file))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})", "a readable file",
                            "change its permissions, or copy it again") from error
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is no sound shard: {error}", "an uncompressed tar archive of plain files",
                            "copy or make it again, or leave it out of data.root") from error
        if not self._hashes:
            raise UserError(f"{path} is an empty shard", "at least one image",
                            "make it again, or leave it out of data.root")
        self.content = self._whole.hexdigest()

    @property
    def columns(self) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        found |= {name: np.frombuffer(values, values.typecode) for name, values in self._numbers.items()}
        found |= {"hash": np.frombuffer(self._hashes, np.uint64), "keys": np.frombuffer(self._keys, np.uint8)}
        for name, values in self._values.items():
            shape = (len(self._hashes), *([self._widths[name]] if self._widths[name] else []))
            found[f"signal.{name}"] = np.frombuffer(values, np.float32).reshape(shape)
        return found

    def _add(self, file: IO[bytes], key: bytes, parts: dict[str, list[Member]]) -> int:
        """Take in one sample; gives the number of its files."""
        double = next((ending for ending, members in parts.items() if len(members) > 1), None)
        if double is not None:
            raise self._refuse(key, f"twice with the ending .{double}")
        images = [ending for ending in parts if ending in IMAGES]
        if len(images) != 1:
            there = ", ".join(f".{ending}" for ending in (images or parts))
            raise self._refuse(key, f"with the images {there}" if images else f"with {there} and no image beside it")
        (image,) = parts[images[0]]
        if image.size > self._most:
            raise self._refuse(key, f"of {image.size / 2**20:.0f} MB, more than the {self._most / 2**20:.0f} MB of an "
                               f"image file (THAW_MOST_BYTES={image.size} allows it)")
        word, text = (self._read(file, key, parts[ending][0]) if ending in parts else None for ending in ("cls", "txt"))
        label = -1 if word is None else self.words.setdefault(self._decode(key, word, "cls").strip(), len(self.words))
        if len(self.words) > MOST_CLASSES:
            raise UserError(f"more than {MOST_CLASSES} classes in {self.path}", "an integer or the name of a class in "
                            ".cls", "data.labels=false; captions are .txt")
        caption = parts["txt"][0] if "txt" in parts else Member(b"", 0, 0)
        self._keys += key
        self._hashes.append(hash_key(key))
        for column, number in zip(self._numbers.values(), (image.offset, image.size, caption.offset, caption.size,
                                                           label, len(self._keys))):
            column.append(number)
        file.seek(image.offset + max(0, image.size - TAIL))
        seen = [key, str(image.size).encode(), file.read(min(TAIL, image.size)), word, text]
        if self.signals:
            seen.append(self._take_fields(key, self._read(file, key, parts["json"][0]) if "json" in parts else b"{}"))
        for each in seen:
            self._whole.update(b"-" if each is None else b"%d " % len(each) + each)
        self.others.update(f".{ending}" for ending in parts
                           if ending not in IMAGES and ending not in ("cls", "txt", "json"))
        return len(parts)

    def _take_fields(self, key: bytes, content: bytes) -> bytes:
        """Take in the fields of a ``.json`` that are asked for; gives what was taken, for the hash."""
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._refuse(key, f"with a .json that cannot be read: {str(error).splitlines()[0]}") from error
        taken = []
        for name in self.signals:
            value = found.get(name) if isinstance(found, dict) else None
            words = list(value) if isinstance(value, dict) else None
            if isinstance(value, dict):
                known = self.fields.get(name) or list(value)
                words = known if set(known) == set(value) else words
                value = [value[word] for word in words or ()]
            numbers = value if isinstance(value, list) else [value]
            width = len(value) if isinstance(value, list) else 0
            if not numbers or not all(isinstance(number, int | float) for number in numbers):
                raise self._refuse(key, f"without a number, or numbers, {name} in its .json")
            if (width, words) != (self._widths.setdefault(name, width), self.fields.setdefault(name, words)):
                raise self._refuse(key, f"with other numbers {name} in its .json than those before it")
            taken.append(array("f", map(_narrow, numbers)))
            if not np.isfinite(taken[-1]).all():
                raise self._refuse(key, f"with numbers {name} in its .json that are not finite")
            self._values[name].extend(taken[-1])
        return b"".join(each.tobytes() for each in taken)

    def _read(self, file: IO[bytes], key: bytes, member: Member) -> bytes:
        if member.size > MOST_TEXT:
            raise self._refuse(key, f"with a text of {member.size} bytes, more than {MOST_TEXT}")
        file.seek(member.offset)
        return file.read(member.size)

    def _decode(self, key: bytes, content: bytes, ending: str) -> str:
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self._refuse(key, f"with a .{ending} that is no text (UTF-8)") from error

    def _refuse(self, key: bytes, what: str) -> UserError:
        return UserError(f"the key {show_key(key)} in {self.path} {what}", "for each key one image, and its .cls, .txt "
                         "and .json side by side with it in the same shard", "make the shards again: "
                         "python scripts/prepare_data.py SOURCE FOLDER --shards 1GB")


def list_samples(file: IO[bytes]) -> Iterator[tuple[bytes, dict[str, list[Member]]]]:
    """The files of each key that lie side by side, by their endings. The key is the path up to the first dot in the
    file's name, the ending what follows it, in lower case. Hidden files are passed over.

    :raises ValueError: as :func:`diffusion.data.files.tar.list_members`
    """
    members = list_members(file, os.fstat(file.fileno()).st_size)
    split = ((*split_name(member.name), member) for member in members)
    shown = (one for one in split if not any(part.startswith(b".") or part.decode(errors="replace") in LITTER
                                             for part in one[0].split(b"/")) and one[1])
    for key, group in groupby(shown, lambda one: one[0]):
        parts: dict[str, list[Member]] = {}
        for _, ending, member in group:
            parts.setdefault(ending, []).append(member)
        yield key, parts


def split_name(name: bytes) -> tuple[bytes, str]:
    """Key and ending of a file: ``cats/001.seg.png`` is ``cats/001`` and ``seg.png``."""
    folder, slash, last = name.rpartition(b"/")
    stem, _, ending = last.partition(b".")
    return (folder + slash + stem if stem else name), ending.decode(errors="replace").lower()


def hash_key(key: bytes) -> int:
    """64 bits that decide whether a sample is held out."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def show_key(key: bytes) -> str:
    """A key in words."""
    return key.decode(errors="backslashreplace")


def _narrow(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf")
