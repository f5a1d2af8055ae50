"""The images that are restored: somebody's photos, or the held-out images of a run."""

import itertools
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from omegaconf import DictConfig

from configs import UserError
from configs.values import hash_plain
from degradations.randomness import Streams
from diffusion.data.base import Data, ImageSet
from diffusion.data.files.archive import open_archive
from diffusion.data.files.decode import Decoder, explain, open_image, read_upright
from diffusion.data.sets.folder import Folder
from diffusion.data.sets.shards import Shards
from diffusion.loading import build_data
from diffusion.model import Model
from diffusion.problem import InverseProblem

log = logging.getLogger(__name__)

LONGEST = 180
"""Bytes of a name: most file systems take 255, and a file that is being written has a longer one."""


@dataclass(frozen=True)
class Inputs:
    """Images to restore, brought to the size of the run.

    :ivar images: the images, with their classes where these are known
    :ivar sources: the name of each one's file, if it has one
    :ivar files: the name under which each one's restoration is saved; None goes by the index
    """

    images: ImageSet
    sources: list[str] | None = None
    files: list[str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def side(self) -> int:
        """Height and width to which they were brought, px."""
        return self.images.shape[-1]


def take_held_out(data: Data) -> Inputs:
    """The test split of a data set."""
    return Inputs(data.split("test"), data.files("test") if isinstance(data, Folder | Shards) else None)


def read_photos(root: Path, size: int, channels: int) -> Inputs:
    """The image file at ``root``, or the images in the folder or zip, sorted by their names.

    :param size: height and width to bring them to, in pixels
    :param channels: 1 (grey) or 3 (RGB)
    :raises UserError: there is nothing, or no readable image
    """
    if is_single_file(root):
        names, images = [root.name], _image(root, size, channels)
    else:
        try:
            folder = Folder(root, size, channels, held_out=0.0, labels=False)
            # Folders train and test mean nothing here: all images are taken.
            names, images = folder.index.names, ImageSet(folder.load("train").pixels)
        except UserError as error:
            raise UserError(error.got, error.wanted, error.fix.replace("data.root=", "input=")) from error
    return Inputs(images, names, name_files(names))


def find_inputs(model: Model, cfg: DictConfig, packages: Sequence[str]) -> Inputs:
    """The images of ``input.root``, else the held-out ones of the run's data."""
    if not cfg.input.root:
        return take_held_out(build_data(model.config, cfg.data, packages))
    channels, size, _ = model.image_shape
    return read_photos(find_root(cfg), size, channels)


def find_measured(problem: InverseProblem, model: Model, cfg: DictConfig, packages: Sequence[str]) -> Inputs:
    """The images that are measured, or what was measured of them already: small pictures of a problem that makes them
    small, or these enlarged.

    :raises UserError: for images that the problem cannot treat
    """
    channels, size, _ = model.image_shape
    measurement = problem.draw((1, *model.image_shape), Streams(0, (0,)))
    small = measurement.forward(torch.zeros(1, *model.image_shape)).shape[-1]
    if cfg.input.degraded and cfg.input.root and min(measure_first(find_root(cfg))) <= small < size:
        return read_photos(find_root(cfg), small, channels)
    return find_inputs(model, cfg, packages)


def measure_first(root: Path) -> tuple[int, int]:
    """Width and height of the first photo."""
    if is_single_file(root):
        return _shape(root.read_bytes())
    with open_archive(root) as archive:
        return _shape(archive.read(archive.entries()[0].name))


def find_root(cfg: DictConfig) -> Path:
    """``input.root`` as a path."""
    return Path(str(cfg.input.root)).expanduser()


def is_single_file(root: Path) -> bool:
    """Whether this is one file, and no archive of several."""
    return root.is_file() and not zipfile.is_zipfile(root)


def _image(path: Path, size: int, channels: int) -> ImageSet:
    try:
        pixels = Decoder(size, channels, crop=1.0, resample="bilinear")(path.read_bytes())
    # Pillow's readers raise whatever comes up in them.
    except Exception as error:
        raise UserError(f"{path} cannot be read as an image: {explain(error)}",
                        "an image, or a folder or .zip file of images", f"input={path.parent}") from error
    return ImageSet(torch.tensor(pixels)[None])


def name_files(names: Sequence[str]) -> list[str]:
    """A PNG file name for each photo: folders become part of it, and what would collide gets a number. A name depends
    on all photos that come before, so it is the same whichever of them are asked for."""
    taken = {"grid"}
    files = []
    for name in names:
        stem = shorten_name(str(Path(name).with_suffix("")).replace("/", "_"))
        free = next(s for s in itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
                    if s.casefold() not in taken)
        taken.add(free.casefold())
        files.append(f"{free}.png")
    return files


def shorten_name(stem: str) -> str:
    """The name of a file without its ending, as it is up to ``LONGEST`` bytes, else cut and told apart by a hash."""
    if len(stem.encode()) <= LONGEST:
        return stem
    return f"{stem.encode()[:LONGEST - 9].decode(errors='ignore')}-{hash_plain(stem, 8)}"


def log_changes(root: Path, names: Sequence[str], size: int) -> None:
    """Say how many of these photos are changed by being brought to a square of ``size``.

    :param root: where the photos come from, as for :func:`read_photos`
    """
    if is_single_file(root):
        shapes = [_shape(root.read_bytes())]
    else:
        with open_archive(root) as archive:
            shapes = [_shape(archive.read(name)) for name in names]
    cropped, resized = sum(w != h for w, h in shapes), sum(min(shape) != size for shape in shapes)
    if cropped or resized:
        log.info("photos: %d; cropped to the central square: %d; resized to %d x %d pixels: %d", len(shapes),
                 cropped, size, size, resized)


def _shape(file: bytes) -> tuple[int, int]:
    try:
        with open_image(BytesIO(file)) as image:
            return image.size
    except Exception:  # broken metadata, which reading the pixels drops
        with read_upright(file) as image:
            return image.size
