"""The small digits that come with scikit-learn: real data without a download."""

import numpy as np
from PIL import Image

from diffusion.data.base import Data, ImageSet, Split, make_labelled
from diffusion.data.files.decode import resize_grey

HELD_OUT_EVERY = 6


class Digits(Data):
    """1,797 handwritten digits of 8x8 pixels and 17 grey levels, scaled to uint8 and enlarged (bicubic) to ``size``.

    Every sixth image of each class is held out for the test split, in the order of the set: 1,501 train, 296 test.

    :param size: height and width, in pixels
    :param channels: 1, or 3 for the grey repeated
    :param flip: whether training may mirror the images; a mirrored digit is no digit
    """

    def __init__(self, size: int = 16, channels: int = 1, flip: bool = False):
        super().__init__(size, channels, flip)

    @property
    def class_names(self) -> list[str]:
        return [str(digit) for digit in range(10)]

    def load(self, name: Split) -> ImageSet:
        from sklearn.datasets import load_digits

        levels, labels = load_digits(return_X_y=True)
        held_out = np.zeros(len(labels), bool)
        for digit in range(10):
            held_out[np.flatnonzero(labels == digit)[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]] = True
        keep = held_out if name == "test" else ~held_out
        pixels = np.rint(levels[keep] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        pixels = resize_grey(pixels, self.size, Image.Resampling.BICUBIC)
        return make_labelled(pixels, labels[keep], self.channels)
