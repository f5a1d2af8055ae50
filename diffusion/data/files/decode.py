"""From an image file, of whatever mode, to a square of uint8 pixels."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from configs.errors import UserError

DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes for grey of 16 bits; "I" has room for 32, but the formats that reach it here store 16."""


FORMATS = ("PNG", "JPEG", "MPO", "BMP", "DIB", "GIF", "WEBP", "AVIF", "TIFF", "JPEG2000", "PPM")
"""Pillow's names of the formats that are read, those of :data:`diffusion.data.files.archive.SUFFIXES`."""


def find_filter(name: str) -> Image.Resampling:
    """Pillow's filter of that name; all of them but ``nearest`` antialias when they shrink.

    :raises UserError: there is no such filter
    """
    known = {filter.name.lower(): filter for filter in Image.Resampling}
    if name not in known:
        raise UserError(f"data.resample={name}", "one of " + ", ".join(known), "data.resample=bilinear")
    return known[name]


@dataclass(frozen=True)
class Decoder:
    """Turns the bytes of an image file into ``(channels, size, size)`` pixels.

    The photo is set upright by its EXIF tag, brought to 8 bits (see ``eight_bit``), cropped to its central square
    (see ``central_square``) and resized. Of an animation the first frame counts.

    :ivar size: height and width of the result, in pixels
    :ivar channels: 1 (grey) or 3 (RGB)
    :ivar crop: side of the square, as a share of the width
    :ivar resample: the name of Pillow's filter
    """

    size: int
    channels: int
    crop: float
    resample: str

    def __call__(self, file: bytes) -> UInt8[np.ndarray, "c h w"]:
        """The pixels of an image file.

        :raises Exception: of any type that Pillow's readers come up with, when the file is broken or is no image
        :raises ValueError: the pixels are floats or 32-bit integers, for which no range is agreed on
        """
        with open_image(BytesIO(file)) as opened:
            ImageOps.exif_transpose(opened, in_place=True)
            return self.pixels(opened)

    def pixels(self, image: Image.Image) -> UInt8[np.ndarray, "c h w"]:
        """The pixels of an image that is upright.

        :raises ValueError: as above
        """
        square = to_eight_bit(image, self.channels).crop(central_square(*image.size, self.crop))
        pixels = np.asarray(square.resize((self.size, self.size), find_filter(self.resample)))
        return pixels.reshape(self.size, self.size, self.channels).transpose(2, 0, 1)


def open_image(file: BytesIO | Path) -> Image.Image:
    """An image file of one of the ``FORMATS``, told by its content: Pillow knows more, of which one starts a program
    (PostScript) on what somebody else has written.

    :raises PIL.UnidentifiedImageError: for a file that is none of them, whatever its name
    """
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def central_square(width: int, height: int, crop: float) -> tuple[int, int, int, int]:
    """(left, upper, right, lower) of the central square whose side is the share ``crop`` of the width.

    The side never exceeds the shorter side of the image. It goes by the width because published crops of portraits
    do: 140 of the 178 pixels of CelebA, whatever the scale of the copy.
    """
    side = max(1, min(round(crop * width), width, height))
    left, upper = (width - side) // 2, (height - side) // 2
    return left, upper, left + side, upper + side


def to_eight_bit(image: Image.Image, channels: int) -> Image.Image:
    """The image in mode L (``channels`` 1) or RGB (``channels`` 3).

    Transparent pixels are laid over white, 16-bit grey is scaled to 8 bits, and grey is the ITU-R 601 luma.

    :raises ValueError: floats or 32-bit integers
    """
    if image.mode in DEEP_GREY:
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("32-bit integer pixels have no agreed range")
        image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("float pixels have no agreed range")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def resize_grey(pixels: UInt8[np.ndarray, "n h w"], size: int,
            resample: Image.Resampling) -> UInt8[np.ndarray, "n size size"]:
    """Grey images brought to ``size`` by Pillow, whose integer arithmetic gives the same bytes on every machine."""
    if pixels.shape[1:] == (size, size):
        return pixels
    resized = np.empty((len(pixels), size, size), np.uint8)
    for row, image in zip(resized, pixels, strict=True):
        row[:] = np.asarray(Image.fromarray(image).resize((size, size), resample))
    return resized
