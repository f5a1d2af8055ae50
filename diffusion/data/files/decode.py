"""From an image file, of whatever mode, to a square of uint8 pixels."""

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from threading import Lock

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE

from configs.errors import UserError
from configs.values import read_limit

DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes for grey of 16 bits; "I" has room for 32, but the formats that reach it here store 16."""

FORMATS = ("PNG", "JPEG", "MPO", "BMP", "DIB", "GIF", "WEBP", "AVIF", "HEIF", "TIFF", "JPEG2000", "PPM", "TGA")
"""Pillow's names of the formats that are read, those of :data:`diffusion.data.files.archive.SUFFIXES`. TGA comes last:
its files have no mark at their beginning."""

MOST_PIXELS = 2**28
"""Pixels of an image that is read, unless ``THAW_MOST_PIXELS`` says more. A file of a few kilobytes can ask for any
number."""
LARGE = 2**24
"""Pixels from which on images are decoded one at a time."""
_LARGE = Lock()

_UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90}
"""What sets an image upright, by its orientation in EXIF."""


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
    :raises UserError: if the share or the filter is none
    """

    size: int
    channels: int
    crop: float
    resample: str

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise UserError(f"data.crop={self.crop}", "a share of the width, above 0 and at most 1", "data.crop=1")
        find_filter(self.resample)

    def __call__(self, file: bytes) -> UInt8[np.ndarray, "c h w"]:
        """The pixels of an image file.

        :raises Exception: of any type that Pillow's readers come up with, when the file is broken or is no image
        :raises ValueError: the pixels are floats or 32-bit integers, for which no range is agreed on
        """
        with read_upright(file) as image:
            return self.pixels(image)

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
    :raises ValueError: it has more than ``MOST_PIXELS``
    """
    most = read_limit("MOST_PIXELS", MOST_PIXELS)
    Image.MAX_IMAGE_PIXELS = max(most, Image.MAX_IMAGE_PIXELS or 0)  # beyond which Pillow warns
    image = Image.open(file, formats=_formats())
    if image.width * image.height > most:
        image.close()
        raise ValueError(f"{image.width} x {image.height} pixels, more than {most / 1e6:.0f} million: make it "
                         f"smaller first, or allow it: THAW_MOST_PIXELS={image.width * image.height}")
    return image


@contextmanager
def read_upright(file: bytes) -> Iterator[Image.Image]:
    """The image in the bytes of a file, decoded, and set upright by its EXIF tag. What else is written beside the
    pixels does not matter: an image whose texts or profiles cannot be read is taken as it lies.

    :raises Exception: of any type that Pillow's readers come up with, when the pixels cannot be read
    """
    with ExitStack() as stack:
        try:
            image = stack.enter_context(open_image(BytesIO(file)))
            if image.width * image.height > LARGE:
                stack.enter_context(_LARGE)
            image.load()
        except Exception:
            bare = drop_metadata(file)
            if bare is None:
                raise
            image = stack.enter_context(open_image(BytesIO(bare)))
            image.load()
        turn = None
        with suppress(Exception):  # broken EXIF fails in many ways
            turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        yield image if turn is None else image.transpose(turn)


def drop_metadata(file: bytes) -> bytes | None:
    """A PNG or JPEG file without what does not make its pixels; None for other files, and where nothing is dropped."""
    if file.startswith(b"\x89PNG\r\n\x1a\n"):
        parts, place = [file[:8]], 8
        while place + 12 <= len(file):
            end = place + 12 + struct.unpack_from(">I", file, place)[0]
            if file[place + 4 : place + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
                parts.append(file[place:end])
            place = end
    elif file.startswith(b"\xff\xd8"):
        parts, place = [file[:2]], 2
        # Marker segments up to the scan; APP0 and APP14 say how the colours are stored.
        while file[place : place + 1] == b"\xff" and place + 4 <= len(file) and file[place + 1] != 0xDA:
            end = place + 2 + struct.unpack_from(">H", file, place + 2)[0]
            if not (0xE1 <= file[place + 1] <= 0xEF or file[place + 1] == 0xFE) or file[place + 1] == 0xEE:
                parts.append(file[place:end])
            place = end
        parts.append(file[place:])
    else:
        return None
    bare = b"".join(parts)
    return bare if len(bare) < len(file) else None


def explain(error: Exception) -> str:
    """Why an image cannot be read, in words without a name of the file."""
    if isinstance(error, UnidentifiedImageError):
        return "of no format that is known here"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@cache
def _formats() -> list[str]:
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


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

    :raises ValueError: floats, 32-bit or signed integers
    """
    if image.mode in DEEP_GREY:
        if image.mode == "I" and 32 in getattr(image, "tag_v2", {}).get(BITSPERSAMPLE, (16,)):
            raise ValueError("32-bit integer pixels have no agreed range")
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0:
            raise ValueError("signed integer pixels have no agreed range")
        if deep.max() > 65535:
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
    """Grey images brought to ``size`` by Pillow, whose integer arithmetic gives the same bytes on every machine.

    Pillow changes the width and then the height, each rounded to 8 bits, and a line only depends on itself: all lines
    of all images at once are the same bytes as image by image."""
    if pixels.shape[1:] == (size, size):
        return pixels
    n, height, width = pixels.shape
    wide = np.asarray(Image.fromarray(pixels.reshape(n * height, width)).resize((size, n * height), resample))
    columns = np.ascontiguousarray(wide.reshape(n, height, size).swapaxes(1, 2)).reshape(n * size, height)
    done = np.asarray(Image.fromarray(columns).resize((size, n * size), resample))
    return np.ascontiguousarray(done.reshape(n, size, size).swapaxes(1, 2))
