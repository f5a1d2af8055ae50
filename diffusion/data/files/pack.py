"""Shards made of a folder, an archive, other shards or a data set; the same images give the same bytes."""

import json
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from configs.errors import UserError
from diffusion.data.base import SPLITS, Data
from diffusion.data.files.archive import Archive
from diffusion.data.files.captions import join_words
from diffusion.data.files.layout import Layout, layout
from diffusion.data.files.prepare import prepared, rename
from diffusion.data.files.samples import IMAGES, list_samples, show_key
from diffusion.data.files.shards import index_shards
from diffusion.data.files.tar import BLOCK, RECORD
from diffusion.data.files.threads import in_order
from diffusion.runs.files import make_folder, write_whole

ALL = "images"
"""How the shards of images without splits are called."""
UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


@dataclass(frozen=True)
class Sample:
    """An image and what belongs to it: the files by their endings.

    :ivar shards: how its shards are called: ``train``, ``test`` or ``images``
    :ivar error: why the image cannot be read; its files do not count then
    """

    shards: str
    key: str
    files: Mapping[str, bytes]
    error: Exception | None = None


def read_size(text: str) -> int:
    """Bytes of ``100MB``, ``1GB`` or ``1.5GB``, in powers of 1000.

    :raises UserError: for anything else
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([kmgt]b)", text.strip().lower())
    if match is None or not float(match[1]):
        raise UserError(f"--shards {text}", "a size in kB, MB, GB or TB", "--shards 1GB")
    return max(1, int(float(match[1]) * UNITS[match[2]]))


def write_shards(samples: Iterator[Sample], folder: Path, most: int) -> list[str]:
    """Writes samples one after the other into tar files ``NAME-00000.tar``, each of at most ``most`` bytes unless a
    single sample has more; all of them or none.

    :param folder: must be empty, or not there
    :return: the names of the files
    :raises UserError: the folder is not empty, two samples have one key, or it cannot be written
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}, where something is already", "a new or an empty folder", "another name")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    keys: set[tuple[str, str]] = set()
    names: list[str] = []
    coming = next(samples, None)

    def write(file: IO[bytes]) -> None:
        nonlocal coming
        first, used = coming, 0
        while coming is not None and first is not None and coming.shards == first.shards:
            data = b"".join(_pack(f"{coming.key}.{ending}", content) for ending, content in coming.files.items())
            if used and used + len(data) + RECORD > most:
                break
            if (coming.shards, coming.key) in keys:
                raise UserError(f"two images that would have the key {coming.key}", "one", "rename one of them")
            keys.add((coming.shards, coming.key))
            file.write(data)
            used += len(data)
            coming = next(samples, None)
        file.write(bytes(2 * BLOCK + -(used + 2 * BLOCK) % RECORD))

    try:
        while coming is not None:
            number = sum(name.startswith(f"{coming.shards}-") for name in names)
            names.append(f"{coming.shards}-{number:05d}.tar")
            write_whole(partial / names[-1], write)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return names


def _pack(name: str, content: bytes) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + content + bytes(-len(content) % BLOCK)


def take_archive(archive: Archive, size: int | None) -> Iterator[Sample]:
    """The images of a folder or zip in the order of their names, with their classes as ``.cls`` and splits where their
    folders say so, as ``data=folder`` sees them. What cannot be read comes with its error.

    :param size: bring the shorter side of larger images down to so many pixels
    """
    names = sorted((entry.name for entry in archive.entries()), key=lambda name: rename(name, size))
    try:
        found = layout(names, "auto", 0.0)
    except UserError:  # images beside class folders
        found = Layout(np.arange(len(names)), np.zeros(0, np.int64), None, None)
    splits = dict.fromkeys(found.test.tolist(), "test") | dict.fromkeys(found.train.tolist(), "train")

    def work(row: int) -> Sample:
        shards = splits[row] if found.splits else ALL
        try:
            image = prepared(names[row], archive.read(names[row]), size)
        # Pillow's readers raise whatever comes up in them.
        except Exception as error:
            return Sample(shards, names[row], {}, error)
        folder, slash, last = image.name.rpartition("/")
        stem, _, ending = last.rpartition(".")
        files = {ending.lower(): image.data}
        if found.labels is not None and found.names is not None:
            files["cls"] = found.names[found.labels[row]].encode()
        return Sample(shards, folder + slash + stem.replace(".", "_"), files)  # a dot would end the key

    # One kind of shards after the other.
    return in_order(work, sorted(splits, key=lambda row: (splits[row] == "test", row)))


def take_shards(paths: Sequence[Path], size: int | None) -> Iterator[Sample]:
    """The samples of other shards, in their order, with all their files.

    :raises UserError: for shards that are not sound
    """
    index_shards(paths, (), None)

    def read() -> Iterator[Sample]:
        for path in paths:
            with path.open("rb") as file:
                for key, parts in list_samples(file):
                    files = {}
                    for ending, (member,) in parts.items():
                        file.seek(member.offset)
                        files[ending] = file.read(member.size)
                    yield Sample(ALL, key.decode(errors="surrogateescape"), files)

    def work(sample: Sample) -> Sample:
        ending = next(ending for ending in sample.files if ending in IMAGES)
        try:
            image = prepared(f"image.{ending}", sample.files[ending], size)
        # Pillow's readers raise whatever comes up in them.
        except Exception as error:
            return Sample(ALL, show_key(sample.key.encode(errors="surrogateescape")), {}, error)
        others = {name: content for name, content in sample.files.items() if name != ending}
        return replace(sample, files={image.name.rpartition(".")[2]: image.data, **others})

    return in_order(work, read())


def take_data(data: Data) -> Iterator[Sample]:
    """Both splits of a data set as PNG files, with their classes as ``.cls``, captions as ``.txt`` and other signals as
    ``.json``."""
    words = data.class_names
    for split in SPLITS:
        if split == "test" and not data.holds_out:
            return
        place = 0
        for images, signals in data.split(split).chunks():
            for row, pixels in enumerate(images.numpy()):
                file = BytesIO()
                Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, "PNG")
                files = {"png": file.getvalue()}
                if words is not None:
                    files["cls"] = words[int(signals["label"][row])].encode()
                fields = {name: _name_numbers(raw[row].tolist(), data.described.get(name, {}).get("words"))
                          for name, raw in signals.items() if name not in ("label", "text")}
                if "text" in signals:
                    files["txt"] = join_words(signals["text"][row].tolist(), data.described["text"]["words"]).encode()
                if fields:
                    files["json"] = json.dumps(fields).encode()
                yield Sample(split, f"{place:08d}", files)
                place += 1


def _name_numbers(numbers: object, words: Sequence[str] | None) -> object:
    return dict(zip(words, numbers)) if words and isinstance(numbers, list) else numbers
