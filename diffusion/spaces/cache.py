"""What a first stage knows about the training images, kept: they are encoded once, not at every step."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor, nn

from configs import UserError
from configs.errors import WriteError
from configs.values import hash_plain
from diffusion.data.base import ImageSet
from diffusion.data.files.index import default_cache
from diffusion.data.files.progress import progress
from diffusion.data.pixels import to_float
from diffusion.runs.files import write_whole
from diffusion.runs.lock import make_once
from diffusion.spaces.latent import Latent

log = logging.getLogger(__name__)

BATCH = 64
FORMAT = 1
"""Part of every key; to be raised when the same first stage comes to give other moments, or the file to hold others."""


def add_moments(space: Latent, images: ImageSet, data: str, flip: bool, augmented: bool) -> ImageSet:
    """The training images with the moments of their latents beside them, as the signal ``space.moments``, for
    :meth:`diffusion.spaces.latent.Latent.draw`, see :func:`load_moments`.

    :param augmented: whether the training changes the images otherwise, so that they cannot be encoded before
    :return: the images as they are, if nothing is to be cached or the place cannot be written
    :raises UserError: for a cache that is asked for and cannot be
    """
    if space.cache is False:
        return images
    if augmented:
        if space.cache is None:
            log.info("latents: encoded at every step, since the images are augmented")
            return images
        raise UserError(f"space.cache={space.cache} of images that are augmented otherwise at every step",
                        "augment=none; flip=true is possible", "augment=none, or space.cache=false")
    try:
        moments = load_moments(space, images, data, flip)
    except (OSError, WriteError) as error:
        reason = error.got if isinstance(error, WriteError) else error
        log.warning("the latents cannot be kept (%s); they are encoded at every step; space.cache=FOLDER says where "
                    "else", reason)
        return images
    return ImageSet(images.pixels, {**images.signals, "space.moments": moments}, images.rows)


def load_moments(space: Latent, images: ImageSet, data: str, flip: bool) -> Tensor:
    """The moments of all images, (n, m, 2, d, h, w): a file in the cache has them, or gets them.

    The key is the first stage's weights, the images and whether there are mirror images: those of other weights or
    images are other files.

    :param data: the fingerprint of the images
    :param flip: keep the moments of the mirror images, too (m = 2): mirrored latents are not those of mirrored images
    :raises WriteError: if it cannot be written
    """
    folder = Path(space.cache).expanduser() if isinstance(space.cache, str) else default_cache()
    shape = (len(images), 2 if flip else 1, 2, *space.shape(images.shape[1:]))
    key = hash_plain([FORMAT, hash_weights(space.first_stage), data, list(shape)], 64)
    store = folder / f"latents-{key[:16]}.moments"
    return make_once(store, lambda: read_moments(store, key, shape),
                     lambda: keep_moments(space, images, flip, store, key, shape), "the images are being encoded")


def keep_moments(space: Latent, images: ImageSet, flip: bool, store: Path, key: str, shape: tuple[int, ...]) -> Tensor:
    """Encode all images into a file, which appears whole or not at all."""
    digest = hashlib.sha256()

    def write(file: IO[bytes]) -> None:
        for part in progress(encode_images(space, images, flip), -(-len(images) // BATCH), "encoding the images"):
            data = part.numpy().tobytes()
            digest.update(data)
            file.write(data)

    write_whole(store, write)
    record = {"key": key, "shape": list(shape), "sum": digest.hexdigest()}
    write_whole(store.with_suffix(".json"), json.dumps(record))
    log.info("latents: %d images encoded into %s", len(images), store)
    return map_moments(store, shape)


def encode_images(space: Latent, images: ImageSet, flip: bool) -> Iterator[Tensor]:
    """The moments of all images, and of their mirror images, (n, m, 2, d, h, w) of half precision, on the CPU."""
    device = space.get_buffer("mean").device
    for rows in torch.arange(len(images)).split(BATCH):
        x = to_float(images.batch(rows)[0].to(device))
        with torch.no_grad():
            moments = [space.find_moments(each) for each in ([x, x.flip(-1)] if flip else [x])]
        yield torch.stack(moments, dim=1).cpu()


def read_moments(store: Path, key: str, shape: tuple[int, ...]) -> Tensor | None:
    """What is kept in a file; None if there is none, or it is damaged or of another key."""
    try:
        record = json.loads(store.with_suffix(".json").read_bytes())
        moments = map_moments(store, shape)
        digest = hashlib.sha256()
        for part in moments.split(BATCH):
            digest.update(part.numpy().tobytes())
        if record["key"] != key or record["sum"] != digest.hexdigest():
            raise ValueError("it is not what its record says")
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged bytes can provoke any error in the parsers, and all of them mean the same
        log.warning("the cache %s is damaged and will be made again (%s)", store, error)
        return None
    log.info("latents: those of %d images, from %s", shape[0], store)
    return moments


def map_moments(store: Path, shape: tuple[int, ...]) -> Tensor:
    """The content of a file, mapped into memory, for reading only."""
    if store.stat().st_size != 2 * np.prod(shape):
        raise ValueError(f"{store.stat().st_size} bytes for {shape}")
    # Torch warns of an array that cannot be written; mode "c" lets it be written in memory alone, which nobody does.
    return torch.from_numpy(np.memmap(store, np.float16, "c", shape=tuple(shape)))


def hash_weights(module: nn.Module) -> str:
    """A hash of names, types and values of a module's weights."""
    whole = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        data = value.detach().cpu().contiguous()
        whole.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        whole.update(data.view(torch.uint8).numpy().tobytes() if data.dim() else str(data.item()).encode())
    return whole.hexdigest()
