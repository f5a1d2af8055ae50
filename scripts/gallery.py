"""Pages of the site that show every method: what there is says its YAML, what it is its class."""

from pathlib import Path


def write_gallery(folder: Path) -> None:
    folder.mkdir(parents=True)
