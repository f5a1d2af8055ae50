"""Images to PNG files."""

from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from diffusion.data.pixels import to_uint8


def save_grid(images: Float[Tensor, "n c h w"], path: Path, columns: int | None = None,
              scale: int | None = None) -> Path:
    """A grid of images in [-1, 1]; small ones are enlarged by a whole factor so that a person can see them.

    :param columns: images in a row; None makes the grid about square
    :param scale: factor of enlargement; None chooses it
    """
    columns = columns or max(1, round(len(images) ** 0.5))
    scale = scale or max(1, 64 // images.shape[-1])
    big = to_uint8(images).repeat_interleave(scale, dim=-1).repeat_interleave(scale, dim=-2)
    grid = make_grid(big, nrow=columns, padding=2, pad_value=128)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(path)
    return path


def save_each(images: Float[Tensor, "n c h w"], folder: Path, names: list[str]) -> None:
    """One PNG per image."""
    folder.mkdir(parents=True, exist_ok=True)
    for image, name in zip(to_uint8(images), names):
        array = image.permute(1, 2, 0).numpy()
        Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(folder / f"{name}.png")
