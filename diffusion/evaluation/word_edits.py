"""Edits by another word of the caption (prompt-to-prompt): what changes, what stays, what the word attends to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from configs import UserError
from diffusion.metrics.goals import shows, split_questions
from diffusion.metrics.intervals import MetricValue, mean, share
from diffusion.model import Model
from models.sources import find_objects
from models.text import TextReader
from samplers.edits.blend import sum_maps
from samplers.guidance.p2p import MAPS
from samplers.protocol import Callback, LoopState

SIDES = ("left", "right")


@dataclass(frozen=True)
class Change:
    """One word of captions in the place of another.

    :ivar question: of the judge, ``colour_left``
    :ivar target: its answer about the edits, ``green``
    :ivar words: the word of the source and that of the edit
    :ivar side: ``left`` or ``right``, the half of the images where the word's object is; None where there is one object
    """

    question: str
    target: str | bool | int
    words: tuple[str, str]
    side: str | None = None

    def fits(self, caption: str) -> bool:
        """Whether a caption has the word of the source once."""
        return caption.split().count(self.words[0]) == 1

    def write_pair(self, caption: str) -> list[str]:
        """A caption and that of its edit."""
        old, new = self.words
        return [caption, " ".join(new if word == old else word for word in caption.split())]

    def find_object(self, images: Float[Tensor, "b c h w"]) -> Bool[Tensor, "b h w"]:
        """Where its object is, on a plain background: :func:`models.sources.find_objects`."""
        found, half = find_objects(images), images.shape[-1] // 2
        if self.side:
            found[..., half:] &= self.side == "right"
            found[..., :half] &= self.side == "left"
        return found


class Attention(Callback):
    """Keeps the attention to a word, summed over the steps, of every row that is sampled with ``guidance=p2p``.

    :ivar found: a tensor (B, 1, H, W) for each batch
    """

    def __init__(self, word: str):
        self.word = word
        self.found: list[Float[Tensor, "b 1 h w"]] = []

    def before(self, frame: LoopState) -> None:
        frame.step.memory.setdefault(MAPS, {})

    def after(self, frame: LoopState) -> None:
        maps = frame.step.memory[MAPS]
        if frame.step.i + 1 == frame.step.n and maps:
            self.found.append(sum_maps(maps, frame.step.captions, [self.word]).cpu())


def find_text(model: Model) -> tuple[str, TextReader]:
    """The one thing that a model is told, a text: its name and its reader.

    :raises UserError: for a model that is told something else, or more
    """
    readers = model.readers()
    for name, reader in readers.items():
        if len(readers) == 1 and isinstance(reader, TextReader):
            return name, reader
    raise UserError(f"a run that reads {', '.join(readers) or 'nothing'}", "one text alone",
                    "a run of experiment=text_scenes_digits data.layout=two")


def measure_concentration(maps: Float[Tensor, "b 1 h w"], mask: Bool[Tensor, "b H W"]) -> Float[Tensor, " b"]:
    """How much more of the attention to a word is inside a mask than of an even one: ``sum_mask A / sum A`` over the
    share of the picture that the mask takes, 1 for even attention. The maps are enlarged to the mask's size. NaN where
    the mask is empty.
    """
    wide = F.interpolate(maps, mask.shape[-2:])[:, 0]
    inside = (wide * mask).sum((1, 2)) / wide.sum((1, 2))
    return inside / mask.float().mean((1, 2))


@torch.no_grad()
def compare_pairs(judge: Model, sources: Float[Tensor, "n c h w"], edits: Float[Tensor, "n c h w"],
                  change: Change) -> dict[str, MetricValue]:
    """What a judge sees in edits beside their sources, and how far they are from them.

    * ``QUESTION: TARGET``: edits that show the target;
    * ``kept: QUESTION``: edits in which another question is answered as in the source;
    * ``error outside``: the root mean square on [0, 1] of the difference to the source, where neither has the object
      that is to change nor a pixel beside it.

    :param sources: in [-1, 1]
    """
    before, after = (judge.classify(x.clamp(-1, 1)).logits for x in (sources, edits))
    found = {f"{change.question}: {change.target}": share(shows(judge, after, change.question, change.target))}
    one, other = (split_questions(judge, logits) for logits in (before, after))
    for name in one:
        if name != change.question:
            found[f"kept: {name}"] = share(one[name].argmax(1) == other[name].argmax(1))
    objects = (change.find_object(sources) | change.find_object(edits)).float()[:, None]
    outside = F.max_pool2d(objects, 3, 1, 1) == 0
    error = ((edits - sources) / 2).square().mean(1, keepdim=True)
    pixels = outside.sum((1, 2, 3))
    left = pixels > 0
    found["error outside"] = mean((error * outside).sum((1, 2, 3))[left] / pixels[left], root=True)
    return found


def measure_word_edits(model: Model, judge: Model, captions: Sequence[str], change: Change,
                       methods: Mapping[str, Sequence[str]], seed: int = 0, batch: int = 64
                       ) -> tuple[dict[str, dict[str, MetricValue]], Float[Tensor, "m n c h w"]]:
    """Numbers of :func:`compare_pairs` for several ways to make edits of the same sources, ``concentration: WORD`` of
    the word of the source where a way keeps maps of them (``guidance=p2p``), and the pictures: the sources, and the
    edits of each way.

    :param captions: of the sources, each with the word that is changed
    :param methods: overrides of ``sample.py``, by name: of the way to make the pictures
    """
    n = len(captions)
    name, _ = find_text(model)
    asked: dict[str, Any] = {name: [each for caption in captions for each in change.write_pair(caption)]}
    numbers: dict[str, dict[str, MetricValue]] = {}
    pictures: list[Tensor] = []
    for method, overrides in methods.items():
        watch = Attention(change.words[0])
        drawn = model.sample([i for i in range(n) for _ in range(2)], seed=seed, recipe=model.recipe(overrides),
                             batch=batch, callbacks=[watch], **asked).unflatten(0, (n, 2))
        sources, edits = drawn.unbind(1)
        pictures = pictures or [sources]
        pictures.append(edits)
        numbers[method] = compare_pairs(judge, sources, edits, change)
        if watch.found:
            mass = measure_concentration(torch.cat(watch.found)[::2], change.find_object(sources))
            numbers[method][f"concentration: {watch.word}"] = mean(mass[mass.isfinite()])
    return numbers, torch.stack(pictures)
