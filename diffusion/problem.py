"""Inverse problems: what is measured of an image, of which a model then draws the rest."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from configs import UserError
from degradations.base import Degradation, State
from degradations.holes import Hole, PixelInpaint
from degradations.measurement import Measurement
from degradations.randomness import Draws


class InverseProblem:
    """``y = A x0 + sigma n``: a linear degradation at the time t0, and noise (``task=`` of ``sample.py``).

    :param degradation: linear in the image, or linear and a constant
    :param t0: the time at which it measures, in (0, 1]
    :param noise: sigma, in the units of the images, [-1, 1]
    :param mask: a picture of the hole, of the images' size, white where nothing is known; in place of the hole that the
        degradation draws
    :raises UserError: for a degradation that is not linear, a time or a noise out of range, or a mask where there is no
        hole
    """

    def __init__(self, degradation: Degradation, t0: float = 1.0, noise: float = 0.05, mask: str | None = None):
        self.t0, self.noise, self.mask = t0, noise, mask
        if mask is None:
            self.degradation = degradation
        elif isinstance(degradation, Hole):
            self.degradation = PixelInpaint(1, 0.5, degradation.value)
        else:
            raise UserError(f"task.mask={mask} with {type(degradation).__name__}", "a task with a hole",
                            "task=inpaint_box, or task.mask=null")

    def draw(self, shape: Sequence[int], rng: Draws) -> Measurement:
        """What will be measured of a batch of images of this shape, before it is.

        :raises UserError: for images that the operator cannot treat, or a mask of another size
        """
        state = self.degradation.draw(shape, rng)
        if self.mask is not None:
            hole = read_mask(Path(self.mask).expanduser(), shape[-2:]).to(state["threshold"].device)
            # The share that is erased is one half: a threshold of 0 is erased, one of 1 stays.
            state = State(threshold=(1 - hole).expand_as(state["threshold"]))
        return Measurement(self.degradation, self.t0, state, self.noise, tuple(shape[1:]))


def read_mask(path: Path, sides: Sequence[int]) -> Tensor:
    """A mask (H, W): 1 where the picture is lighter than the middle grey.

    :raises UserError: if there is no picture, or it is of another size, or all black or white
    """
    try:
        with Image.open(path) as picture:
            grey = np.array(picture.convert("L"))
    except (OSError, ValueError) as error:
        raise UserError(f"task.mask={path} cannot be read as a picture", "a black picture, white where the hole is",
                        "task.mask=mask.png") from error
    if grey.shape != tuple(sides):
        raise UserError(f"a mask of {grey.shape[0]}x{grey.shape[1]} px for images of {sides[0]}x{sides[1]} px",
                        "a mask of the images' size", f"a picture of {sides[1]}x{sides[0]} px")
    hole = torch.from_numpy(grey > 127).float()
    if hole.min() == hole.max():
        raise UserError(f"task.mask={path}, which is all {'white' if hole.max() else 'black'}",
                        "white where nothing is known, and black elsewhere", "another mask")
    return hole
