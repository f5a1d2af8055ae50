"""Pages of HTML in one file: nothing is loaded from elsewhere, and what comes from outside stands there as text."""

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from configs.errors import escape
from diffusion.runs.files import make_folder, write_whole

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    :ivar text: what stands there
    :ivar value: by which the rows are sorted; None sorts by the text
    :ivar note: small, behind the text
    :ivar strong: set in bold
    :ivar link: the name of a place on the page, such as ``row-3``
    """

    text: str
    value: float | None = None
    note: str = ""
    strong: bool = False
    link: str | None = None


@dataclass(frozen=True)
class Table:
    """A table: its first column names the rows.

    :ivar head: names of the columns
    :ivar rows: as long as the head
    :ivar sortable: whether its columns can be sorted by
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    caption: str = ""
    sortable: bool = False


def render(template: str, **values: Any) -> str:
    """A page from one of the :data:`TEMPLATES`, in one file, the same bytes for the same values.

    ``base.html`` is to be extended: it takes a ``title``, and the blocks ``head``, ``lead`` (below the title) and
    ``main``. Style and script are in it, and a policy by which the browser runs that script alone and loads nothing.
    Every value is escaped, whatever it is called, unless it is ``Markup``; signs that are not seen, or turn the
    direction of the text, are written out. ``macros.html`` sets a :class:`Table` and figures.

    :param template: its name, such as ``evaluation.html``
    :param values: what it takes; one that is missing is an error
    """
    return _environment().get_template(template).render(**values)


def save_page(path: Path, template: str, **values: Any) -> Path:
    """A page as a file, whole or not at all; arguments as for :func:`render`."""
    text = render(template, **values)
    make_folder(path.parent)
    write_whole(path, text)
    return path


@lru_cache
def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
                              finalize=lambda value: escape(value) if type(value) is str else value)
    script = (TEMPLATES / "script.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(style=Markup((TEMPLATES / "style.css").read_text()), script=Markup(script),
                               policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
                                      f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'")
    environment.filters["plain"] = write_number
    return environment


def write_number(value: Any) -> str:
    """A number, or whatever else plain data may hold, for people: ``0.1234``, ``12300000``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
