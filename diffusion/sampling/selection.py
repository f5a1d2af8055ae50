"""Which samples, and under which condition: ``samples=``, ``label=`` and other signals of ``sample.py``."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from configs import UserError
from configs.values import to_plain
from degradations.randomness import Streams
from diffusion.data.base import CHUNK, Data, digest
from diffusion.data.pixels import to_float
from diffusion.model import Model
from diffusion.recipe import Recipe
from diffusion.sampling.inputs import Inputs, read_photos
from diffusion.sampling.manifest import Sample
from models.context import Condition
from models.readers import Reader, is_none

log = logging.getLogger(__name__)

MOST = 10**7
"""Samples that one command takes."""


def choose_indices(cfg: DictConfig, inputs: Inputs | None) -> Sequence[int]:
    """The indices of all samples that the config asks for.

    :raises UserError: if there is no such image to restore
    """
    lengths = [len(value) for value in to_plain(cfg.condition).values() if isinstance(value, list)]
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
        indices = range(16)
    return [i for i in indices for _ in range(cfg.twins)]


def spread_over_twins(asked: Mapping[str, Any], twins: int, count: int) -> dict[str, Any]:
    """What was asked of the signals, where a list of as many values as there are twins is one for each twin.

    :param count: of samples, twins counted
    """
    return {name: value * (count // twins) if isinstance(value, list) and len(value) == twins > 1 else value
            for name, value in asked.items()}


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
        entry["file"] = f"{entry['file'].removesuffix('.png')}-{row % cfg.twins}.png"
    return entries


def read_condition(model: Model, recipe: Recipe, indices: Sequence[int], asked: Mapping[str, Any],
                   inputs: Inputs | None, data: Callable[[], Data]) -> Condition:
    """The raw signals of samples: what was asked for; else those of the image to restore; else what is usual, such as
    all classes in turn; else those of the held-out images in turn.

    :param asked: by name, see :meth:`diffusion.model.Model.condition`; of a signal that is an image, a folder of
        images, or ``{"of": FOLDER}``, photos of which the run's source makes it
    :param data: gives the run's data; only asked where there is no other way
    :raises UserError: if a signal is unknown, cannot be read, or is missing and has to be given
    """
    readers, known = model.readers(recipe), dict(asked)
    for name, reader in readers.items():
        if isinstance(known.get(name), Mapping):
            known[name] = _derive(model, name, known[name], indices)
        elif reader.picture is not None and isinstance(known.get(name), str) and not is_none(known[name]):
            channels, side = reader.picture
            known[name] = _images(known[name], name, side, channels, indices)
    missing = [name for name, reader in readers.items() if known.get(name) is None
               and (inputs is not None or reader.usual(indices) is None)]
    if missing and inputs is not None:
        own = derive_signals(model, inputs, indices)
        known |= {name: own.get(name, "none") for name in missing}
    elif missing:
        try:
            held_out = Inputs(data().split("test"))
            own = derive_signals(model, held_out, [i % len(held_out) for i in indices])
            log.info("%s: of the held-out images, in turn", ", ".join(missing))
        except UserError as error:
            log.info("%s: not given, and the run's data are not there (%s)", ", ".join(missing), error.got)
            own = {}
        known |= {name: own.get(name, "none") for name in missing}
    condition = model.condition(indices, known, recipe)
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


def _derive(model: Model, name: str, asked: Mapping[str, Any], indices: Sequence[int]) -> Tensor:
    sources = model.weights.encoder.sources
    if name not in sources or set(asked) != {"of"}:
        raise UserError(f"{name}.{'/'.join(map(str, asked))}", f"{name}=VALUE, or {name}.of=PHOTOS for a signal that a "
                        f"source makes of photos; sources: {', '.join(sources) or 'none'}", f"{name}=...")
    channels, side, _ = model.image_shape
    found = read_photos(Path(str(asked["of"])).expanduser(), side, channels)
    return derive_signals(model, Inputs(found.images), [i % len(found) for i in indices])[name]


def _images(folder: str, name: str, side: int, channels: int, indices: Sequence[int]) -> Tensor:
    try:
        found = read_photos(Path(folder).expanduser(), side, channels)
    except UserError as error:
        raise UserError(error.got, error.wanted, error.fix.replace("input=", f"{name}=")) from error
    return to_float(found.images.batch(torch.tensor([i % len(found) for i in indices]))[0])


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
