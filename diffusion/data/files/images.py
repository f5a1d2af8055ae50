"""Image files that are measured as they are: nothing is cropped, resized or converted."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from configs import UserError
from configs.values import hash_plain
from diffusion.data.base import CHUNK
from diffusion.data.files.archive import describe_others, open_archive, suggest_root
from diffusion.data.files.decode import explain, open_image
from diffusion.data.files.layout import layout
from diffusion.data.files.threads import in_order

log = logging.getLogger(__name__)


class Files:
    """The images of a folder or a ``.zip`` file, all of one size and mode, read when they are asked for. Like an
    ``ImageSet``, but in no memory.

    :param root: the folder or archive
    :param names: of the files, in the order to take them; None takes all images, sorted
    :param written: what each was made of, as :meth:`models.readers.Reader.write` has written it; not given, the
        first folder is the class if there are two or more
    :param option: the override that names ``root``, for messages
    :ivar written: what each was made of, where it is known
    :ivar stamp: changes with the files (their names, sizes, times of change)
    :raises UserError: there is nothing, or no image; when they are read, one is broken, of another size, or neither
        8-bit grey nor RGB
    """

    def __init__(self, root: Path, names: Sequence[str] | None = None,
                 written: Sequence[Mapping[str, Any]] | None = None, option: str = "images"):
        self.root, self._option, self.written = root, option, list(written or ())
        self._open = ExitStack()
        try:
            self._archive = self._open.enter_context(open_archive(root))
        except UserError as error:
            raise UserError(error.got, error.wanted, error.fix.replace("data.root=", f"{option}=")) from error
        entries = {entry.name: entry for entry in self._archive.entries()}
        others = describe_others(self._archive.others)
        if others and names is None:
            log.warning("not read in %s: %s", root, others)
        self.names = list(entries) if names is None else list(names)
        if not self.names:
            raise UserError(f"no images in {root}" + (f", but {others}" if others else ""), "at least one",
                            f"{option}={suggest_root(root) or '/path/to/images'}")
        if names is None:
            found = _find_classes(self.names)
            self.labels: Int64[Tensor, " n"] | None = None if found is None else torch.from_numpy(found)
            self.conditions: Int64[Tensor, " n"] | None = self.labels
        else:
            labels = [one.get("label") for one in written or ()]
            self.labels = torch.tensor(labels) if labels and None not in labels else None
            texts = [json.dumps(one, sort_keys=True) for one in written or () if one]
            number = {text: i for i, text in enumerate(sorted(set(texts)))}
            self.conditions = torch.tensor([number[text] for text in texts]) if len(texts) == len(self.names) else None
        self._image = tuple(self._read(self.names[0]).shape)
        self.stamp = hash_plain([[n, entries[n].bytes, entries[n].stamp] for n in self.names if n in entries], 16)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(n, c, h, w)`` of all images."""
        channels, height, width = self._image
        return len(self), channels, height, width

    def batch(self, indices: Int64[Tensor, " b"]) -> tuple[UInt8[Tensor, "b c h w"], dict[str, Tensor]]:
        """Chosen images, and their classes as the signal ``label``."""
        images = torch.from_numpy(np.stack(list(in_order(self._checked, [self.names[i] for i in indices.tolist()]))))
        return images, {} if self.labels is None else {"label": self.labels[indices]}

    def chunks(self) -> Iterator[tuple[UInt8[Tensor, "b c h w"], dict[str, Tensor]]]:
        """All images in their order, and their classes, some hundred at a time."""
        for indices in torch.arange(len(self)).split(CHUNK):
            yield self.batch(indices)

    def _read(self, name: str) -> UInt8[np.ndarray, "c h w"]:
        try:
            with open_image(BytesIO(self._archive.read(name))) as image:
                mode, pixels = image.mode, np.array(image)
        # Pillow's readers raise whatever comes up in them.
        except Exception as error:
            raise UserError(f"{name} in {self.root} cannot be read: {explain(error)}", "an image file",
                            f"{self._option}=ANOTHER_FOLDER, or remove the file") from error
        if mode not in ("L", "RGB"):
            raise UserError(f"{name} in {self.root} has the mode {mode}", "8-bit grey (L) or RGB",
                            f"convert the images, or {self._option}=ANOTHER_FOLDER")
        return pixels.transpose(2, 0, 1) if mode == "RGB" else pixels[None]

    def _checked(self, name: str) -> UInt8[np.ndarray, "c h w"]:
        pixels = self._read(name)
        if pixels.shape != self._image:
            raise UserError(f"{name} in {self.root} is {size(pixels.shape)}, {self.names[0]} is {size(self._image)}",
                            "images of one size and mode",
                            f"{self._option}=ANOTHER_FOLDER, or python scripts/prepare_data.py to make them equal")
        return pixels


def _find_classes(names: Sequence[str]) -> Int64[np.ndarray, " n"] | None:
    try:
        return layout(names, "auto", 0.0).labels
    except UserError:
        # Folders that may or may not be classes; the images can be measured all the same.
        return None


def size(shape: Sequence[int]) -> str:
    """``(c, h, w)`` in words: ``32 x 32 px, RGB``."""
    channels, height, width = shape[-3:]
    return f"{width} x {height} px, {'grey' if channels == 1 else 'RGB'}"
