"""Which samples, and under which condition: ``samples=``, ``label=`` and other signals of ``sample.py``."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from configs import UserError
from degradations.randomness import Streams
from diffusion.data.base import CHUNK, Data, digest
from diffusion.data.pixels import to_float
from diffusion.model import Model
from diffusion.recipe import Recipe
from diffusion.sampling.inputs import Inputs, read_photos
from diffusion.sampling.manifest import Sample
from diffusion.sampling.texts import PAIR
from models.context import Condition
from models.readers import Reader, is_for_each, is_none

log = logging.getLogger(__name__)

MOST = 10**7
"""Samples that one command takes."""


def choose_indices(cfg: DictConfig, inputs: Inputs | None,
                   asked: Mapping[str, list[Any]] | None = None) -> Sequence[int]:
    """The indices of all samples that the config asks for.

    :param asked: by name, what was asked of signals with a value for each sample
    :raises UserError: if there is no such image to restore
    """
    lengths = list(map(len, (asked or {}).values()))
    if cfg.samples is not None:
        indices = parse(cfg.samples)
    elif inputs is not None:
        indices = range(len(inputs) if cfg.input.root else min(16, len(inputs)))
    else:
        indices = range(max(lengths) if lengths and max(lengths) else 16)
    if inputs is not None and max(indices) >= len(inputs):
        raise UserError(f"samples={cfg.samples} of {len(inputs)} images", f"indices below {len(inputs)}",
                        f"samples=0-{len(inputs) - 1}")
    if cfg.twins > 1 and cfg.samples is None and inputs is None:
        several = bool(lengths) and max(lengths) > cfg.twins
        indices = range(max(lengths) // cfg.twins if several else 16)
    return [i for i in indices for _ in range(cfg.twins)]


def spread_over_twins(asked: Mapping[str, list[Any]], twins: int, count: int) -> dict[str, Any]:
    """What was asked of the signals, where a list of as many values as there are twins is one for each twin.

    :param asked: by name, a list of values
    :param count: of samples, twins counted
    """
    return {name: value * (count // twins) if len(value) == twins > 1 else value for name, value in asked.items()}


def list_samples(indices: Sequence[int], cfg: DictConfig, inputs: Inputs | None,
                 written: Sequence[dict[str, Any]]) -> list[Sample]:
    """The entries of the manifest for these samples.

    :param written: the condition of each, see :func:`write_condition`
    """
    entries: list[Sample] = [{"file": f"{i:06d}.png", "index": i, "condition": one, "seed": cfg.seed}
                             for i, one in zip(indices, written, strict=True)]
    for entry in entries:
        if inputs is None:
            break
        i = entry["index"]
        entry["source"] = inputs.sources[i] if inputs.sources else None
        entry["pixels"] = digest(inputs.images.batch(torch.tensor([i]))[0][0].numpy()).hex()
        entry["file"] = inputs.files[i] if inputs.files else entry["file"]
    for row, entry in enumerate(entries if cfg.twins > 1 else ()):
        twin = PAIR[row % 2] if cfg.to else row % cfg.twins
        entry["file"] = f"{entry['file'].removesuffix('.png')}-{twin}.png"
    return entries


class Conditions:
    """The raw signals of samples: what was asked for; else those of the image to restore; else what is usual, such as
    all classes in turn; else those of the held-out images in turn. They are read a chunk at a time: signals that are
    images may be more than fit into memory.

    :param indices: of all samples
    :param asked: by name, see :meth:`diffusion.model.Model.condition`; of a signal that is an image, a folder of
        images, or ``{"of": FOLDER}``, photos of which the run's source makes it
    :param data: gives the run's data; only asked where there is no other way
    :param pool: so many held-out images are taken in turn; None takes all
    :raises UserError: if a signal is unknown, cannot be read, or is missing and has to be given
    """

    def __init__(self, model: Model, recipe: Recipe, indices: Sequence[int], asked: Mapping[str, Any],
                 inputs: Inputs | None, data: Callable[[], Data], pool: int | None = None):
        self.model, self.recipe, self.indices, self.asked = model, recipe, indices, dict(asked)
        readers = model.readers(recipe)
        self._photos: dict[str, Inputs] = {}
        self._each = []
        for name, reader in readers.items():
            value = self.asked.get(name)
            if isinstance(value, Mapping):
                self._photos[name] = _find_photos(model, name, value)
            elif reader.picture is not None and isinstance(value, str) and not is_none(value):
                self._photos[name] = _find_pictures(value, name, *reader.picture)
            elif is_for_each(reader, value, len(indices)):
                self._each.append(name)
        self._missing = [name for name, reader in readers.items() if self.asked.get(name) is None
                         and (inputs is not None or reader.usual(indices) is None)]
        self._images = inputs
        if self._missing and inputs is None:
            try:
                held_out = data().split("test")
                self._images = Inputs(held_out if pool is None else held_out.choose(torch.arange(len(held_out))[:pool]))
                log.info("%s: of the held-out images, in turn", ", ".join(self._missing))
            except UserError as error:
                log.info("%s: not given, and the run's data are not there (%s)", ", ".join(self._missing), error.got)
        self._read = lru_cache(maxsize=2)(self._read_chunk)

    def take(self, rows: Sequence[int]) -> Condition:
        """The raw signals of the samples in these rows, on the CPU."""
        parts = []
        for chunk, some in groupby(rows, lambda row: row // CHUNK):
            places = [row % CHUNK for row in some]
            parts.append({name: raw[places] for name, raw in self._read(chunk).items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @property
    def from_images(self) -> list[str]:
        """Names of the signals that are those of the image to restore, or of a held-out one."""
        return [] if self._images is None else self._missing

    def take_facts(self, rows: Sequence[int]) -> Condition:
        """All that the data say about these images, which may be more than the model is told; nothing without them."""
        if not self.from_images or self._images is None:
            return {}
        places = torch.tensor([self.indices[row] % len(self._images) for row in rows])
        return dict(self._images.images.choose(places).signals)

    def write(self) -> list[dict[str, Any]]:
        """The condition of each sample in words, for manifests."""
        written = []
        for rows in self._chunks():
            written += write_condition(self.model, self.recipe, self._read(rows.start // CHUNK), len(rows))
        return written

    def whole(self) -> Condition:
        """The raw signals of all samples, where these are few."""
        return self.take(range(len(self.indices)))

    def show(self, rows: Sequence[int], taken: Condition) -> dict[str, Tensor]:
        """What the conditions of these samples look like, by caption, in [-1, 1]: signals that are grey or coloured
        images of the samples' size, and the held-out images from which signals were taken.

        :param taken: what :meth:`take` gives for these rows
        """
        channels, side, _ = self.model.image_shape
        found = {}
        for name, reader in self.model.readers(self.recipe).items():
            if reader.picture in ((1, side), (channels, side)) and name in taken:
                raw = taken[name]
                found[name] = (raw if raw.is_floating_point() else to_float(raw)).expand(-1, channels, -1, -1)
        if self._missing and self._images is not None and len(self._images):
            places = torch.tensor([self.indices[row] % len(self._images) for row in rows])
            found["held-out image"] = to_float(self._images.images.batch(places)[0])
        return found

    def _chunks(self) -> Iterator[range]:
        n = len(self.indices)
        return (range(first, min(first + CHUNK, n)) for first in range(0, n, CHUNK))

    def _read_chunk(self, chunk: int) -> Condition:
        model, rows = self.model, slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        indices = list(self.indices[rows])
        known = self.asked | {name: self.asked[name][rows] for name in self._each}
        for name, photos in self._photos.items():
            places = [i % len(photos) for i in indices]
            known[name] = derive_signals(model, photos, places)[name] if isinstance(self.asked[name], Mapping) \
                else to_float(photos.images.batch(torch.tensor(places))[0])
        if self._missing:
            own: Condition = {}
            if self._images is not None:
                own = derive_signals(model, self._images, [i % len(self._images) for i in indices])
            known |= {name: own.get(name, "none") for name in self._missing}
        condition = model.condition(indices, known, self.recipe)
        model.weights.encoder({name: raw[:1].to(model.device) for name, raw in condition.items()}, n=1)  # all are there
        return condition


def derive_signals(model: Model, images: Inputs, indices: Sequence[int]) -> Condition:
    """The raw signals of images, those that the run's sources make of them included, on the CPU."""
    encoder, places = model.weights.encoder, torch.tensor(indices)
    if not len(encoder.sources):
        return dict(images.images.choose(places).signals)
    chunks = []
    for some in places.split(CHUNK):
        pixels, signals = images.images.batch(some)
        made = encoder.derive(to_float(pixels).to(model.device), {k: v.to(model.device) for k, v in signals.items()},
                              Streams(0, tuple(some.tolist()), model.device))
        chunks.append({name: raw.cpu() for name, raw in made.items()})
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def write_condition(model: Model, recipe: Recipe, condition: Condition, n: int) -> list[dict[str, Any]]:
    """The condition of each of n samples in words, for manifests."""
    readers = model.readers(recipe)
    columns = {name: readers[name].write(raw) for name, raw in condition.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(n)]


