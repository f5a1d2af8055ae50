"""One zip archive of a folder (or zip) of images, with an index of what is in it; or shards, tar files of some size.

``python scripts/prepare_data.py SOURCE OUT.zip [--size N] [--count N] [--skip-broken]``, then ``data=folder
data.root=OUT.zip``; ``python scripts/prepare_data.py --check OUT.zip`` compares an archive with its index.
``python scripts/prepare_data.py SOURCE FOLDER --shards 1GB``, then ``data=shards data.root=FOLDER``.

The same images give the same bytes: files in the order of their names, stored as they are, of one date. ``index.json``
in the zip has the name, width, height (upright), class (as ``data=folder`` sees it) and SHA-256 of each file, and
``content``, the SHA-256 of a line ``<SHA-256>  <name>`` per file, as ``sha256sum`` prints them. Shards have the class
as ``.cls`` beside each image; splits that the folders name become ``train-*.tar`` and ``test-*.tar``.
"""

import argparse
import hashlib
import json
import shlex
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from glob import has_magic
from pathlib import Path
from typing import IO, Any

from configs import compose, construct
from configs.errors import UserError, escape
from diffusion.data.base import SPLITS, Data
from diffusion.data.files.archive import describe_others, open_archive
from diffusion.data.files.decode import explain
from diffusion.data.files.layout import layout
from diffusion.data.files.pack import Sample, read_size, take_archive, take_data, take_shards, write_shards
from diffusion.data.files.places import find_shards
from diffusion.data.files.prepare import Prepared, prepared, rename
from diffusion.data.files.progress import progress
from diffusion.data.files.shards import index_shards
from diffusion.data.files.threads import in_order
from diffusion.runs.files import make_folder, write_whole

INDEX = "index.json"
SHOWN = 10


def prepare(source: Path, out: Path, size: int | None = None, count: int | None = None,
            skip_broken: bool = False) -> dict[str, Any]:
    """Writes the archive, whole or not at all, and gives its index.

    :param size: bring the shorter side of larger images down to so many pixels
    :param count: how many images there have to be
    :param skip_broken: leave out what cannot be read
    :raises UserError: there are no images, or another number, or broken ones; or ``out`` cannot be written
    """
    if size is not None and size < 1:
        raise UserError(f"--size {size}", "at least one pixel", "--size 64")
    if out.resolve() == source.resolve():
        raise UserError(f"{out} as source and as result", "another file for the result", "another name")
    index: dict[str, Any] = {}
    make_folder(out.parent)
    write_whole(out, lambda file: index.update(_write(source, file, size, count, skip_broken)))
    return index


def _write(source: Path, file: IO[bytes], size: int | None, count: int | None, skip_broken: bool) -> dict[str, Any]:
    broken: dict[str, Exception] = {}
    records: list[dict[str, Any]] = []
    with open_archive(source) as archive, zipfile.ZipFile(file, "w") as target:
        names = sorted((entry.name for entry in archive.entries()), key=lambda name: rename(name, size))
        if others := describe_others(archive.others):
            print(f"not read in {source}: {escape(others)}", file=sys.stderr)
        if not skip_broken:
            _compare(len(names), count)

        def work(name: str) -> Prepared | Exception:
            try:
                return prepared(name, archive.read(name), size)
            # Pillow's readers raise whatever comes up in them.
            except Exception as error:
                return error

        results = progress(in_order(work, names), len(names), f"preparing {source.name}")
        for name, result in zip(names, results, strict=True):
            if isinstance(result, Exception):
                broken[name] = result
            elif records and records[-1]["name"] == result.name:
                raise UserError(f"two images that would be named {result.name}", "one", "rename one of them")
            else:
                _add(target, result.name, result.data)
                records.append({"name": result.name, "width": result.width, "height": result.height,
                                "sha256": hashlib.sha256(result.data).hexdigest()})
        if broken:
            _report(broken, skip_broken)
        _compare(len(records), count)
        owners = _classes([record["name"] for record in records])
        files = [record | {"class": owner} for record, owner in zip(records, owners, strict=True)]
        index = {"content": _content(files), "count": len(files), "size": size, "files": files}
        _add(target, INDEX, json.dumps(index, indent=1).encode())
    return index


def _add(target: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o644 << 16
    target.writestr(entry, data)


def _classes(names: list[str]) -> list[str | None]:
    """The class of each image as ``data=folder`` finds it, None where it finds none."""
    try:
        found = layout(names, "auto", 0.0)
    except UserError:
        # Images beside class folders: for data.labels=false.
        return [None] * len(names)
    if found.labels is None or found.names is None:
        return [None] * len(names)
    return [found.names[label] for label in found.labels]


def _content(files: list[dict[str, Any]]) -> str:
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file['sha256']}  {file['name']}\n".encode())
    return whole.hexdigest()


def _compare(found: int, count: int | None) -> None:
    if count is not None and found != count:
        raise UserError(f"{found} images", f"{count}, as --count says", f"the missing ones, or --count {found}")


