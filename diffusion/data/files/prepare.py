"""Image files as they go into archives: as they are, or made smaller."""

from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from diffusion.data.files.decode import DEEP_GREY, read_upright, to_eight_bit


@dataclass(frozen=True)
class Prepared:
    """A file of an archive to be: its name, content, and width and height, upright."""

    name: str
    data: bytes
    width: int
    height: int


def prepared(name: str, data: bytes, size: int | None) -> Prepared:
    """A file as it goes into an archive: as it is, or, with ``size`` and a longer shorter side, resized with Pillow's
    bilinear filter, 8 bits, upright and without transparency, as ``data=folder`` would see it. Then JPEG stays JPEG
    (quality 95) and everything else becomes PNG.

    :raises Exception: of any type, when the file cannot be read
    """
    name.encode()  # A file name need not be valid text, but a name in an archive has to be.
    with read_upright(data) as image:
        pixels = to_eight_bit(image, 1 if image.mode in ("1", "L", *DEEP_GREY) else 3)
    shorter, new = min(pixels.size), rename(name, size)
    if size is None or (shorter <= size and new == name):
        return Prepared(name, data, *pixels.size)
    if shorter > size:
        width, height = (round(side * size / shorter) for side in pixels.size)
        pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
    file = BytesIO()
    pixels.save(file, "PNG" if new.lower().endswith(".png") else "JPEG", quality=95)
    return Prepared(new, file.getvalue(), *pixels.size)


def rename(name: str, size: int | None) -> str:
    """The name in an archive: with ``size``, ``.png`` is appended to that of a file that becomes one."""
    return name if size is None or name.lower().endswith((".png", ".jpg", ".jpeg")) else name + ".png"
