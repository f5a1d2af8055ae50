"""Samples in one file: a zip of PNGs, or an npz with the array that the literature's evaluators read."""

import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import IO

import numpy as np
from jaxtyping import UInt8

from diffusion.data.files.arrays import ARRAY
from diffusion.pictures import to_picture

FIRST_DAY = (1980, 1, 1, 0, 0, 0)
"""The date of all members: equal samples are equal files."""

Members = Iterable[tuple[str, bytes]]
"""Names and contents."""


@dataclass(frozen=True)
class Archive:
    """A kind of file for all samples of a folder.

    :ivar file: its name
    :ivar encode: one image ``(c, h, w)`` as bytes
    :ivar write: writes the bytes of all images into an open file, given the shape ``(n, c, h, w)`` of all
    """

    file: str
    encode: Callable[[UInt8[np.ndarray, "c h w"]], bytes]
    write: Callable[[IO[bytes], Members, tuple[int, int, int, int]], None]


def describe_member(name: str) -> zipfile.ZipInfo:
    """What stands in a zip about a member, the same everywhere."""
    info = zipfile.ZipInfo(name, FIRST_DAY)
    info.create_system, info.external_attr = 3, 0o644 << 16  # a file on Unix that all may read
    return info


def write_members(file: IO[bytes], members: Members) -> None:
    """A zip of these members, as they are: PNGs are compressed already."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(describe_member(name), content)


def encode_png(image: UInt8[np.ndarray, "c h w"]) -> bytes:
    """An image as the bytes of a PNG."""
    file = BytesIO()
    to_picture(image).save(file, "PNG")
    return file.getvalue()


def encode_array(image: UInt8[np.ndarray, "c h w"]) -> bytes:
    """The pixels of an image, its channels last."""
    return image.transpose(1, 2, 0).tobytes()


def write_zip(file: IO[bytes], members: Members, shape: tuple[int, int, int, int]) -> None:
    """A zip of PNGs."""
    write_members(file, members)


def write_npz(file: IO[bytes], members: Members, shape: tuple[int, int, int, int]) -> None:
    """``arr_0``, uint8 ``(N, H, W, C)``, as ``numpy.savez`` writes it; no more than one image is in memory."""
    n, channels, height, width = shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, height, width, channels)}
    with zipfile.ZipFile(file, "w") as archive, archive.open(describe_member(ARRAY), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for _, content in members:
            member.write(content)


ARCHIVES = {"zip": Archive("samples.zip", encode_png, write_zip),
            "npz": Archive("samples.npz", encode_array, write_npz)}
"""By ``format`` of ``sample.py``."""