def _report(broken: dict[str, Exception], skip: bool) -> None:
    shown = [f"{name} ({explain(error)})" for name, error in list(broken.items())[:SHOWN]]
    more = [f"and {len(broken) - SHOWN} more"] if len(broken) > SHOWN else []
    words = f"{len(broken)} files that cannot be read:\n    " + "\n    ".join(shown + more)
    if not skip:
        raise UserError(words, "images that Pillow can open", "copy them again, or --skip-broken to leave them out")
    print("left out", escape(words), file=sys.stderr)


def check(path: Path) -> dict[str, Any]:
    """Compares every file of an archive with its index, and gives the index.

    :raises UserError: naming what is damaged, missing or too much, or there is no index
    """
    with open_archive(path) as archive:
        try:
            with zipfile.ZipFile(path) as file:
                index = json.loads(file.read(INDEX))
            expected = {file["name"]: file["sha256"] for file in index["files"]}
            content = index["content"]
        # A damaged archive, none at all, or one with another index.json.
        except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path} without a readable {INDEX} ({type(error).__name__}: {error})",
                            "an archive that this script made", "make it with SOURCE and OUT.zip") from error

        def sound(name: str) -> bool:
            try:
                return hashlib.sha256(archive.read(name)).hexdigest() == expected[name]
            except (OSError, zipfile.BadZipFile, zlib.error):
                return False

        there = {entry.name for entry in archive.entries()}
        both = sorted(there & expected.keys())
        results = progress(in_order(sound, both), len(both), f"checking {path.name}")
        wrong = [f"{name} is damaged" for name, fine in zip(both, results, strict=True) if not fine]
    wrong += [f"{name} is missing" for name in sorted(expected.keys() - there)]
    wrong += [f"{name} is not in the index" for name in sorted(there - expected.keys())]
    if not wrong and _content(index["files"]) != content:
        wrong = [f"the content hash in {INDEX} is not that of its files"]
    if wrong:
        more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        raise UserError(f"{path} is not what it was:\n    " + "\n    ".join(wrong[:SHOWN] + more),
                        "every file as in the index", "copy or make it again")
    return index


def pack(source: str, out: Path, most: int, size: int | None, count: int | None, skip_broken: bool) -> int:
    """Writes shards, all or none, and gives the number of their images.

    :param source: a folder or zip, shards, or the settings of a data set, ``data=NAME ...``
    :param most: bytes of a shard
    :raises UserError: as :func:`prepare`
    """
    if size is not None and size < 1:
        raise UserError(f"--size {size}", "at least one pixel", "--size 64")
    broken: dict[str, Exception] = {}
    found = 0

    def sound(samples: Iterable[Sample]) -> Iterator[Sample]:
        nonlocal found
        for sample in samples:
            if sample.error is not None:
                broken[sample.key] = sample.error
                continue
            found += 1
            yield sample
        if broken:
            _report(broken, skip_broken)
        _compare(found, count)
        if not found:
            raise UserError(f"no images in {source}", "at least one", "another SOURCE")

    def write(samples: Iterable[Sample], total: int) -> None:
        write_shards(sound(progress(samples, total, "packing")), out, most)

    if source.startswith("data="):
        data = construct(compose("train", shlex.split(source)).data, role=Data)
        write(take_data(data), sum(len(data.split(name)) for name in SPLITS if name == "train" or data.holds_out))
    elif _are_shards(source):
        paths = find_shards(source)
        write(take_shards(paths, size), sum(map(len, index_shards(paths, (), None))))
    else:
        with open_archive(Path(source)) as archive:
            write(take_archive(archive, size), len(archive.entries()))
    return found


def _are_shards(source: str) -> bool:
    """Whether this is a tar file, a pattern, or a folder of tar files."""
    path = Path(source)
    return path.suffix.lower() == ".tar" or has_magic(source) or any(path.glob("*.tar"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="folder or zip of images; with --shards also "
                        "shards, or the settings of a data set in quotes: 'data=cifar10 data.root=data'")
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT", help="the archive, or the folder of shards, to "
                        "write")
    parser.add_argument("--size", type=int, help="shrink larger images to so many pixels on the shorter side")
    parser.add_argument("--shards", metavar="SIZE", help="write tar files of at most 100MB, 1GB, ... for data=shards")
    parser.add_argument("--count", type=int, help="refuse unless there are exactly so many images")
    parser.add_argument("--skip-broken", action="store_true", help="leave out files that cannot be read")
    parser.add_argument("--check", type=Path, metavar="OUT.zip", help="compare an archive with its index instead")
    given = parser.parse_args()
    if (given.check is None) == (given.out is None):
        parser.error("give SOURCE and OUT, or --check OUT.zip")
    try:
        if given.check:
            index = check(given.check)
        elif given.shards is None:
            index = prepare(Path(given.source), given.out, given.size, given.count, given.skip_broken)
        else:
            found = pack(given.source, given.out, read_size(given.shards), given.size, given.count, given.skip_broken)
            print(f"{given.out}: {found} images in {len(list(given.out.glob('*.tar')))} shards")
            return 0
    except UserError as error:
        print(str(error).replace("data.root=", ""), file=sys.stderr)
        return 2
    print(f"{given.check or given.out}: {index['count']} images, content {index['content']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