def caption_conditions(readers: Mapping[str, Reader], written: Sequence[dict[str, Any]]) -> list[str]:
    """The condition of each sample, as it stands above a picture; an empty list where nothing was asked."""
    captions = [", ".join(readers[name].caption(value) for name, value in one.items() if readers[name].picture is None)
                for one in written]
    return captions if all(captions) else []


def _find_photos(model: Model, name: str, asked: Mapping[str, Any]) -> Inputs:
    sources = model.weights.encoder.sources
    if name not in sources or set(asked) != {"of"}:
        raise UserError(f"{name}.{'/'.join(map(str, asked))}", f"{name}=VALUE, or {name}.of=PHOTOS for a signal that a "
                        f"source makes of photos; sources: {', '.join(sources) or 'none'}", f"{name}=...")
    reads = getattr(sources[name], "reads", ())
    if reads:
        raise UserError(f"{name}.of={asked['of']}, photos whose {', '.join(reads)} nobody knows, of which {name} is "
                        "made", f"{name}=VALUE, or nothing, which takes those of the held-out images", f"{name}=...")
    channels, side, _ = model.image_shape
    return read_photos(Path(str(asked["of"])).expanduser(), side, channels)


def _find_pictures(folder: str, name: str, channels: int, side: int) -> Inputs:
    if channels not in (1, 3):
        raise UserError(f"{name}={folder} for a signal of {channels} channels", "grey or colour pictures",
                        f"a tensor from Python: model.sample(..., {name}=TENSOR)")
    try:
        return read_photos(Path(folder).expanduser(), side, channels)
    except UserError as error:
        raise UserError(error.got, error.wanted, error.fix.replace("input=", f"{name}=")) from error


def parse(samples: Any) -> Sequence[int]:
    """``"0-63"``, ``7`` or ``[1, 5]`` as indices.

    :raises UserError: for anything else
    """
    try:
        if isinstance(samples, str):
            first, dash, last = samples.partition("-")
            indices = range(int(first), int(last if dash else first) + 1)
        else:
            indices = list(samples) if isinstance(samples, ListConfig | list | tuple) else [samples]
        few = len(indices) <= MOST
        if not len(indices) or (few and not all(type(i) is int and i >= 0 for i in indices)):
            raise ValueError
    except ValueError:
        raise UserError(f"samples={samples}", "a range, a number or a list", "samples=0-63") from None
    if not few:
        raise UserError(f"samples={samples}", f"at most {MOST} at a time", f"samples=0-{MOST - 1}")
    if len(set(indices)) < len(indices):
        raise UserError(f"samples={samples}, some of them twice: one index is one file",
                        "different indices, or twins=2 for several pictures of each",
                        f"samples=[{','.join(map(str, dict.fromkeys(indices)))}]")
    return indices
