"""Pictures of scenes, and what can be known about each pixel of them."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from diffusion.data.scenes.facts import BACKGROUNDS, COLOURS, Facts

GREY = 96
"""Behind the crop of a single digit."""
PALETTE = np.array(list(COLOURS.values()))
GREYS = np.array(list(BACKGROUNDS.values()))


def resize_digit(digit: UInt8[np.ndarray, "h h"], side: int) -> UInt8[np.ndarray, "side side"]:
    """A digit of the source brought to the side of its box, by Pillow: bicubic up, a box filter to a half and less,
    else bilinear."""
    filters = Image.Resampling
    kind = filters.BICUBIC if side > len(digit) else filters.BOX if 2 * side <= len(digit) else filters.BILINEAR
    return np.asarray(Image.fromarray(digit).resize((side, side), kind))


def render_opacities(source: UInt8[np.ndarray, "m h h"], facts: Facts, boxes: Int[np.ndarray, "n k 4"], size: int
                     ) -> UInt8[np.ndarray, "n k s s"]:
    """How much of each pixel each digit covers, 255 for all of it: the resized digit inside its box.

    :param source: grey digits
    :param size: S of a scene, in pixels
    """
    opacities = np.zeros((*facts.digit.shape, size, size), np.uint8)
    for side in np.unique(boxes[..., 2]):
        at, object_ = np.nonzero(boxes[..., 2] == side)
        rows, which = np.unique(facts.row[at, object_], return_inverse=True)
        digits = np.stack([resize_digit(source[row], int(side)) for row in rows])
        inside = np.arange(side)
        down = boxes[at, object_, 0][:, None, None] + inside[:, None]
        right = boxes[at, object_, 1][:, None, None] + inside
        opacities[at[:, None, None], object_[:, None, None], down, right] = digits[which]
    return opacities


def compose_images(opacities: UInt8[np.ndarray, "n k s s"], facts: Facts) -> UInt8[np.ndarray, "n 3 s s"]:
    """``background + a (colour - background)`` of each digit, rounded once; digits do not overlap."""
    a = opacities[:, :, None].astype(np.float32) / 255
    background = GREYS[facts.background].astype(np.float32)[:, None, None, None]
    colours = PALETTE[facts.colour].astype(np.float32)[..., None, None]
    return np.rint(background + (a * (colours - background[:, None])).sum(1)).astype(np.uint8)


def crop_digits(opacities: UInt8[np.ndarray, "n k s s"], facts: Facts, boxes: Int[np.ndarray, "n k 4"]
                ) -> UInt8[np.ndarray, "n k 3 h h"]:
    """Each digit alone on grey, its box brought to half the side of the scene (bilinear)."""
    n, k, size, _ = opacities.shape
    crops = np.empty((n, k, 3, size // 2, size // 2), np.uint8)
    for i in range(n):
        for j in range(k):
            top, left, height, width = boxes[i, j]
            a = opacities[i, j, top:top + height, left:left + width, None].astype(np.float32) / 255
            box = np.rint(GREY + a * (PALETTE[facts.colour[i, j]] - GREY)).astype(np.uint8)
            crop = Image.fromarray(box).resize((size // 2, size // 2), Image.Resampling.BILINEAR)
            crops[i, j] = np.asarray(crop).transpose(2, 0, 1)
    return crops


def fill_objects(opacities: UInt8[np.ndarray, "n k s s"], facts: Facts) -> UInt8[np.ndarray, "n 3 s s"]:
    """The masks of the digits in their flat colours, on black."""
    masks = (opacities > 127)[:, :, None]
    return (masks * PALETTE[facts.colour][..., None, None]).sum(1).astype(np.uint8)


def fill_depth(opacities: UInt8[np.ndarray, "n k s s"], facts: Facts) -> UInt8[np.ndarray, "n 1 s s"]:
    """The masks of the digits, as bright as they are near: large ones 255, small ones 128, the background 0."""
    near = np.array([128, 255])[facts.size][..., None, None]
    return ((opacities > 127) * near).max(1)[:, None].astype(np.uint8)


def split_rows(n: int, count: int = 4096) -> Iterator[slice]:
    """Parts of n rows, for what would need much memory at once."""
    return (slice(first, min(first + count, n)) for first in range(0, n, count))
