"""What scripts leave for people: tables in Markdown, figures as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion.runs.files import make_folder, write_whole


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    :param rows: the first one is the head
    """
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])


def save_figure(figure: Any, out: Path, dpi: int) -> Path:
    """A figure of matplotlib as a file, in a folder that is made if need be."""
    make_folder(out.parent)
    write_whole(out, lambda file: figure.savefig(file, dpi=dpi, format=out.suffix[1:] or "png"))
    return out
