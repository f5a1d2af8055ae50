"""CIFAR-10, from the original batches or from any copy as images."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from configs.errors import UserError
from diffusion.data.base import SPLITS, Data, ImageSet, Split, choose_classes
from diffusion.data.files.decode import Decoder, find_filter
from diffusion.data.sets.folder import Folder

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = "cifar-10-batches-py"


class CIFAR10(Data):
    """CIFAR-10 (Krizhevsky 2009) with its official split, 50,000 train and 10,000 test, resized from 32x32 to ``size``.

    Read by torchvision from ``cifar-10-batches-py``, where that is; else as a folder with ``train`` and ``test`` inside
    (folders, or ``train.zip`` and ``test.zip``), a folder of images for each class.

    :param root: the folder with the batches folder or the two splits inside, or that batches folder itself
    :param size: height and width, in pixels
    :param channels: 3 (RGB), or 1 for grey
    :param resample: Pillow's filter for the resizing
    :param download: fetch the batches into ``root`` when there is nothing
    :param cache: for images decoded from files, see :class:`diffusion.data.sets.folder.Folder`
    :param flip: whether training may mirror the images
    :param only: the classes to take, None for all
    :raises UserError: an argument is out of range; at the first ``split``, there is neither, or the files are damaged
        or of other classes
    """

    def __init__(self, root: str | Path = "data", size: int = 32, channels: int = 3, resample: str = "bilinear",
                 download: bool = False, cache: str | Path | Literal[False] | None = None, flip: bool = True,
                 only: list[str] | None = None):
        super().__init__(size, channels, flip)
        if only is not None and (not only or len({*only} & {*CLASSES}) < len(only)):
            raise UserError(f"data.only={only}", f"some of the classes {', '.join(CLASSES)}, or null for all",
                            "data.only=[bird,cat,deer,dog,frog,horse]")
        self.only = only
        find_filter(resample)
        root = Path(root).expanduser()
        self.root = root.parent if root.name == BATCHES else root
        self.download, self.decoder = download, Decoder(size, channels, 1.0, resample)
        images = all((self.root / name).is_dir() or (self.root / f"{name}.zip").is_file() for name in SPLITS)
        self.folder = None
        if images and not (self.root / BATCHES).is_dir():
            self.folder = Folder(self.root, size, channels, resample=resample, labels=True, cache=cache)

    @property
    def class_names(self) -> list[str]:
        return CLASSES if self.only is None else self.only

    def load(self, name: Split) -> ImageSet:
        images = self._batches(name) if self.folder is None else self._folder(self.folder, name)
        return images if self.only is None else choose_classes(images, CLASSES, self.only)

    def _batches(self, name: Split) -> ImageSet:
        from torchvision import datasets  # slow to import, and other images do without

        try:
            raw = datasets.CIFAR10(str(self.root), train=name == "train", download=self.download)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"no readable CIFAR-10 in {self.root.absolute()} ({error})",
                            f"the folder {BATCHES}, or train.zip and test.zip with a folder for each class",
                            "data.root=/folder/that/contains/them, or data.download=true to fetch it") from error
        pixels = np.stack([self.decoder.pixels(Image.fromarray(image)) for image in raw.data])
        return ImageSet(torch.from_numpy(pixels), {"label": torch.tensor(raw.targets)})

    def _folder(self, folder: Folder, name: Split) -> ImageSet:
        if folder.class_names != CLASSES:
            raise UserError(f"the classes {', '.join(folder.class_names or [])} in {self.root}",
                            f"the folders {', '.join(CLASSES)} in train and in test",
                            f"data=folder data.root={self.root} for other images")
        return folder.split(name)
