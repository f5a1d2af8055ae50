"""Samples in parts, by one process or several: each part is drawn at once and is whole or absent; whoever has drawn the
last one joins them. The result does not depend on who has drawn which part, or how often it was interrupted.

While parts are missing, those that are there lie in the folder ``.parts``. The name of each tells of which samples it
is, and how they are made, so that nothing else has to be written down.
"""

import contextlib
import json
import logging
import shutil
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

from configs import UserError
from configs.values import hash_plain
from diffusion.data.pixels import to_uint8
from diffusion.pictures import save_each
from diffusion.runs.files import make_folder, write_whole
from diffusion.runs.lock import Held, Lock
from diffusion.runs.memory import peak
from diffusion.runs.share import Share
from diffusion.sampling.archives import ARCHIVES, Archive, write_members
from diffusion.sampling.inputs import find_root, log_changes
from diffusion.sampling.job import Job, require_finite
from diffusion.sampling.manifest import Manifest, Sample, drop_free, read_manifest, require_same
from diffusion.sampling.showing import Shown, describe_captions
from diffusion.sampling.watchers import Bar

log = logging.getLogger(__name__)

FOLDER = ".parts"
MOST = 1000
"""Samples of a part of an archive."""
MOST_BYTES = 2**28
"""Bytes of pixels of a part: it is in memory until it is written."""
COSTS = "costs.json"


class Parts:
    """Where the parts of the samples of a folder lie.

    :param folder: of the samples
    :param record: how they are made, see :class:`diffusion.sampling.manifest.Manifest`
    :param blocks: the samples of each part
    :param archive: what the samples become; None for a PNG each, which is written at once: a part says that they are
        there
    """

    def __init__(self, folder: Path, record: dict[str, Any], blocks: Sequence[Sequence[Sample]],
                 archive: Archive | None):
        self.folder, self.blocks, self.archive = folder, blocks, archive
        self.place = folder / FOLDER
        made = [record["checkpoint"], drop_free(record["settings"])]
        self.paths = [self.place / f"{k:06d}.{hash_plain([made, block], 16)}.part" for k, block in enumerate(blocks)]

    def begin(self, record: dict[str, Any], overwrite: bool) -> None:
        """Make the place.

        :param overwrite: throw away what is there
        :raises UserError: if parts are there that are made otherwise
        """
        if overwrite:
            self.remove()
        there = read_manifest(self.place, f"overwrite=true, or remove {self.place}")
        if there:
            require_same(self.folder, there, record, overwrite)
        make_folder(self.place)
        write_whole(self.place / "manifest.json", json.dumps(record | {"samples": [], "pictures": {}}, indent=2))

    def has(self, k: int) -> bool:
        """Whether a part is there."""
        return self.paths[k].is_file() and (self.archive is not None or all(
            (self.folder / entry["file"]).is_file() for entry in self.blocks[k]))

    def list_missing(self) -> list[int]:
        """The parts that are not there."""
        return [k for k in range(len(self.blocks)) if not self.has(k)]

    def save(self, k: int, members: Sequence[tuple[str, bytes]], costs: dict[str, Any]) -> None:
        """Write a part.

        :param members: the samples' names and bytes, for an archive
        :param costs: what the drawing has cost
        """
        make_folder(self.place)
        write_whole(self.paths[k], lambda file: write_members(file, [*members, (COSTS, json.dumps(costs).encode())]))

    def read(self) -> Iterator[tuple[str, bytes]]:
        """The names and bytes of all samples, in order."""
        for path, block in zip(self.paths, self.blocks, strict=True):
            with open_part(path) as part:
                for entry in block:
                    yield entry["file"], part.read(entry["file"])

    def sum_costs(self) -> dict[str, float]:
        """What all parts have cost together; of the memory, the most."""
        costs: dict[str, float] = {}
        for path in self.paths:
            with open_part(path) as part:
                for name, value in json.loads(part.read(COSTS)).items():
                    costs[name] = max(costs.get(name, 0), value) if name == "bytes" else costs.get(name, 0) + value
        return costs

    def remove(self) -> None:
        """Throw all parts away."""
        shutil.rmtree(self.place, ignore_errors=True)


