"""Shards, tar files of samples, with an index of each that is mapped into memory, and images by their place in them."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from configs.errors import UserError, WriteError
from configs.values import hash_plain
from diffusion.data.files.decode import Decoder, explain
from diffusion.data.files.progress import progress
from diffusion.data.files.samples import Scan, show_key
from diffusion.data.files.threads import in_order
from diffusion.runs.files import write_whole
from diffusion.runs.lock import make_once

logger = logging.getLogger(__name__)

FORMAT = 1
"""Part of every key; to be raised when an index comes to hold other things."""
PIECE = 16
"""Images that a thread decodes at a time."""
OPEN = 128
"""Shards that are kept open; systems allow some hundred files to a process."""


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is still the one that was indexed."""

    size: int
    mtime_ns: int

    @staticmethod
    def of(status: os.stat_result) -> "Stamp":
        return Stamp(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Shard:
    """The index of a tar file.

    :ivar path: of the tar file
    :ivar stamp: of the tar file
    :ivar columns: a row for each sample, see :class:`diffusion.data.files.samples.Scan`; a map of the cached file
    :ivar words: the contents of the ``.cls`` files
    :ivar fields: the names of the numbers in each field that is an object
    :ivar content: a hash of all that the samples are, whatever the name of the shard
    :ivar others: how many files are left aside, by their endings
    """

    path: Path
    stamp: Stamp
    columns: dict[str, np.ndarray]
    words: list[str]
    fields: dict[str, list[str] | None]
    content: str
    others: dict[str, int]

    def __len__(self) -> int:
        return len(self.columns["offset"])

    def key(self, row: int) -> bytes:
        """The key of a sample."""
        end = self.columns["end"]
        return self.columns["keys"][end[row - 1] if row else 0 : end[row]].tobytes()

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the tar file. May be called by several threads at once.

        :raises UserError: it is not the file any more that was indexed
        """
        try:
            file = _open(self.path, self.stamp)
            stamp, found = Stamp.of(os.fstat(file.number)), os.pread(file.number, size, offset)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror})", "the shards, as long as they are used",
                            "put it back, and give the same command again") from error
        if stamp != self.stamp:
            raise UserError(f"{self.path} has changed since it was indexed", "shards that do not change while they are "
                            "used", "give the same command again")
        return found


class _File:
    # Closed when nobody refers to it any more: a thread that refers to it does not lose the file that it reads.
    def __init__(self, path: Path, stamp: Stamp):
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)


_open = lru_cache(maxsize=OPEN)(_File)


def index_shards(paths: Sequence[Path], signals: Sequence[str], cache: Path | None) -> list[Shard]:
    """The index of each shard: the one in the folder ``cache`` if the file has not changed since, else one that is made
    of the headers and kept there. Without a cache, and with a warning where it cannot be written, it is in memory.

    :param signals: the fields of ``.json`` that are wanted
    :raises UserError: a file is no shard, or damaged; a key is in two places
    """
    work = in_order(lambda path: _index(path, signals, cache), paths)
    shards = list(progress(work, len(paths), "indexing shards"))
    _refuse_doubles(shards)
    others = sorted({ending for shard in shards for ending in shard.others})
    if others:
        counts = ", ".join(f"{sum(shard.others.get(ending, 0) for shard in shards)} {ending}" for ending in others[:8])
        logger.warning("not read in the shards: %s", counts)
    return shards


def _index(path: Path, signals: Sequence[str], cache: Path | None) -> Shard:
    try:
        stamp = Stamp.of(path.stat())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", "a readable file", "copy it again") from error
    name = hash_plain([str(path.resolve()), list(signals), FORMAT], 16)
    store = None if cache is None else cache / f"{path.stem[:100]}-{name}.shard"

    def make(place: Path) -> Shard:
        write_whole(place, _pack(Scan(path, signals), stamp))
        return _unpack(_map(place), path)

    try:
        if store is not None:
            return make_once(store, lambda: _load(store, path, stamp), lambda: make(store),
                             f"the index of {path.name} is being made")
    except (OSError, WriteError) as error:
        logger.warning("the index of %s cannot be kept (%s); data.cache=/a/folder/that/can/be/written avoids that",
                       path, error.got if isinstance(error, WriteError) else error)
    return _unpack(np.frombuffer(_pack(Scan(path, signals), stamp), np.uint8), path)


def _pack(scan: Scan, stamp: Stamp) -> bytes:
    """An index as bytes: the length of the record, the record as JSON, and the columns, each on a multiple of eight."""
    columns = {name: np.ascontiguousarray(column) for name, column in scan.columns.items()}
    body = b"".join(column.tobytes() + bytes(-column.nbytes % 8) for column in columns.values())
    record: dict[str, Any] = {
        "stamp": asdict(stamp), "members": scan.members, "words": list(scan.words), "fields": scan.fields,
        "content": scan.content, "others": dict(scan.others), "body": hashlib.blake2b(body).hexdigest(),
        "columns": [[name, column.dtype.str, list(column.shape)] for name, column in columns.items()]}
    head = json.dumps({**record, "sum": hash_plain(record, 16)}).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + body


def _unpack(raw: UInt8[np.ndarray, " n"], path: Path) -> Shard:
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    record, columns = json.loads(raw[8:start].tobytes()), {}
    for name, kind, shape in record["columns"]:
        end = start + int(np.prod(shape)) * np.dtype(kind).itemsize
        columns[name] = raw[start:end].view(kind).reshape(shape)
        start = end + -end % 8
    return Shard(path, Stamp(**record["stamp"]), columns, record["words"], record["fields"], record["content"],
                 record["others"])


def _map(store: Path) -> UInt8[np.ndarray, " n"]:
    # NumPy's maps keep the file open, and shards may be more than the files that a process may have open.
    return torch.from_file(str(store), shared=False, size=store.stat().st_size, dtype=torch.uint8).numpy()


def _load(store: Path, path: Path, stamp: Stamp) -> Shard | None:
    """The stored index, or None if there is none, or it is of other content, or damaged."""
    try:
        # Read, not mapped, since pages of a map that were touched count as the memory of the process.
        with store.open("rb") as file:
            record = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            if record.pop("sum") != hash_plain(record, 16):
                raise ValueError("the record does not have the checksum in it")
            if record["stamp"] != asdict(stamp):
                return None
            body = hashlib.blake2b()
            while part := file.read(2**20):
                body.update(part)
        if body.hexdigest() != record["body"]:
            raise ValueError("the columns do not have the checksum in the record")
        return _unpack(_map(store), path)
    except FileNotFoundError:
        return None
    # Damaged bytes can provoke any error in the parsers, and all of them mean the same.
    except Exception as error:
        logger.warning("the index %s is damaged and will be made anew (%s)", store, error)
        return None


def _refuse_doubles(shards: Sequence[Shard]) -> None:
    hashes = np.concatenate([shard.columns["hash"] for shard in shards])
    hashes.sort()  # in place, without a permutation, which few sets have a use for
    if (hashes[1:] != hashes[:-1]).all():
        return
    hashes = np.concatenate([shard.columns["hash"] for shard in shards])
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    starts = np.cumsum([0, *map(len, shards)])
    for place in np.flatnonzero(hashes[1:] == hashes[:-1]):
        pair = []
        for row in order[place : place + 2]:
            shard = int(np.searchsorted(starts, row, "right")) - 1
            pair.append((shards[shard].key(int(row - starts[shard])), shards[shard].path))
        if pair[0][0] == pair[1][0]:
            where = f"in {pair[0][1]} and in {pair[1][1]}" if pair[0][1] != pair[1][1] else f"twice in {pair[0][1]}"
            raise UserError(f"the key {show_key(pair[0][0])} {where}", "each key once, with its files side by side in "
                            "one shard", "data.root=SOME_OF_THEM, or make the shards again with other keys")


class ShardImages:
    """The images of some shards, one after the other, decoded whenever they are asked for.

    :ivar shape: ``(m, c, h, w)`` of all images
    """

    def __init__(self, shards: Sequence[Shard], decoder: Decoder):
        self.shards, self.decoder = list(shards), decoder
        self.starts = np.cumsum([0, *map(len, shards)])
        self.shape = (int(self.starts[-1]), decoder.channels, decoder.size, decoder.size)

    def find(self, row: int) -> tuple[Shard, int]:
        """The shard of a sample, and its row there."""
        shard = int(np.searchsorted(self.starts, row, "right")) - 1
        return self.shards[shard], row - int(self.starts[shard])

    def read(self, rows: Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        """The pixels of these rows, decoded by a thread for each core.

        :raises UserError: an image cannot be decoded
        """
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        pieces = list(zip(rows.split(PIECE), torch.from_numpy(pixels).split(PIECE), strict=True))
        for _ in in_order(self._fill, pieces) if len(pieces) > 1 else map(self._fill, pieces):
            pass
        return torch.from_numpy(pixels)

    def _fill(self, piece: tuple[Tensor, Tensor]) -> None:
        for row, place in zip(piece[0].tolist(), piece[1].numpy(), strict=True):
            place[:] = self._decode(row)

    def _decode(self, row: int) -> UInt8[np.ndarray, "c h w"]:
        shard, place = self.find(row)
        file = shard.read(int(shard.columns["offset"][place]), int(shard.columns["size"][place]))
        try:
            return self.decoder(file)
        # Pillow's readers raise whatever comes up in them.
        except Exception as error:
            raise UserError(f"the image of {show_key(shard.key(place))} in {shard.path} cannot be read: "
                            f"{explain(error)}", "images that Pillow can open", "shards without it: python "
                            "scripts/prepare_data.py SHARDS FOLDER --shards 1GB --skip-broken") from error
