"""MNIST, from the original files."""

from pathlib import Path

from configs.errors import UserError
from diffusion.data.base import Data, ImageSet, Split, make_labelled
from diffusion.data.files.decode import find_filter, resize_grey


class MNIST(Data):
    """MNIST with its official split, 60,000 train and 10,000 test, resized from 28x28 to ``size``.

    :param root: the folder with ``MNIST/raw`` inside, or that ``MNIST`` folder itself
    :param size: height and width, in pixels
    :param channels: 1, or 3 for the grey repeated
    :param resample: Pillow's filter for the resizing
    :param download: fetch the files into ``root`` when they are not there
    :param flip: whether training may mirror the images; a mirrored digit is no digit
    :raises UserError: the files are missing or damaged (at the first ``split``), or an argument is out of range
    """

    def __init__(self, root: str | Path = "data", size: int = 32, channels: int = 1, resample: str = "bilinear",
                 download: bool = False, flip: bool = False):
        super().__init__(size, channels, flip)
        self.root = Path(root).expanduser()
        self.resample = find_filter(resample)
        self.download = download

    @property
    def class_names(self) -> list[str]:
        return [str(digit) for digit in range(10)]

    def load(self, name: Split) -> ImageSet:
        from torchvision import datasets  # slow to import, and other images do without

        # torchvision looks for MNIST/raw below its root.
        inside = self.root.name == "MNIST" and (self.root / "raw").is_dir()
        root = self.root.parent if inside else self.root
        try:
            raw = datasets.MNIST(str(root), train=name == "train", download=self.download)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"no readable MNIST in {(root / 'MNIST' / 'raw').absolute()} ({error})",
                            "the four original files, such as train-images-idx3-ubyte",
                            "data.root=/folder/that/contains/MNIST, or data.download=true to fetch them; "
                            "data.source=digits for scenes without it") from error
        pixels = resize_grey(raw.data.numpy(), self.size, self.resample)
        return make_labelled(pixels, raw.targets.numpy(), self.channels)
