"""Features of whole sets of images; those of real images are kept in a cache, by content."""

import contextlib
import hashlib
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from configs import UserError
from configs.errors import WriteError
from diffusion.data.base import CHUNK
from diffusion.data.files.index import default_cache
from diffusion.data.files.progress import progress
from diffusion.metrics.base import Features, Images
from diffusion.metrics.extractors.base import Extractor
from diffusion.runs import checkpoint
from diffusion.runs.files import make_folder, write_whole

log = logging.getLogger(__name__)


def fingerprint(images: Images) -> str:
    """A hash of the pixels and the shape of a set."""
    whole = hashlib.blake2b(repr(images.shape).encode(), digest_size=16)
    for indices in torch.arange(images.shape[0]).split(CHUNK):
        whole.update(np.ascontiguousarray(images.batch(indices)[0].numpy()).data)
    return whole.hexdigest()


def features(images: Images, extractor: Extractor, what: str, known: str | None = None,
             cache: Path | None = None) -> Features:
    """The features of a set, extracted some images at a time.

    :param what: these images in words, for messages
    :param known: the fingerprint of the set, if its features are worth keeping
    :param cache: the folder to keep them in; None for ``thaw`` in the user's cache folder
    :raises UserError: the extractor cannot take the images, or a feature is not finite
    """
    extractor.check(images.shape)
    path = None
    if known is not None:
        stamp = hashlib.sha256(f"{known} {extractor.name} {extractor.identity} {extractor.resizing}".encode())
        path = (cache or default_cache()) / f"features-{stamp.hexdigest()[:24]}.pt"
        found = read_features(path, images.shape[0])
        if found is not None:
            return found
    result = extract(images, extractor, what)
    if path is not None:
        with contextlib.suppress(OSError, WriteError):  # a cache that cannot be written costs time only
            make_folder(path.parent)
            write_whole(path, checkpoint.dump(vars(result)))
    return result


def extract(images: Images, extractor: Extractor, what: str) -> Features:
    """The features of a set, extracted some images at a time; arguments as for :func:`features`."""
    n = images.shape[0]
    found: dict[str, Tensor] = {}
    parts = torch.arange(n).split(extractor.chunk)
    for indices in progress(parts, len(parts), f"features of {what}, {extractor.chunk} at a time"):
        some = {name: value for name, value in vars(extractor(images.batch(indices)[0])).items() if value is not None}
        strange = indices[~torch.cat(list(some.values()), dim=1).isfinite().all(dim=1)]
        if len(strange):
            raise UserError(f"features of image {int(strange[0])} of {what} that are not finite numbers "
                            f"({extractor.name})", "finite features",
                            "extractor=random; or look at the image and at the extractor's weights")
        for name, value in some.items():
            # Filled in place: chunks in a list and their concatenation would need twice the memory.
            found.setdefault(name, torch.empty(n, value.shape[1]))[indices] = value
    return Features(**found)


def read_features(path: Path, n: int) -> Features | None:
    """The features of n images in a file; None if they are not there, or not all of them."""
    try:
        content = torch.load(path, mmap=True, weights_only=True)
        found = Features(content["values"], content["logits"], content.get("attributes"))
    except Exception:  # a damaged file fails in many ways
        return None
    return found if len(found) == n else None
