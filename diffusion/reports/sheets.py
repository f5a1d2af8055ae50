"""Many pictures in one file: a page shows parts of it, so that a thousand pictures are one."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from diffusion.pictures import to_picture

SIDE = 256
"""Pixels of the longer side of a picture, at most; larger ones are made smaller."""
MOST_BYTES = 4 * 2**20
"""Of a sheet."""
HOPELESS = 12
"""How much smaller PNG makes photos, at best: it is not tried where that would not do."""
QUALITIES = (92, 80, 60, 40, 20)
"""Of WebP, tried in turn where PNG is too large."""


@dataclass(frozen=True)
class Sheet:
    """Pictures of one size, row by row in one image.

    :ivar data: the file
    :ivar kind: ``png`` or ``webp``
    :ivar width: of each picture before it was made smaller, in pixels; it says how large it is shown
    :ivar height: of each picture
    :ivar columns: pictures in a row
    :ivar count: pictures
    :ivar captions: of each picture; none at all if there is nothing to say
    """

    data: bytes
    kind: str
    width: int
    height: int
    columns: int
    count: int
    captions: Sequence[str] = ()

    @property
    def source(self) -> str:
        """The file as an address in itself."""
        return embed(self.data, self.kind)

    def fit(self, about: int) -> tuple[int, int]:
        """Width and height in which a picture is shown, ``about`` as wide: small ones are enlarged by a whole factor,
        so that their pixels stay equal."""
        wide = max(1, round(about / self.width)) * self.width
        wide = wide if wide <= 1.5 * about else about
        return wide, max(1, round(wide * self.height / self.width))


def embed(data: bytes, kind: str = "png") -> str:
    """The file of a picture as an address in itself."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def make_sheet(images: UInt8[Tensor, "n c h w"], columns: int, captions: Sequence[str] = (),
               most: int = MOST_BYTES) -> Sheet:
    """Pictures of 1 (grey) or 3 (RGB) channels as a sheet, a PNG, or a WebP with losses where that has more than
    ``most`` bytes; where even this has, in half the size.

    :param columns: pictures in a row
    :param captions: of each
    """
    n, _, height, width = images.shape
    tiles = [shrink(to_picture(image), SIDE) for image in images.numpy()]
    while True:
        whole = paste(tiles, columns)
        raw = whole.width * whole.height * len(whole.getbands())
        data = encode(whole, "PNG") if raw <= HOPELESS * most else b""
        if 0 < len(data) <= most:
            return Sheet(data, "png", width, height, columns, n, captions)
        for quality in QUALITIES if max(whole.size) < 16384 else ():  # the format's own limit
            data = encode(whole, "WEBP", quality=quality, method=2)
            if len(data) <= most:
                return Sheet(data, "webp", width, height, columns, n, captions)
        tiles = [shrink(tile, max(tile.size) // 2) for tile in tiles]


def paste(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size and mode, row by row."""
    width, height = tiles[0].size
    whole = Image.new(tiles[0].mode, (columns * width, -(-len(tiles) // columns) * height))
    for i, tile in enumerate(tiles):
        whole.paste(tile, (i % columns * width, i // columns * height))
    return whole


def shrink(image: Image.Image, side: int) -> Image.Image:
    """The picture with a longer side of ``side`` pixels at most."""
    factor = side / max(image.size)
    if factor >= 1:
        return image
    return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))),
                        Image.Resampling.LANCZOS)


def encode(image: Image.Image, form: str, **how: int) -> bytes:
    """The bytes of a file."""
    file = BytesIO()
    image.save(file, form, **how)
    return file.getvalue()