def draw_parts(job: Job, manifest: Manifest, share: Share) -> None:
    """Draw this process's share of what the folder of the manifest lacks, and join the parts if they are all there."""
    cfg, twins, archive = job.cfg, job.cfg.twins, ARCHIVES.get(job.cfg.format)
    # In an archive, samples lie as the manifest lists them.
    asked = sorted(job.asked, key=lambda entry: (entry["index"], entry["file"])) if archive else job.asked
    shown = Shown(job, asked)
    todo = [i for i, entry in enumerate(asked) if cfg.overwrite or not manifest.has(entry)]
    rows = {i // twins * twins + k for i in todo for k in range(twins)} if not archive else \
        set(range(len(asked) if todo else 0))
    order = [asked[i] for i in sorted(rows)]
    size = max(twins, cfg.batch // twins * twins)  # a batch has all twins of a sample
    most = min(MOST, MOST_BYTES // prod(job.model.image_shape)) if archive else size
    length = max(twins, most // twins * twins)
    parts = Parts(manifest.folder, manifest.record, split(order, length), archive)
    if not order and manifest.shows(shown.record):
        parts.remove()  # of a process that was killed when it had joined them
        log.info("samples to draw: 0 of %d", len(asked))
        return
    parts.begin(manifest.record, cfg.overwrite)
    mine = [k for k in share.cut(len(parts.blocks)) if not parts.has(k)]
    log.info("samples to draw: %d of %d%s", sum(len(parts.blocks[k]) for k in mine), len(asked),
             describe_captions(job))
    if mine and job.inputs and cfg.input.root:
        log_changes(find_root(cfg), [entry["source"] for k in mine for entry in parts.blocks[k]],
                    job.inputs.side)
    bar = Bar(job.steps * sum(-(-len(parts.blocks[k]) // size) for k in mine))
    try:
        for k in mine:
            if not parts.has(k):  # another process may have come in between
                parts.save(k, *draw_part(job, parts.blocks[k], size, manifest.folder, archive, bar))
        missing = parts.list_missing()
        if missing:
            log.info("parts that are there: %d of %d; whoever draws the last one joins them",
                     len(parts.blocks) - len(missing), len(parts.blocks))
            return
        first = (some for block in split(asked, length) for some in split(block, size))
        join_once(job, manifest, parts, shown, first)
    except KeyboardInterrupt:
        log.info("what is whole is in %s; the same command goes on", manifest.folder)
        raise
    finally:
        bar.close()


def draw_part(job: Job, block: Sequence[Sample], size: int, folder: Path, archive: Archive | None,
              bar: Bar) -> tuple[list[tuple[str, bytes]], dict[str, Any]]:
    """Draw the samples of a part, ``size`` at a time; gives the names and bytes for the archive, and what it has
    cost."""
    members, begin = [], time.monotonic()
    with job.count() as counts, peak(job.model.device) as memory:
        for some in split(block, size):
            images = job.batch(some, [bar])[job.title]
            require_finite(images, some)
            names = [entry["file"] for entry in some]
            if archive is None:
                save_each(images, folder, names)
            else:
                members += zip(names, map(archive.encode, to_uint8(images).numpy()), strict=True)
    return members, {**counts, "bytes": memory.bytes or 0, "seconds": time.monotonic() - begin}


def join_once(job: Job, manifest: Manifest, parts: Parts, shown: Shown, batches: Iterable[Sequence[Sample]]) -> None:
    """Join the parts, unless another process does or has done it."""
    lock = Lock(parts.place / "lock", f"the parts of {manifest.folder} are being joined")
    try:
        lock.take()
    except Held:
        log.info("all parts are there; another process joins them")
        return
    except FileNotFoundError:  # with the folder of the parts
        log.info("another process has joined the parts")
        return
    try:
        if parts.list_missing():
            log.info("another process has joined the parts")
            return
        join(job, manifest, parts, shown, batches, lock)
    finally:
        lock.release()
    parts.remove()


def join(job: Job, manifest: Manifest, parts: Parts, shown: Shown, batches: Iterable[Sequence[Sample]],
         lock: Lock) -> None:
    """Write what the folder holds in the end: the archive, the pictures, the manifest; in this order, so that it can be
    done again whenever it is interrupted.

    :param batches: the samples as they are drawn: the first ones are drawn again for the pictures
    """
    order, archive, drawn = [entry for block in parts.blocks for entry in block], parts.archive, 0
    if order and archive:
        shape = (len(order), *job.model.image_shape)
        write_whole(manifest.folder / archive.file, lambda file: archive.write(file, parts.read(), shape))
    for some in batches:
        if drawn >= shown.first:
            break
        shown.add(job.batch(some, shown.callbacks))
        drawn += len(some)
    lock.check()
    shown.save(manifest.folder, archive.file if archive else None)
    if order:
        manifest.record_costs(parts.sum_costs(), len(order))
    manifest.pictures |= shown.record
    manifest.add(order)
    manifest.write()


@contextlib.contextmanager
def open_part(path: Path) -> Iterator[zipfile.ZipFile]:
    """A part for reading.

    :raises UserError: if it is damaged
    """
    try:
        with zipfile.ZipFile(path) as part:
            yield part
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}", "a part as sample.py wrote it",
                        "remove the file, and give the same command again") from error


def split(order: Sequence[Sample], size: int) -> list[Sequence[Sample]]:
    """Pieces of this size, the last one perhaps shorter."""
    return [order[first:first + size] for first in range(0, len(order), size)]
