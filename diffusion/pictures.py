"""Images to files: one PNG each, and grids with words beside them."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffusion.data.pixels import to_uint8
from diffusion.runs.files import make_folder, write_whole


@dataclass(frozen=True)
class Picture:
    """A grid of images in [-1, 1] with its captions; fields as for :func:`grid`."""

    images: Float[Tensor, "n c h w"]
    columns: int | None = None
    rows: Sequence[str] = ()
    heads: Sequence[str] = ()
    captions: Sequence[str] = ()

    def save(self, path: Path) -> Path:
        """Write it to a file."""
        return save_grid(self.images, path, self.columns, rows=self.rows, heads=self.heads, captions=self.captions)


COLUMNS = 20
"""Classes that are still shown side by side."""


LINES = 4
"""Lines of words above or below an image, at most."""


def grid(images: UInt8[Tensor, "n c h w"], columns: int | None = None, scale: int | None = None,
         rows: Sequence[str] = (), heads: Sequence[str] = (), captions: Sequence[str] = ()) -> Image.Image:
    """A grid of images; small ones are enlarged by a whole factor so that a person can see them.

    :param columns: images in a row; None makes the grid about square
    :param scale: factor of enlargement; None chooses it
    :param rows: a caption for each row
    :param heads: a caption for each column
    :param captions: a caption for each image, below it
    """
    columns = columns or max(1, round(len(images) ** 0.5))
    scale = scale or max(1, (112 if captions else 64) // images.shape[-1])
    big = images.repeat_interleave(scale, dim=-1).repeat_interleave(scale, dim=-2)
    if captions:
        return arrange_with_captions([to_picture(image.numpy()) for image in big], captions, columns)
    return add_captions(Image.fromarray(arrange_in_rows(big.numpy(), columns)), rows, heads)


def arrange_in_rows(images: UInt8[np.ndarray, "n c h w"], columns: int, gap: int = 2) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Images, grey ones as RGB, in rows with grey lines around each; one image alone has none."""
    images = np.broadcast_to(images, (len(images), 3, *images.shape[2:]))
    if len(images) == 1:
        return images[0].transpose(1, 2, 0)
    columns = min(columns, len(images))
    rows, height, width = -(-len(images) // columns), images.shape[2] + gap, images.shape[3] + gap
    whole = np.full((rows * height + gap, columns * width + gap, 3), 128, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * height + gap, i % columns * width + gap
        whole[top:top + height - gap, left:left + width - gap] = image.transpose(1, 2, 0)
    return whole


def add_captions(picture: Image.Image, rows: Sequence[str] = (), heads: Sequence[str] = ()) -> Image.Image:
    """The picture with words on a white margin: ``rows`` to the left and ``heads`` above, each in the middle of its
    equal share of the height or width. The size of the letters follows these shares; what is too long is shortened."""
    across, down = picture.width / max(1, len(heads)), picture.height / max(1, len(rows))
    size = min(20, max(10, round(min(across, down) / 6)))
    font, gap = ImageFont.load_default(size), size // 2
    beside = [shorten_text(text, font, max(96, 2 * down)) for text in rows]
    above = [wrap_text(text, font, across - gap) for text in heads]
    left = round(max(map(font.getlength, beside))) + 2 * gap if rows else 0
    top = max(text.count("\n") + 1 for text in above) * (size + 2) - 2 + 2 * gap if heads else 0
    whole = Image.new("RGB", (picture.width + left, picture.height + top), "white")
    whole.paste(picture, (left, top))
    draw = ImageDraw.Draw(whole)
    for i, text in enumerate(beside):
        draw.text((left - gap, top + (i + 0.5) * down), text, "black", font, "rm")
    for i, text in enumerate(above):
        draw.multiline_text((left + (i + 0.5) * across, top / 2), text, "black", font, "mm", 2, "center")
    return whole


def arrange_with_captions(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int) -> Image.Image:
    """Pictures of one size in rows, each with its caption below on white."""
    font, gap, (width, height) = ImageFont.load_default(10), 4, pictures[0].size
    below = [wrap_text(text, font, width) for text in captions]
    foot = max(text.count("\n") + 1 for text in below) * 12 + gap
    across, down = width + gap, height + foot + gap
    whole = Image.new("RGB", (columns * across + gap, -(-len(pictures) // columns) * down + gap), "white")
    draw = ImageDraw.Draw(whole)
    for i, (picture, text) in enumerate(zip(pictures, below, strict=True)):
        left, top = gap + i % columns * across, gap + i // columns * down
        whole.paste(picture, (left, top))
        draw.multiline_text((left + width / 2, top + height + gap // 2), text, "black", font, "ma", 2, "center")
    return whole


def wrap_text(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The text in up to ``LINES`` lines that are no wider than so many pixels; what is left over is cut, see
    :func:`shorten_text`."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1] and len(lines) < LINES:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(shorten_text(line, font, width) for line in lines)


def shorten_text(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The text, cut where it would be wider than so many pixels. Letters that Pillow's font lacks lose their accents,
    or become question marks."""
    bare = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    text = "".join(bare).encode("ascii", "replace").decode()
    if font.getlength(text) <= width:
        return text
    cuts = (text[:end].rstrip() + "…" for end in range(len(text) - 1, 0, -1))
    return next((cut for cut in cuts if font.getlength(cut) <= width), "")


def arrange_by_condition(captions: Sequence[str]) -> tuple[int | None, list[str]]:
    """Columns and captions of a grid of samples: a column for each condition if they go through some in turn, the last
    round perhaps cut short; one caption if all have the same; else None and no captions.

    :param captions: the condition of each sample in words; none for samples without
    """
    if not captions:
        return None, []
    if len(set(captions)) == 1:
        return None, list(captions[:1])
    turn = next((i for i, caption in enumerate(captions) if i and caption == captions[0]), len(captions))
    if not 1 < turn <= COLUMNS or any(caption != captions[i % turn] for i, caption in enumerate(captions)):
        return None, []
    return turn, list(captions[:turn])


def save_grid(images: Float[Tensor, "n c h w"], path: Path, columns: int | None = None, scale: int | None = None,
              rows: Sequence[str] = (), heads: Sequence[str] = (), captions: Sequence[str] = ()) -> Path:
    """A grid of images in [-1, 1] as a file; arguments as for :func:`grid`."""
    make_folder(path.parent)
    picture = grid(to_uint8(images), columns, scale, rows, heads, captions)
    write_whole(path, lambda file: picture.save(file, "PNG"))
    return path


def save_each(images: Float[Tensor, "n c h w"], folder: Path, names: Sequence[str]) -> None:
    """One PNG per image in [-1, 1], whole or not at all.

    :param names: of the files
    """
    make_folder(folder)
    for image, name in zip(to_uint8(images).numpy(), names, strict=True):
        picture = to_picture(image)
        write_whole(folder / name, lambda file, picture=picture: picture.save(file, "PNG"))


def to_picture(image: UInt8[np.ndarray, "c h w"]) -> Image.Image:
    """Pixels, 1 (grey) or 3 (RGB) channels, as Pillow's image."""
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
