"""Captions of scenes: from what is in them to words, and back."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from configs.errors import UserError
from diffusion.data.scenes.facts import BACKGROUNDS, COLOURS, DIGITS, OBJECTS, POSITIONS, SIZES, Facts
from models.text import list_words, split_words

WORDS = list_words(["a", "and", "on", *SIZES, *COLOURS, *DIGITS, *POSITIONS, *BACKGROUNDS])
"""The vocabulary: 42 words, the reserved ones among them."""
LENGTHS: dict[str, int] = {"one": 12, "two": 20, "three": 20}
"""Tokens of a caption, its begin, end and pads among them."""
FIELDS = ("size", "colour", "digit", "position")
_KINDS: dict[str, tuple[str, int]] = {
    word: (kind, place) for kind, words in (("size", SIZES), ("colour", COLOURS), ("digit", DIGITS),
                                            ("position", POSITIONS), ("background", BACKGROUNDS))
    for place, word in enumerate(words)}


def write_caption(facts: Facts, i: int) -> tuple[str, Int[np.ndarray, "k 4"]]:
    """The caption of scene i, ``a small red seven top-left on black``, and the places among its tokens of the words for
    size, colour, digit and position of each digit, -1 for one that is left out. ``<bos>`` is token 0."""
    words: list[str] = []
    places = np.full((facts.digit.shape[1], 4), -1)
    for k in range(facts.digit.shape[1]):
        words += ["and", "a"] if k else ["a"]
        said = {"size": SIZES[facts.size[i, k]], "colour": list(COLOURS)[facts.colour[i, k]],
                "digit": DIGITS[facts.digit[i, k]], "position": POSITIONS[facts.position[i, k]]}
        silent: dict[str, bool] = dict(zip(("size", "colour", "position"), facts.omitted[i, k].tolist(), strict=True))
        for column, (field, word) in enumerate(said.items()):
            if not silent.get(field, False):
                words.append(word)
                places[k, column] = len(words)
    if not facts.silent[i]:
        words += ["on", list(BACKGROUNDS)[facts.background[i]]]
    return " ".join(words), places


def parse_caption(text: str) -> tuple[list[dict[str, int | None]], int | None]:
    """What a caption says of each digit, and of the background; None for what it does not say.

    :raises UserError: if it is no caption of a scene
    """
    def refuse(what: str) -> UserError:
        return UserError(f'the caption "{text}": {what}', "one such as a small red seven top-left on black",
                         'text="a red seven"')

    words, background = split_words(text), None
    if len(words) > 1 and words[-2] == "on" and _KINDS.get(words[-1], ("", 0))[0] == "background":
        background, words = _KINDS[words[-1]][1], words[:-2]
    objects: list[dict[str, int | None]] = []
    for part in " ".join(words).split(" and ") if words else []:
        found: dict[str, int | None] = dict.fromkeys(FIELDS)
        for word in part.removeprefix("a ").split():
            kind, place = _KINDS.get(word, (None, 0))
            if kind is None or kind == "background" or found[kind] is not None:
                raise refuse(f"{word} is not expected there")
            found[kind] = place
        if found["digit"] is None:
            raise refuse("it names no digit")
        objects.append(found)
    if not objects:
        raise refuse("it names no digit")
    return objects, background


def list_questions(layout: str, size: int) -> dict[str, list[str]]:
    """What a judge of scenes is asked, and the answers that there are: digit, colour, size, position and background of
    the one digit; of two, digit, colour and size on each side; of three, digit and colour in each corner, or none."""
    digits, colours = list(map(str, range(10))), list(COLOURS)
    if layout == "one":
        found = {"digit": digits, "colour": colours, "size": [*SIZES], "position": list[str](POSITIONS[:5])}
    elif layout == "two":
        kinds = {"digit": digits, "colour": colours} | ({"size": [*SIZES]} if size > 16 else {})
        found = {f"{field}_{side}": answers for side in POSITIONS[5:] for field, answers in kinds.items()}
    else:
        found = {f"{field}_{corner}": ["none", *answers] for corner in POSITIONS[:4]
                 for field, answers in (("digit", digits), ("colour", colours))}
    return {**found, "background": list(BACKGROUNDS)}


def answer_questions(layout: str, size: int, said: Sequence[tuple[list[dict[str, int | None]], int | None]]
                     ) -> Int[np.ndarray, "n a"]:
    """The right answers about scenes, places among those of ``list_questions``; -1 where nothing is said.

    :param said: what is in each scene, or what a caption says, see :func:`parse_caption`
    """
    questions = list(list_questions(layout, size))
    answers = np.full((len(said), len(questions)), -1)
    for row, (objects, background) in zip(answers, said, strict=True):
        told = {"background": background}
        for found in objects:
            if layout == "one":
                told |= found
                continue
            place, none = found["position"], int(layout == "three")
            if place is not None:
                told |= {f"{field}_{POSITIONS[place]}": value + none
                         for field, value in found.items() if value is not None}
        taken = [POSITIONS[found["position"]] for found in objects if found["position"] is not None]
        if layout == "three" and len(taken) == OBJECTS[layout]:
            told |= {name: 0 for name in questions if name.partition("_")[2] in {*POSITIONS[:4]} - {*taken}}
        for column, name in enumerate(questions):
            value = told.get(name)
            row[column] = -1 if value is None else value
    return answers


def describe_facts(facts: Facts, i: int) -> tuple[list[dict[str, int | None]], int | None]:
    """What is in scene i, whether its caption says it or not, as :func:`parse_caption` says it."""
    objects: list[dict[str, int | None]] = [
        {"size": int(facts.size[i, k]), "colour": int(facts.colour[i, k]), "digit": int(facts.digit[i, k]),
         "position": int(facts.position[i, k])} for k in range(facts.digit.shape[1])]
    return objects, int(facts.background[i])
