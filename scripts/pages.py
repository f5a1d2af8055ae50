"""What scripts leave for people: tables in Markdown, figures as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    :param rows: the first one is the head
    """
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])


def save_figure(figure: Any, out: Path, dpi: int) -> Path:
    """A figure of matplotlib as a file, in a folder that is made if need be."""
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=dpi)
    return out
