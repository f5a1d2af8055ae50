"""Where shards are: folders, files and patterns of them."""

from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from configs.errors import UserError

PACKED = (".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".zst", ".lz4", ".zip", ".7z")


def find_shards(places: str | Path | Sequence[str | Path], option: str = "data.root",
                beside: Path | None = None) -> list[Path]:
    """The tar files at these places, each of which is a folder of them, a file, or a pattern such as
    ``FOLDER/train-*.tar`` (``**`` goes through folders); in the order of their names.

    :param option: the setting that names them, for messages
    :param beside: where relative places are looked for before the current folder
    :raises UserError: for a place without shards, an address, or compressed archives
    """
    several = [places] if isinstance(places, str | Path) else list(places)
    found: set[Path] = set()
    for place in map(str, several):
        if "://" in place or place.startswith("pipe:"):
            raise UserError(f"{option}={place}, an address", "tar files on this machine",
                            f"download them, then {option}=FOLDER")
        tries = [str(base / Path(place).expanduser()) for base in ([beside, Path()] if beside else [Path()])]
        some = next(filter(None, map(_list_files, tries)), []) if place else []
        packed = next((path for path in [*some, Path(place)] if path.suffix.lower() in PACKED), None)
        if packed is not None:
            raise UserError(f"{packed}, a compressed archive, of which no part can be read by itself",
                            "tar files as they are", "unpack it: gunzip FILE.tar.gz, unzstd FILE.tar.zst")
        if not some:
            inside = sorted(str(path) for base in tries for path in Path(base).glob("*/*.tar")) if place else []
            raise UserError(f"there are no shards at {place or 'an empty path'}",
                            "a folder of .tar files, a file, a pattern, or a list of these",
                            f"{option}={Path(inside[0]).parent if inside else 'FOLDER'}, or "
                            f"{option}='FOLDER/*.tar'")
        found |= set(some)
    if not found:
        raise UserError(f"{option}=[]", "a folder of .tar files, or at least one", f"{option}=FOLDER")
    return sorted(found, key=lambda path: (path.name, str(path)))


def _list_files(place: str) -> list[Path]:
    if Path(place).is_dir():
        found = [path for path in Path(place).iterdir() if path.suffix.lower() == ".tar" and path.is_file()]
        return found or [path for path in Path(place).iterdir() if ".tar." in path.name.lower()
                         or path.suffix.lower() == ".tgz"]
    if Path(place).is_file():
        return [Path(place)]
    return [path for path in map(Path, glob(place, recursive=True)) if path.is_file()] if has_magic(place) else []
