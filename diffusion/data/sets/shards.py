"""Any number of images, in tar files that are read in place."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import astuple
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int64

from configs.errors import UserError
from configs.values import hash_plain
from diffusion.data.base import SPLITS, Data, ImageSet, Split
from diffusion.data.files.beside import take_line
from diffusion.data.files.captions import Encoded, check_captions, encode_captions
from diffusion.data.files.decode import Decoder
from diffusion.data.files.index import choose_cache
from diffusion.data.files.layout import NAMES_SHOWN, Labels, check_layout, name_split
from diffusion.data.files.places import find_shards
from diffusion.data.files.samples import MOST_CLASSES, show_key
from diffusion.data.files.shards import Shard, ShardImages, index_shards


class Shards(Data):
    """The images of local tar files in the layout of WebDataset: ``KEY.jpg``, or another image, with ``KEY.cls``,
    ``KEY.txt`` and ``KEY.json`` side by side, where KEY is the path up to the first dot in the file's name.

    An index of each shard, made of its headers, is kept in a cache until the shard changes, and mapped into memory;
    images are read at their place in the shards and decoded whenever they are asked for, as
    :class:`diffusion.data.sets.folder.Folder` does it. So a set needs memory for some numbers for each image, and no
    other disk.

    ``.cls`` is the signal ``label``: if all are whole numbers these are the labels, else the names of the classes,
    which are numbered in their order. A field of ``.json`` that ``signals`` names is a signal of that name, a number
    or a list or object of numbers. ``text`` in ``signals`` makes the signal ``text`` of the captions, as for a folder;
    :meth:`read_texts` reads them as they are.

    Held out are the shards ``test``, else the keys whose hash, as a share of the largest one, is below ``held_out``: a
    key keeps its split when shards are added. At least one image is held out of two or more, and never all.

    :param root: a folder of ``.tar`` files, one such file, a pattern (``FOLDER/train-*.tar``), or a list of these
    :param size: height and width, in pixels
    :param channels: 1 (grey) or 3 (RGB)
    :param crop: side of the central square as a share of the image's width, in (0, 1]; never more than the shorter side
    :param held_out: share of the keys for the test split, in [0, 1), where ``test`` names no shards
    :param test: shards that are held out, as for ``root``; relative places are looked for beside the first shard of
        ``root`` and then in the current folder. They are not trained on, if ``root`` has them, too
    :param resample: Pillow's filter for the resizing
    :param labels: "auto" takes the classes if there are any, True insists on them, False ignores them
    :param signals: fields of ``.json``, and ``text``, the captions
    :param words: how many words of the captions are known at most, the most frequent ones; or a list of them, which is
        another run's vocabulary
    :param length: of the captions in tokens; None is that of the longest one, at most 77
    :param cache: the folder to keep indices in; None for ``thaw`` in the user's cache folder, False for no cache
    :param flip: whether training may mirror the images
    :raises UserError: an argument is out of range; at the first use of the content, there are no shards, or one is not
        sound; when an image is read, it cannot be decoded
    """

    def __init__(self, root: str | Path | Sequence[str], size: int = 64, channels: int = 3, crop: float = 1.0,
                 held_out: float = 0.1, test: str | Path | Sequence[str] | None = None, resample: str = "bilinear",
                 labels: Labels = "auto", signals: Sequence[str] = (), cache: str | Path | Literal[False] | None = None,
                 flip: bool = False, words: int | Sequence[str] = 4096, length: int | None = None):
        super().__init__(size, channels, flip)
        check_layout(labels, held_out)
        check_captions(words, length)
        if isinstance(signals, str) or {"label", "weight"} & set(signals) or len({*signals}) < len(signals):
            raise UserError(f"data.signals={signals}", "a list of fields of .json, and text; label has its own files",
                            "data.signals=[FIELD], or []")
        self.root, self.test, self.held_out, self.labels = root, test, held_out, labels
        self.signals, self.words, self.length = tuple(signals), words, length
        self._fields = tuple(name for name in signals if name != "text")
        self.cache = choose_cache(cache)
        self.decoder = Decoder(size, channels, crop, resample)

    @cached_property
    def parts(self) -> dict[Split, list[Shard]]:
        """The shards of ``root`` and of ``test``."""
        paths = find_shards(self.root)
        test = [] if self.test is None else find_shards(self.test, "data.test", paths[0].parent)
        held = {path.resolve() for path in test}
        train = [path for path in paths if path.resolve() not in held]
        if not train:
            raise UserError(f"data.test={self.test}, which are all shards of data.root", "shards to train on, too",
                            "data.test=SOME_OF_THEM, or data.test=null to hold out some images of each")
        _refuse_splits(train)
        return {"train": index_shards(train, self._fields, self.cache),
                "test": index_shards(test, self._fields, self.cache) if test else []}

    @cached_property
    def classes(self) -> tuple[list[str], dict[str, int]] | None:
        """The names of the classes, and the label of each content of a ``.cls``; None without classes."""
        shards = [*self.parts["train"], *self.parts["test"]]
        words = sorted({word for shard in shards for word in shard.words})
        if self.labels is False or (not words and self.labels == "auto"):
            return None
        for shard in shards:
            lacking = np.flatnonzero(shard.columns["label"] < 0)
            if len(lacking):
                raise UserError(f"the key {show_key(shard.key(int(lacking[0])))} in {shard.path} without .cls",
                                "the class of every image", "data.labels=false")
        return number_classes(words)

    @property
    def class_names(self) -> list[str] | None:
        return None if self.classes is None else self.classes[0]

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        shards = [*self.parts["train"], *self.parts["test"]]
        for name in self._fields:
            kinds = {(shard.columns[f"signal.{name}"].shape[1:], str(shard.fields[name])) for shard in shards}
            if len(kinds) > 1:
                raise UserError(f"data.signals=[{name}], whose numbers differ between the shards",
                                "as many numbers, of the same names, in all of them", "data.signals=[]")
        fields, text = shards[0].fields, {}
        if "text" in self.signals:
            text = {"text": {"words": self._text.words, "length": self._text.length}}
        return super().described | {name: {"words": words} if (words := fields[name]) else {}
                                    for name in self._fields} | text

    def load(self, name: Split) -> ImageSet:
        images, rows = self._images(name)
        chosen = np.arange(images.shape[0]) if rows is None else rows
        signals = {}
        if self.classes is not None:
            signals["label"] = self._gather_labels(images, chosen)
        for field in self._fields:
            column = [shard.columns[f"signal.{field}"] for shard in images.shards]
            signals[field] = np.concatenate(column)[chosen] if column else np.zeros(0, np.float32)
        known = {key: torch.from_numpy(raw) for key, raw in signals.items()}
        if "text" in self.signals:
            first = 0 if name == "train" else self._count("train")
            known["text"] = self._text.tokens[first : first + len(chosen)]
        return ImageSet(images, known, torch.from_numpy(chosen))

    def files(self, name: Split) -> list[str]:
        """The key of each image of a split, in its order."""
        images, rows = self._images(name)
        found = (images.find(int(row)) for row in (range(images.shape[0]) if rows is None else rows))
        return [show_key(shard.key(row)) for shard, row in found]

    def read_texts(self, name: Split, places: Sequence[int]) -> list[str | None]:
        """The captions of the images at these places of a split; None where there is none."""
        images, rows = self._images(name)
        texts = []
        for place in places:
            shard, row = images.find(place if rows is None else int(rows[place]))
            offset, size = int(shard.columns["text"][row]), int(shard.columns["text_size"][row])
            texts.append(shard.read(offset, size).decode(errors="replace") if offset else None)
        return texts

    @cached_property
    def _text(self) -> Encoded:
        """The captions of both splits, one after the other."""
        captions = []
        for name in SPLITS:
            places = range(self._count(name))
            for place, text in zip(places, self.read_texts(name, places)):
                if text is None or "\ufffd" in text:
                    what = "without .txt" if text is None else "with a .txt that is no text in UTF-8"
                    raise UserError(f"the key {self.files(name)[place]} {what}", "a caption of every image, which may "
                                    "be empty", "data.signals=[]")
                captions.append(take_line(text)[0])
        return encode_captions(captions, self.words, self.length, str(self.root))

    def _count(self, name: Split) -> int:
        images, rows = self._images(name)
        return images.shape[0] if rows is None else len(rows)

    def _images(self, name: Split) -> tuple[ShardImages, Int64[np.ndarray, " n"] | None]:
        """The shards of a split, and which of their images it has; None for all."""
        if self.test is not None:
            return ShardImages(self.parts[name], self.decoder), None
        return ShardImages(self.parts["train"], self.decoder), np.flatnonzero(self._held == (name == "test"))

    @cached_property
    def _held(self) -> Bool[np.ndarray, " n"]:
        hashes = np.concatenate([shard.columns["hash"] for shard in self.parts["train"]])
        held = hashes < np.uint64(self.held_out * 2**64)
        if self.held_out > 0 and len(hashes) > 1:
            held[np.argmin(hashes)], held[np.argmax(hashes)] = True, False
        return held

    def _gather_labels(self, images: ShardImages, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        assert self.classes is not None
        labels = np.empty(len(rows), np.int64)
        places = np.searchsorted(rows, images.starts)
        for shard, start, a, b in zip(images.shards, images.starts, places, places[1:]):
            numbers = np.array([self.classes[1][word] for word in shard.words], np.int64)
            labels[a:b] = numbers[shard.columns["label"][rows[a:b] - start]]
        return labels

    def _digests(self, name: Split) -> bytes:
        # Of what the shards hold, not of the pixels: a terabyte is not read for it. Where they lie does not matter.
        contents = {part: [shard.content for shard in self.parts[part]] for part in SPLITS}
        return hashlib.sha256(hash_plain([contents, self.held_out, astuple(self.decoder)], 64).encode()).digest()


def number_classes(words: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """The names of the classes, and the label of each word: its value, if all words are whole numbers, else its place
    among the sorted words.

    :raises UserError: for too many, negative numbers, and an empty word
    """
    numbers = {word: int(word) for word in words if re.fullmatch("-?[0-9]{1,18}", word)}
    if len(numbers) < len(words):
        if len(words) > MOST_CLASSES or "" in words:
            raise UserError("an empty .cls" if "" in words else f"{len(words)} classes in .cls",
                            f"the names of at most {MOST_CLASSES} classes", "data.labels=false")
        ordered = sorted(words)
        return ordered, {word: label for label, word in enumerate(ordered)}
    if not 0 <= min(numbers.values()) <= max(numbers.values()) < MOST_CLASSES:
        raise UserError(f"classes from {min(numbers.values())} to {max(numbers.values())} in .cls",
                        f"whole numbers from 0 to below {MOST_CLASSES}", "data.labels=false")
    return [str(label) for label in range(max(numbers.values()) + 1)], numbers


def _refuse_splits(paths: Sequence[Path]) -> None:
    """Refuse shards that are splits by their names, such as ``train-000.tar`` and ``val-000.tar``."""
    splits = {split: path.name for path in reversed(paths) if (split := name_split(path.stem)) is not None}
    if "train" in splits and len(splits) > 1:
        held = splits.get("test") or splits["val"]
        raise UserError(f"the shards {', '.join(sorted(splits.values())[:NAMES_SHOWN])}, which are splits by their "
                        "names", "shards to train on alone in data.root, and those to hold out in data.test",
                        f"data.root='FOLDER/{splits['train'][:5]}*.tar' data.test='FOLDER/{held[:3]}*.tar'")
