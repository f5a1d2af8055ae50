"""What is in a scene: digits, colours, sizes, places, a background. Functions of the index of the scene alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import Bool, Int

from degradations.randomness import bits

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (230, 40, 40), "green": (40, 190, 60), "blue": (60, 90, 240), "yellow": (235, 205, 40),
    "magenta": (215, 60, 215), "cyan": (50, 200, 215)}
SIZES = ("small", "large")
POSITIONS = ("top-left", "top-right", "bottom-left", "bottom-right", "center", "left", "right")
BACKGROUNDS: Mapping[str, int] = {"black": 0, "gray": 96, "white": 255}
OBJECTS: Mapping[str, int] = {"one": 1, "two": 2, "three": 3}
"""Digits in a scene of each layout."""
COMBOS = ("seen", "held_out", "all")
"""Which combinations of digit, colour and position there are."""
CORNERS = np.array(list(permutations(range(4), 3)))
SIDES = {16: (8, 12), 32: (12, 20), 64: (24, 40)}
"""Side of the box of a small and a large digit, by the size of the scene, in pixels."""
HALF_SIDES = {32: (12, 16), 64: (24, 32)}
"""The same where a digit has half of the scene."""


@dataclass(frozen=True)
class Facts:
    """What is in n scenes of K digits each.

    :ivar layout: of all
    :ivar digit: (n, K), 0 to 9
    :ivar colour: (n, K), a place in ``COLOURS``
    :ivar size: (n, K), a place in ``SIZES``
    :ivar position: (n, K), a place in ``POSITIONS``
    :ivar row: (n, K), which image of the source is drawn
    :ivar background: (n,), a place in ``BACKGROUNDS``
    :ivar shift: (n, K, 2), pixels down and right from the place's usual centre
    :ivar omitted: (n, K, 3), whether the caption is silent about size, colour, position of a digit
    :ivar silent: (n,), whether it is silent about the background
    """

    layout: str
    digit: Int[np.ndarray, "n k"]
    colour: Int[np.ndarray, "n k"]
    size: Int[np.ndarray, "n k"]
    position: Int[np.ndarray, "n k"]
    row: Int[np.ndarray, "n k"]
    background: Int[np.ndarray, " n"]
    shift: Int[np.ndarray, "n k 2"]
    omitted: Bool[np.ndarray, "n k 3"]
    silent: Bool[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.background)

    def take(self, rows: slice) -> "Facts":
        """Some of the scenes."""
        return Facts(self.layout, *(getattr(self, name)[rows] for name in list(self.__annotations__)[1:]))


def find_forbidden(colour: Int[np.ndarray, "*n"], position: Int[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
    """The digit d that is held out in this colour c at this position p: ``(d + 3 c + 4 p) mod 10 = 0``. Of the 300
    combinations of a digit, colour and corner or centre 30, so that each digit is seen in all colours but one at each
    position."""
    return -(3 * colour + 4 * position) % 10


def draw_facts(layout: str, split: str, count: int, size: int, seed: int, combos: str, omit: float,
               rows_of: Sequence[Int[np.ndarray, " _"]]) -> Facts:
    """What is in the scenes 0 to ``count - 1`` of a split.

    :param size: of a scene, in pixels
    :param seed: of all scenes
    :param combos: ``seen``, without the held-out combinations, ``held_out``, where the first digit is one, or ``all``
    :param omit: probability that a caption is silent about one of the things that it can leave out
    :param rows_of: the rows of the source that show each digit
    """
    index, k = np.arange(count), OBJECTS[layout]

    def draw(name: str, slot: int = 0) -> np.ndarray:
        return bits(index, "scenes", seed, split, name, slot)

    def choose(name: str, n: int) -> np.ndarray:
        return np.stack([draw(name, slot) % np.uint64(n) for slot in range(k)], axis=1).astype(np.int64)

    def happens(slot: int) -> np.ndarray:
        return (draw("omit", slot) >> np.uint64(11)) * 2.0**-53 < omit

    if layout == "one":
        position = choose("position", 5)
    elif layout == "two":
        position = np.tile([5, 6], (count, 1))
    else:
        position = CORNERS[(draw("layout") % np.uint64(len(CORNERS))).astype(np.int64)]
    colour = choose("colour", len(COLOURS))
    small_alone = layout == "three" or (layout == "two" and size not in HALF_SIDES)
    sizes = np.zeros((count, k), np.int64) if small_alone else choose("size", len(SIZES))
    forbidden = find_forbidden(colour, position)
    digit = (forbidden + 1 + choose("digit", 9)) % 10
    if combos == "all":
        digit = choose("digit", 10)
    elif combos == "held_out":
        digit[:, 0] = forbidden[:, 0]
    pick = np.stack([draw("source", slot) for slot in range(k)], axis=1)
    row = np.empty((count, k), np.int64)
    for d, rows in enumerate(rows_of):
        row[digit == d] = rows[(pick[digit == d] % np.uint64(len(rows))).astype(np.int64)]
    down, right = size // (8 if layout == "two" else 16), size // 16
    shift = np.stack([choose("dy", 2 * down + 1) - down, choose("dx", 2 * right + 1) - right], axis=2)
    omitted = np.stack([np.stack([happens(3 * slot + field) for field in range(3)], 1) for slot in range(k)], 1)
    if layout == "three":  # whose digits are all small, and whose captions do not say so
        omitted[..., 0] = True
    return Facts(layout, digit, colour, sizes, position, row, choose("background", len(BACKGROUNDS))[:, 0], shift,
                 omitted, happens(3 * k))


def draw_references(facts: Facts, split: str, size: int, seed: int) -> Facts:
    """Another scene for each scene, of layout ``one``: the first digit of that scene, the same image of the source, in
    another colour, its size, place and background drawn anew. None shows a combination that is held out, see
    :func:`find_forbidden`.

    :param facts: of the scenes 0 to n - 1 of a split
    :param size: of a scene, in pixels
    :param seed: of all scenes
    """
    index, digit, colour = np.arange(len(facts)), facts.digit[:, :1], facts.colour[:, :1]

    def choose(name: str, n: int) -> np.ndarray:
        return (bits(index, "scenes", seed, split, f"reference/{name}", 0) % np.uint64(n)).astype(np.int64)[:, None]

    position, step = choose("position", 5), 1 + choose("colour", len(COLOURS) - 1)
    others = (colour + step) % len(COLOURS)
    held_out = find_forbidden(others, position) == digit
    others = np.where(held_out, (colour + step % (len(COLOURS) - 1) + 1) % len(COLOURS), others)
    reach = size // 16
    shift = np.stack([choose("dy", 2 * reach + 1) - reach, choose("dx", 2 * reach + 1) - reach], axis=2)
    silent = np.zeros(len(facts), bool)
    return Facts("one", digit, others, choose("size", len(SIZES)), position, facts.row[:, :1],
                 choose("background", len(BACKGROUNDS))[:, 0], shift, np.zeros((len(facts), 1, 3), bool), silent)


def place_boxes(facts: Facts, size: int) -> Int[np.ndarray, "n k 4"]:
    """Top, left, height and width of the box of each digit, in pixels: around the centre of its place, shifted, and
    inside the scene, or its half of it."""
    half = facts.layout == "two"
    sides = HALF_SIDES.get(size, SIDES[size]) if half else SIDES[size]
    side = np.array(sides)[facts.size]
    quarter = size // 4
    rows = np.array([quarter, quarter, 3 * quarter, 3 * quarter, 2 * quarter, 2 * quarter, 2 * quarter])
    columns = np.array([quarter, 3 * quarter, quarter, 3 * quarter, 2 * quarter, quarter, 3 * quarter])
    top = np.clip(rows[facts.position] + facts.shift[..., 0] - side // 2, 0, size - side)
    left = columns[facts.position] + facts.shift[..., 1] - side // 2
    first = np.where(half & (facts.position == 6), size // 2, 0)
    last = np.where(half & (facts.position == 5), size // 2, size) - side
    return np.stack([top, np.clip(left, first, last), side, side], axis=2)
