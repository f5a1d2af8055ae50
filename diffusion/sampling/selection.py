"""Which samples: ``samples=`` and ``label=`` of ``sample.py``, image by image."""

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from configs import UserError
from diffusion.data.base import digest
from diffusion.model import Model
from diffusion.recipe import Recipe
from diffusion.sampling.inputs import Inputs
from diffusion.sampling.manifest import Sample


def samples(model: Model, cfg: DictConfig, inputs: Inputs | None, recipe: Recipe | None = None) -> list[Sample]:
    """The entries of the manifest for all samples that the config asks for."""
    label = list(cfg.label) if isinstance(cfg.label, ListConfig) else cfg.label
    if cfg.samples is not None:
        indices = parse(cfg.samples)
    elif inputs is not None:
        indices = range(len(inputs) if cfg.input.root else min(16, len(inputs)))
    else:
        indices = range(len(label) if isinstance(label, list) else 16)
    if inputs is not None and max(indices) >= len(inputs):
        raise UserError(f"samples={cfg.samples} of {len(inputs)} images", f"indices below {len(inputs)}",
                        f"samples=0-{len(inputs) - 1}")
    labels = classes_of(model, label, indices, inputs, recipe)
    entries: list[Sample] = [{"file": f"{i:06d}.png", "index": i, "label": c, "seed": cfg.seed}
                             for i, c in zip(indices, labels)]
    if inputs is None:
        return entries
    for entry in entries:
        i = entry["index"]
        entry["source"] = inputs.sources[i] if inputs.sources else None
        entry["pixels"] = digest(inputs.images.batch(torch.tensor([i]))[0][0].numpy()).hex()
        entry["file"] = inputs.files[i] if inputs.files else entry["file"]
    return entries


def classes_of(model: Model, label: Any, indices: Sequence[int], inputs: Inputs | None,
               recipe: Recipe | None = None) -> list[int] | list[None]:
    """The class of each sample, None for no condition: the one that was asked for; else that of the image to restore;
    else they go through the classes.

    :raises UserError: if the model knows no such class, or there is not one for each sample
    """
    classes = model.classes(recipe)
    if label is None and inputs is not None and inputs.images.labels is not None and classes is not None:
        label = inputs.images.labels[torch.tensor(indices)].tolist()
    if label == "none" or (label is None and (inputs is not None or classes is None)):
        return [None] * len(indices)
    if isinstance(label, list) and (not label or len(label) != len(indices)):
        raise UserError(f"{len(label)} labels for {len(indices)} samples", "one for each, or one for all",
                        f"samples=0-{len(label) - 1}, or label={label[0] if label else 0}")
    if not all(type(c) is int for c in (label if isinstance(label, list) else [label or 0])):
        raise UserError(f"label={label}", "a class or a list of them, by their numbers, or none",
                        "label=3, label=[0,1,2] or label=none")
    return model.labels(indices, label, recipe)


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
        if not len(indices) or not all(type(i) is int and i >= 0 for i in indices):
            raise ValueError
    except ValueError:
        raise UserError(f"samples={samples}", "a range, a number or a list", "samples=0-63") from None
    if len(set(indices)) < len(indices):
        raise UserError(f"samples={samples}, some of them twice: one index is one file", "different indices",
                        f"samples=[{','.join(map(str, dict.fromkeys(indices)))}]")
    return indices
