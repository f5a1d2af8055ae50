"""What a run was told when it made images, and what is found of it in them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from configs.values import to_plain
from diffusion.data.base import CHUNK, ImageSet
from diffusion.data.pixels import to_float
from diffusion.evaluation.bench import EvaluationContext
from diffusion.metrics.base import Features, Images
from diffusion.metrics.evidence import Evidence, Identities, MapPair, VectorPair
from diffusion.metrics.extractors.base import Extractor
from diffusion.metrics.likeness import Gallery, find_first
from diffusion.objectives.regression import VectorRegressor
from diffusion.sampling.inputs import Inputs
from diffusion.sampling.selection import Conditions, derive_signals
from diffusion.sampling.texts import read_texts
from models.conditioning import ImageSignal
from models.context import Condition
from models.sources import FOUND, Source

log = logging.getLogger(__name__)

PICTURED = ("reference", "source", "label")
"""What has to be known about images to judge whose digit they show."""
Tell = Callable[[Int64[Tensor, " b"]], tuple[Condition, Condition]]
"""From rows of images to the raw signals that they were made of, and to what is known besides of what was asked for,
since the signals are those of held-out images of which more is known."""


class References(NamedTuple):
    """The references that images were told.

    :ivar r: embeddings of length 1
    :ivar source: which thing each shows
    :ivar label: its class
    """

    r: Float[Tensor, "n d"]
    source: Int[Tensor, " n"]
    label: Int[Tensor, " n"]


@dataclass(frozen=True)
class Asked:
    """What a set of images was asked to show, before networks have looked at it.

    :ivar maps: by signal
    :ivar vector: the numbers that the judge knows about
    :ivar references: by signal
    :ivar gallery: the references of all held-out images
    """

    maps: dict[str, MapPair] = field(default_factory=dict)
    vector: Float[Tensor, "n k"] | None = None
    references: dict[str, References] = field(default_factory=dict)
    gallery: Gallery | None = None

    @property
    def known(self) -> bool:
        """Whether anything was asked for that can be looked for."""
        return bool(self.maps or self.references or self.vector is not None)


def tell_samples(bench: EvaluationContext) -> Tell:
    """What the samples of a run are made of, in their order."""
    cfg = bench.cfg
    asked = read_texts(bench.model.readers(bench.recipe), to_plain(cfg.condition))
    conditions = Conditions(bench.model, bench.recipe, range(cfg.count), asked, None, lambda: bench.data, cfg.pool)

    def tell(rows: Int64[Tensor, " b"]) -> tuple[Condition, Condition]:
        raw, facts = conditions.take(rows.tolist()), conditions.take_facts(rows.tolist())
        return raw, keep_true(bench, facts, conditions.from_images)

    return tell


def tell_held_out(bench: EvaluationContext, images: ImageSet) -> Tell:
    """What held-out images would have to be told to be made."""
    readers = bench.model.readers(bench.recipe)

    def tell(rows: Int64[Tensor, " b"]) -> tuple[Condition, Condition]:
        raw = derive_signals(bench.model, Inputs(images), rows.tolist())
        return {name: value for name, value in raw.items() if name in readers}, images.batch(rows)[1]

    return tell


def keep_true(bench: EvaluationContext, facts: Condition, taken: list[str]) -> Condition:
    """Of what is known about held-out images, what is true of samples that were told some of it: the signals that they
    were told, and those of which their sources make a signal that they were told.

    :param taken: names of the signals that were told of held-out images
    """
    sources = bench.model.weights.encoder.sources
    true = {*taken, *(read for name in taken if name in sources for read in list_inputs(sources[name]))}
    if "reference" in true:
        true |= {*PICTURED}
    return {name: raw for name, raw in facts.items() if name in true}


def list_inputs(source: torch.nn.Module) -> list[str]:
    """The signals of which a source makes its own."""
    return [*source.reads, *source.takes] if isinstance(source, Source) else []


def find_asked(bench: EvaluationContext, images: Images, tell: Tell) -> Asked:
    """What a set of images was asked to show.

    :param images: in whose pixels maps are found again
    :param tell: says what they were told
    """
    parts: list[Asked] = []
    for rows in torch.arange(len(images)).split(CHUNK):
        raw, facts = tell(rows)
        parts.append(Asked(find_maps(bench, images, rows, raw), take_vector(bench, {**facts, **raw}),
                           take_references(bench, facts)))
    gallery = make_gallery(bench) if parts[0].references else None
    vectors = [part.vector for part in parts if part.vector is not None]
    return Asked({name: MapPair(torch.cat([part.maps[name].told for part in parts]),
                                torch.cat([part.maps[name].seen for part in parts])) for name in parts[0].maps},
                 torch.cat(vectors) if vectors else None,
                 {name: References(*map(torch.cat, zip(*(part.references[name] for part in parts), strict=True)))
                  for name in parts[0].references}, gallery)


def find_maps(bench: EvaluationContext, images: Images, rows: Int64[Tensor, " b"],
              raw: Condition) -> dict[str, MapPair]:
    """The maps that were asked for, and those of the images, of each signal of which images say it."""
    encoder, found = bench.model.weights.encoder, {}
    x = to_float(images.batch(rows)[0])
    for name, signal in encoder.readers.items():
        if not isinstance(signal, ImageSignal) or name not in raw:
            continue
        told = (signal.scale(raw[name]) > 0).any(1)
        seen = find_map(dict(encoder.sources.items()).get(name), name, x)
        if seen is not None and seen.shape == told.shape:
            found[name] = MapPair(told, seen)
    return found


def find_map(source: torch.nn.Module | None, name: str,
             images: Float[Tensor, "b c h w"]) -> Bool[Tensor, "b h w"] | None:
    """Where the map of a signal would be above 0, as far as images say it.

    :param source: of the signal; None for one that the data give
    """
    if isinstance(source, Source):
        return source.find(images)
    return FOUND[name](images) if source is None and name in FOUND else None


def take_vector(bench: EvaluationContext, told: Condition) -> Float[Tensor, "b k"] | None:
    """The numbers that were asked for and that the judge reads in images."""
    judge = bench.judge
    if judge is None or not isinstance(judge.classifier, VectorRegressor) or judge.signal not in told:
        return None
    vector = told[judge.signal].flatten(1).float()
    return vector if vector.shape[1] == len(judge.classifier.words) else None


def take_references(bench: EvaluationContext, facts: Condition) -> dict[str, References]:
    """The embedding of the references that were told, by the name of the signal that was made of them."""
    if not all(name in facts for name in PICTURED) or bench.embedding is None:
        return {}
    r = bench.embedding(facts["reference"]).values
    return dict.fromkeys(bench.identities, References(r, facts["source"], facts["label"]))


def make_gallery(bench: EvaluationContext) -> Gallery:
    """The embeddings of a reference of each thing in the held-out images."""
    assert bench.embedding is not None
    known = bench.data.split("test").signals
    first = find_first(known["source"])
    r = [bench.embedding(known["reference"][rows]).values for rows in first.split(CHUNK)]
    return Gallery(torch.cat(r), known["source"][first], known["label"][first])


def gather_evidence(bench: EvaluationContext, asked: Asked, look: Callable[[Extractor], Features]) -> Evidence:
    """What was asked for, beside what is seen.

    :param look: gives what an extractor sees in the images
    """
    vector, identities = None, {}
    if asked.vector is not None:
        assert bench.judge is not None
        regressor, seen = bench.judge.classifier, look(bench.judge).attributes
        assert isinstance(regressor, VectorRegressor)
        assert seen is not None
        vector = VectorPair(asked.vector, seen, regressor.mean, regressor.words)
    if asked.references:
        assert bench.embedding is not None
        assert asked.gallery is not None
        z = look(bench.embedding).values
        identities = {name: Identities(z, *told, asked.gallery) for name, told in asked.references.items()}
    return Evidence(asked.maps, vector, identities)
