"""An npz of images, ``arr_0`` of uint8 (N, H, W, C), as evaluators of the literature exchange samples."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from configs.errors import UserError

ARRAY = "arr_0.npy"
"""The member that the images are in."""


def map_images(path: Path, most: int) -> UInt8[np.ndarray, "n h w c"]:
    """The images of an npz: mapped into memory, or, where the file is compressed, read.

    :param most: bytes that are read
    :raises UserError: if there is no such array, or one of something else
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(ARRAY) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, kind = read(member)
            if kind != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3) or min(shape) < 1 or fortran:
                raise ValueError(f"{kind} of shape {shape}")
            if archive.getinfo(ARRAY).file_size != member.tell() + np.prod(shape, dtype=object):
                raise ValueError("it is cut short")
            if archive.getinfo(ARRAY).compress_type != zipfile.ZIP_STORED:
                if archive.getinfo(ARRAY).file_size > most:
                    raise ValueError(f"compressed, and of more than {most} bytes (THAW_MOST_BYTES)")
                return np.frombuffer(member.read(), np.uint8).reshape(shape)
            begin = _find_content(path, archive.getinfo(ARRAY)) + member.tell()
        return np.memmap(path, np.uint8, "r", begin, shape)
    except (KeyError, ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as an array of images: {error}",
                        "an npz with arr_0, uint8 (N, H, W, C) of 1 or 3 channels",
                        "another file, or a folder of images") from error


def name_rows(n: int) -> list[str]:
    """A name for each of n images, in their order when sorted."""
    width = max(6, len(str(n - 1)))
    return [f"{i:0{width}d}.png" for i in range(n)]


def encode_pixels(image: UInt8[np.ndarray, "h w c"]) -> bytes:
    """An image as the bytes of a file that needs no compression: PGM for grey, PPM for RGB."""
    height, width, channels = image.shape
    return f"P{5 if channels == 1 else 6} {width} {height} 255\n".encode() + image.tobytes()


def _find_content(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin: behind its own header, whose name and extra field may be of other lengths
    than in the list at the end."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
        name, extra = (int.from_bytes(header[place:place + 2], "little") for place in (26, 28))
        return info.header_offset + len(header) + name + extra
