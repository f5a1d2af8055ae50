"""CIFAR-10, from the original batches or from any copy as images."""

from pathlib import Path

import numpy as np
import torch
from torchvision import datasets

from configs.errors import UserError
from diffusion.data.base import Data, ImageSet, Split
from diffusion.data.folder import Folder

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = "cifar-10-batches-py"


class CIFAR10(Data):
    """CIFAR-10 with its official split, 50,000 train and 10,000 test, 32x32 in colour.

    Read by torchvision from ``cifar-10-batches-py``, where that is; else as a folder with ``train`` and ``test`` inside
    (folders, or ``train.zip`` and ``test.zip``), a folder of images for each class.

    :param root: the folder with the batches folder or the two splits inside
    :param download: fetch the batches into ``root`` when there is nothing
    :param cache: for decoded images, see :class:`diffusion.data.folder.Folder`
    :param flip: whether training may mirror the images
    :raises UserError: there is neither, or the files are damaged (at the first ``split``)
    """

    def __init__(self, root: str | Path = "data", size: int = 32, channels: int = 3, download: bool = False,
                 cache: str | Path | None = None, flip: bool = True):
        super().__init__(size, channels, flip)
        self.root, self.download, self.cache = Path(root).expanduser(), download, cache
        if self.root.name == BATCHES:
            self.root = self.root.parent
        inside = [split for split in ("train", "test")
                  if (self.root / split).is_dir() or (self.root / f"{split}.zip").is_file()]
        self.images = None
        if len(inside) == 2 and not (self.root / BATCHES).is_dir():
            self.images = Folder(self.root, size, channels, labels=True, cache=cache, flip=flip)

    @property
    def class_names(self) -> list[str]:
        return CLASSES

    def load(self, name: Split) -> ImageSet:
        return self._batches(name) if self.images is None else self._folder(self.images, name)

    def _batches(self, name: Split) -> ImageSet:
        try:
            raw = datasets.CIFAR10(str(self.root), train=name == "train", download=self.download)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"no CIFAR-10 in {self.root.absolute()} ({error})",
                            f"the folder {BATCHES}, or train.zip and test.zip with a folder for each class",
                            "data.root=/folder/that/contains/them, or data.download=true to fetch it") from error
        pixels = torch.from_numpy(np.ascontiguousarray(raw.data.transpose(0, 3, 1, 2)))
        return ImageSet(pixels, torch.tensor(raw.targets), CLASSES)

    def _folder(self, images: Folder, name: Split) -> ImageSet:
        if images.class_names != CLASSES:
            raise UserError(f"classes {images.class_names} in {self.root}", f"the folders {', '.join(CLASSES)}",
                            f"data=folder data.root={self.root} for other images")
        return images.split(name)
