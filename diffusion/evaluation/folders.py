"""Folders and archives of images that are measured, or measured against."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs import UserError
from diffusion.data.files.arrays import name_rows
from diffusion.data.files.images import Files, size
from diffusion.metrics.base import Images
from diffusion.sampling.manifest import read_manifest


def find_images(root: str, option: str = "images") -> tuple[Files, dict[str, Any]]:
    """The images of a folder or archive, and the manifest if ``sample.py`` has made them; then they are those that it
    names, in its order, with their classes.

    :param option: the override that names ``root``, for messages
    :raises UserError: if there are none
    """
    place = Path(str(root)).expanduser()
    manifest = read_manifest_of(place, f"{option}=ANOTHER_FOLDER, or remove manifest.json to measure all images there")
    if manifest is None:
        return Files(place, option=option), {}
    samples = manifest["samples"]
    if "archive" in manifest:
        place = place if place.is_file() else place / manifest["archive"]
    if place.suffix == ".npz":  # whose images have no names
        samples = [{**s, "file": row} for s, row in zip(samples, name_rows(len(samples)), strict=True)]
        manifest = manifest | {"samples": samples}
    return Files(place, [s["file"] for s in samples], [s["condition"] for s in samples], option), manifest


def read_manifest_of(place: Path, fix: str) -> dict[str, Any] | None:
    """The manifest of a folder of samples, or of the archive of one; None if there is none.

    :param fix: for messages
    :raises UserError: if that of a folder is not as ``sample.py`` writes it
    """
    if not place.is_file():
        return read_manifest(place, fix)
    with contextlib.suppress(UserError):  # a file of somebody else, which says nothing of the archive
        manifest = read_manifest(place.parent, fix) or {}
        return manifest if manifest.get("archive") == place.name else None
    return None


def require_equal_sizes(images: Images, reference: Images, what: str) -> None:
    """Refuse a reference of another size or mode.

    :raises UserError: saying what both are
    """
    if images.shape[1:] != reference.shape[1:]:
        raise UserError(f"{what} of {size(images.shape)}, and a reference of {size(reference.shape)}",
                        "images of one size and mode", "reference=FOLDER with such images, or the run that made them")


def pair_names(restored: Sequence[str], originals: Sequence[str], sources: Mapping[str, str | None]) -> list[str]:
    """The original of each restored file.

    :param sources: the original of a file, where it is known
    :raises UserError: if the two do not belong together one by one
    """
    stems: dict[str, list[str]] = {}
    for name in originals:
        stems.setdefault(name.rpartition(".")[0], []).append(name)
    known, found = set(originals), {}
    for name in restored:
        source, alike = sources.get(name), stems.get(name.rpartition(".")[0], [])
        if source in known or name in known:
            found[name] = source if source in known else name
        elif len(alike) == 1:
            found[name] = alike[0]
    alone = sorted({*restored} - {*found} | known - {*found.values()})
    if alone or len(set(found.values())) < len(found):
        raise UserError(f"files without a partner: {', '.join(alone[:5])}" + (" ..." if len(alone) > 5 else ""),
                        "two folders with the same file names", "pairs=false, or the missing files")
    return [str(found[name]) for name in restored]
