"""What an extractor is."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from configs import UserError
from diffusion.metrics.base import Features


class Extractor(ABC):
    """From images to features, row by row: what is seen in an image does not depend on the others. A constructor takes
    its settings and ``device``, where to compute.

    :ivar name: goes into the names of the numbers, ``fd/<name>``
    :ivar identity: what the features depend on: a hash of the weights, at least
    :ivar resizing: what is done to the images before, in words
    :ivar official: the names that the literature has for numbers of these features, by ours, as ``{"fd": "FID"}``;
        empty if the network or its weights are not those of the literature
    :ivar chunk: images at a time
    """

    name: str
    identity: str
    resizing: str = "none"
    official: Mapping[str, str] = MappingProxyType({})
    chunk: int = 256

    def check(self, shape: Sequence[int]) -> None:  # noqa: B027
        """Refuse images that it cannot take.

        :param shape: ``(n, c, h, w)`` of a set
        :raises UserError: saying which it can take
        """

    @abstractmethod
    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Features:
        """The features of a chunk, on the CPU."""


def rgb(images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n 3 h w"]:
    """Grey repeated to three channels."""
    return images.expand(-1, 3, -1, -1)


def weights_file(path: str | Path, option: str) -> tuple[Path, str, dict[str, Any]]:
    """A file of weights, its SHA-256, and its content: tensors and plain types only, so that it cannot run code.

    :param option: the override that names it, for messages
    :raises UserError: there is none, or it is something else
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"no weights at {file}", "a file that you have downloaded", f"{option}=/path/to/weights.pth")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no weights fail in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} cannot be read: {reason}", "a state dict of tensors",
                        f"{option}=/path/to/weights.pth") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) and isinstance(value, torch.Tensor)
                                                for name, value in content.items()):
        raise UserError(f"{file} holds something else than weights by name", "a state dict of tensors",
                        f"{option}=/path/to/weights.pth")
    with file.open("rb") as stream:
        return file, hashlib.file_digest(stream, "sha256").hexdigest(), content


def needs(package: str, what: str) -> UserError:
    """The error for an optional package that is not installed."""
    return UserError(f"{what}, but {package} is not installed", f"the package {package}",
                     'pip install -e ".[metrics]", or another extractor')
