"""Scenes: coloured digits with captions, masks, boxes and all else that can be known about them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from configs.errors import UserError
from configs.values import require_at_least
from diffusion.data.base import Data, ImageSet, Split
from diffusion.data.pixels import to_float, to_uint8
from diffusion.data.scenes import captions, render
from diffusion.data.scenes.facts import COMBOS, DIGITS, OBJECTS, SIDES, Facts, draw_facts, draw_references, place_boxes
from diffusion.data.sets.digits import Digits
from diffusion.data.sets.mnist import MNIST
from models.sources import find_edges
from models.text import TextReader

SOURCES = ("mnist", "digits")
CENTRAL = slice(3, 25)
"""Rows and columns of MNIST that are drawn: the digits do not reach further."""

Made = tuple[Facts, np.ndarray, np.ndarray, np.ndarray]
"""Facts, boxes, opacities and images of some scenes."""


class Scenes(Data):
    """Real digits, coloured, on a plain background, each scene with its caption: ``a small red seven top-left on
    black``. They are made when a split is loaded. A scene is a function of ``seed``, split, index, source and size, so
    that what is known about it can be computed whenever it is wanted.

    In layout ``one`` a digit is in a corner or the centre; in ``two`` one is in each half; in ``three`` three small
    ones are in different corners. The source's own split is kept: no digit that is drawn in the training is drawn in a
    held-out scene. Of the combinations of a digit, colour and position, a tenth is held out (see
    :func:`diffusion.data.scenes.facts.find_forbidden`).

    Signals (``signals``), of n scenes with K digits in S x S pixels:

    ============= =============== ==================================================================================
    text          (n, L)          tokens of the caption, see :class:`models.text.TextReader`
    label         (n,)            the first digit
    answers       (n, A)          what a judge should say, see :func:`diffusion.data.scenes.captions.list_questions`
    attrs         (n, K, 5)       digit, colour, size, position, row of the source
    background    (n,)            a place in ``BACKGROUNDS``
    count         (n,)            K
    box           (n, K, 4)       top, left, height and width, in pixels
    mask, alpha   (n, K, S, S)    whether, and how much (0 to 255), a digit covers a pixel
    crop          (n, K, 3, h, h) the digit alone on grey, h = S / 2, 0 to 255
    word_index    (n, K, 4)       place among the tokens of size, colour, digit, position; -1 if left out
    edges         (n, 1, S, S)    see :func:`models.sources.find_edges`, 0 or 255
    objects       (n, 3, S, S)    the masks in their colours, on black
    depth         (n, 1, S, S)    the masks, large digits 255, small ones 128
    source        (n,)            which digit of the source the first one is
    reference     (n, 3, S, S)    another scene that shows this digit alone, in another colour, see
                                  :func:`diffusion.data.scenes.facts.draw_references`
    ============= =============== ==================================================================================

    :param root: the folder with ``MNIST/raw`` inside, for ``source=mnist``
    :param source: ``mnist``, or ``digits``, those of scikit-learn, which need no download
    :param layout: ``one``, ``two`` or ``three``
    :param size: S: 16, 32 or 64; ``three`` needs 32
    :param combos: of the training and held-out scenes: ``seen``, ``held_out`` or ``all``
    :param count: scenes of the training
    :param count_test: held-out scenes
    :param omit: probability that a caption of the training leaves out size, colour, position or background, each by
        itself, so that the model understands short ones; held-out captions say all
    :param seed: of the scenes
    :param signals: which of these the images have
    :raises UserError: for other values, or a source that cannot be read (at the first ``split``)
    """

    def __init__(self, root: str | Path = "data", source: str = "mnist", layout: str = "one", size: int = 32,
                 combos: str = "seen", count: int = 50_000, count_test: int = 5_000, omit: float = 0.1,
                 seed: int = 0, signals: Sequence[str] = ("text", "label", "answers"), channels: int = 3,
                 flip: bool = False):
        super().__init__(size, channels, flip)
        for name, value, choices in (("source", source, SOURCES), ("layout", layout, [*OBJECTS]),
                                     ("combos", combos, COMBOS),
                                     ("size", size, [s for s in SIDES if layout != "three" or s > 16])):
            if value not in choices:
                raise UserError(f"data.{name}={value}", f"one of {', '.join(map(str, choices))}",
                                f"data.{name}={choices[0]}")
        if channels != 3 or flip:
            raise UserError(f"data.channels={channels} data.flip={str(flip).lower()} of coloured digits",
                            "3 channels, and no mirroring", "data.channels=3 data.flip=false")
        strangers = [name for name in signals if name not in SIGNALS]
        if strangers or isinstance(signals, str):
            raise UserError(f"data.signals={signals if isinstance(signals, str) else list(signals)}",
                            f"a list of some of {', '.join(SIGNALS)}", "data.signals=[text,label,answers]")
        if not 0 <= omit < 1:
            raise UserError(f"data.omit={omit}", "a probability in [0, 1)", "data.omit=0.1")
        require_at_least(1, "data", count=count, count_test=count_test)
        self.layout, self.combos, self.omit, self.seed, self.signals = layout, combos, omit, seed, tuple(signals)
        self.counts: Mapping[Split, int] = {"train": count, "test": count_test}
        self.source = source
        self._source = MNIST(root, 28) if source == "mnist" else Digits(8)

    @property
    def class_names(self) -> list[str] | None:
        return [str(digit) for digit in range(10)] if "label" in self.signals else None

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        known = {"text": {"words": captions.WORDS, "length": captions.LENGTHS[self.layout]},
                 "answers": {"words": captions.list_questions(self.layout, self.size)}}
        channels = {"edges": 1, "objects": 3, "depth": 1, "reference": 3}
        known |= {name: {"channels": count, "side": self.size} for name, count in channels.items()}
        return super().described | {name: known.get(name, {}) for name in self.signals if name != "label"}

    def accepts_judge(self, data: Mapping[str, Any], fingerprint: str) -> bool:
        """One that has seen all combinations of such scenes: without some, it would be worse at them itself."""
        mine = {"source": self.source, "layout": self.layout, "size": self.size, "combos": "all"}
        return all(data.get(key) == value for key, value in mine.items())

    def find_answers(self, written: Sequence[Mapping[str, Any]]) -> Int[Tensor, "n a"] | None:
        if not all(isinstance(one.get("text"), str) for one in written):
            return None
        said = [captions.parse_caption(one["text"]) if one["text"] else ([], None) for one in written]
        return torch.from_numpy(captions.answer_questions(self.layout, self.size, said))

    def load(self, name: Split) -> ImageSet:
        n = self.counts[name]
        pixels = torch.empty(n, 3, self.size, self.size, dtype=torch.uint8)
        parts: dict[str, list[Tensor]] = {signal: [] for signal in self.signals}
        digits, facts = self._digits(name)[0], self.facts(name)
        references = draw_references(facts, name, self.size, self.seed)
        for rows in render.split_rows(n):
            made = self._make(digits, facts.take(rows))
            pixels[rows] = torch.from_numpy(made[3])
            for signal, found in parts.items():
                of = self._make(digits, references.take(rows)) if signal == "reference" else made
                found.append(torch.from_numpy(SIGNALS[signal](self, of)))
        return ImageSet(pixels, {signal: torch.cat(found) for signal, found in parts.items()})

    def facts(self, name: Split) -> Facts:
        """What is in the scenes of a split."""
        labels = self._digits(name)[1]
        omit = self.omit if name == "train" else 0.0
        rows_of = [np.flatnonzero(labels == digit) for digit in range(len(DIGITS))]
        missing = [DIGITS[digit] for digit, rows in enumerate(rows_of) if not len(rows)]
        if missing:
            raise UserError(f"data.source={self.source} without a {missing[0]} in the {name} split",
                            "images of all ten digits", "data.source=digits, or the whole of MNIST")
        return draw_facts(self.layout, name, self.counts[name], self.size, self.seed, self.combos, omit, rows_of)

    def _make(self, digits: UInt8[np.ndarray, "m h h"], facts: Facts) -> Made:
        boxes = place_boxes(facts, self.size)
        opacities = render.render_opacities(digits, facts, boxes, self.size)
        return facts, boxes, opacities, render.compose_images(opacities, facts)

    def _digits(self, name: Split) -> tuple[UInt8[np.ndarray, "m h h"], np.ndarray]:
        images = self._source.split(name)
        assert images.labels is not None
        pixels = images.images.numpy()[:, 0]
        if isinstance(self._source, MNIST):
            pixels = np.ascontiguousarray(pixels[:, CENTRAL, CENTRAL])
        return pixels, images.labels.numpy()

    def _captions(self, made: Made) -> list[tuple[str, np.ndarray]]:
        return [captions.write_caption(made[0], i) for i in range(len(made[0]))]

    def tokens(self, made: Made) -> np.ndarray:
        """Tokens of the captions."""
        reader = TextReader(captions.WORDS, captions.LENGTHS[self.layout])
        return reader.read([text for text, _ in self._captions(made)]).numpy()

    def word_index(self, made: Made) -> np.ndarray:
        """Places of the words among the tokens."""
        return np.stack([places for _, places in self._captions(made)])

    def answers(self, made: Made) -> np.ndarray:
        """What a judge should say."""
        facts = made[0]
        return captions.answer_questions(self.layout, self.size,
                                         [captions.describe_facts(facts, i) for i in range(len(facts))])


SIGNALS: Mapping[str, Callable[[Scenes, Made], np.ndarray]] = {
    "text": Scenes.tokens,
    "label": lambda data, made: made[0].digit[:, 0],
    "answers": Scenes.answers,
    "attrs": lambda data, made: np.stack([made[0].digit, made[0].colour, made[0].size, made[0].position, made[0].row],
                                         axis=2),
    "background": lambda data, made: made[0].background,
    "count": lambda data, made: np.full(len(made[0]), made[0].digit.shape[1]),
    "box": lambda data, made: made[1],
    "mask": lambda data, made: made[2] > 127,
    "alpha": lambda data, made: made[2],
    "crop": lambda data, made: render.crop_digits(made[2], made[0], made[1]),
    "word_index": Scenes.word_index,
    "edges": lambda data, made: to_uint8(find_edges(to_float(torch.from_numpy(made[3])))).numpy(),
    "objects": lambda data, made: render.fill_objects(made[2], made[0]),
    "depth": lambda data, made: render.fill_depth(made[2], made[0]),
    "source": lambda data, made: made[0].row[:, 0],
    "reference": lambda data, made: made[3]}
