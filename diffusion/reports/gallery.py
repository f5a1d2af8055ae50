"""The pictures of an evaluation: sheets in a folder, and ``gallery.json``, which says what is on them.

They are written once, when the images are at hand. A page takes them as they are: nothing is decoded.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffusion.reports.sheets import MOST_BYTES, Sheet
from diffusion.runs.files import make_folder, write_whole
from diffusion.sampling.manifest import is_file_name

FOLDER = "gallery"
"""In that of the evaluation."""
INDEX = "gallery.json"
PREVIEW = "preview"
"""Beginning of the names of sheets that no figure shows: a few pictures of the k-th set that was measured."""
MOST_INDEX = 2**25
"""Bytes of the index that is read."""


@dataclass(frozen=True)
class Group:
    """Pictures that stand together.

    :ivar caption: of all of them
    :ivar tiles: their places on the sheet
    :ivar words: of each; none takes the captions of the sheet
    """

    caption: str
    tiles: list[int]
    words: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Grid:
    """Pictures in groups.

    :ivar sheet: the name of the sheet
    :ivar worded: the words are seen below each
    """

    title: str
    note: str
    sheet: str
    groups: list[Group]
    worded: bool = False


@dataclass(frozen=True)
class Rows:
    """Kinds of pictures of the same things: row r, column c is picture ``r * columns + c`` of the sheet.

    :ivar rows: names of the rows
    :ivar heads: of the columns; none at all if there is nothing to say
    :ivar wipe: the two rows that a slider wipes over each other at first; None for no slider
    """

    title: str
    note: str
    sheet: str
    rows: list[str]
    heads: list[str] = field(default_factory=list)
    wipe: list[int] | None = None


@dataclass(frozen=True)
class Film:
    """The way of some samples: a row of the sheet for each station, with the first kind of picture of all samples, then
    the next kind.

    :ivar times: t of each station
    :ivar kinds: of pictures, such as ``x_t``
    """

    title: str
    note: str
    sheet: str
    times: list[float]
    kinds: list[str]


Figure = Grid | Rows | Film
KINDS: dict[str, type[Grid] | type[Rows] | type[Film]] = {"grid": Grid, "rows": Rows, "film": Film}


@dataclass
class Gallery:
    """Figures and their sheets.

    :ivar sheets: by name
    :ivar figures: of the first page
    :ivar pages: further pages, of one grid each
    """

    sheets: dict[str, Sheet] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    pages: list[Grid] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write it into the folder of an evaluation."""
        place = folder / FOLDER
        make_folder(place)
        sheets = {}
        for name, sheet in self.sheets.items():
            file = f"{name}.{sheet.kind}"
            write_whole(place / file, sheet.data)
            sheets[name] = {key: value for key, value in asdict(sheet).items() if key != "data"} | {"file": file}
        write_whole(place / INDEX, json.dumps({
            "sheets": sheets, "pages": [_plain(page) for page in self.pages],
            "figures": [_plain(figure) for figure in self.figures]}))

    @classmethod
    def load(cls, folder: Path, names: Callable[[str], bool] = lambda name: True) -> "Gallery":
        """That of an evaluation, which somebody else may have written; empty if there is none.

        :param names: which of the sheets are read; figures of others are left out
        :raises ValueError: if it is not as :meth:`save` writes it
        """
        place = folder / FOLDER
        if not (place / INDEX).is_file():
            return cls()
        try:
            content = json.loads(_read(place / INDEX, MOST_INDEX))
            sheets = {_text(name): _read_sheet(place, node) for name, node in content["sheets"].items() if names(name)}
            figures, pages = ([_read_figure(node, sheets) for node in content[key] if names(node["sheet"])]
                              for key in ("figures", "pages"))
        except (KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
            raise ValueError(f"{INDEX} is none of this version ({type(error).__name__})") from error
        return cls(sheets, figures, [page for page in pages if isinstance(page, Grid)])


def _plain(figure: Figure) -> dict[str, Any]:
    return {"kind": next(name for name, kind in KINDS.items() if isinstance(figure, kind)), **asdict(figure)}


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(most + 1)
    _require(len(content) <= most, f"{path.name} has more than {most} bytes")
    return content


def _read_sheet(place: Path, node: Any) -> Sheet:
    file, kind = node["file"], node["kind"]
    _require(is_file_name(file) and kind in ("png", "webp"), "a sheet that is no picture in the folder")
    numbers = {key: node[key] for key in ("width", "height", "columns", "count")}
    _require(all(type(number) is int and 0 < number < 2**24 for number in numbers.values()), "a sheet without a size")
    captions = _texts(node["captions"])
    _require(len(captions) in (0, numbers["count"]), "captions of other pictures")
    return Sheet(_read(place / file, MOST_BYTES), kind, **numbers, captions=captions)


def _read_figure(node: Any, sheets: dict[str, Sheet]) -> Figure:
    node = dict(node)
    kind = KINDS[node.pop("kind")]
    sheet, texts = sheets[node["sheet"]], {key: _text(node[key]) for key in ("title", "note", "sheet")}
    if kind is Grid:
        groups = [Group(_text(one["caption"]), _places(one["tiles"], sheet.count), _texts(one["words"]))
                  for one in node["groups"]]
        _require(all(len(one.words) in (0, len(one.tiles)) for one in groups), "words of other pictures")
        return Grid(**texts, groups=groups, worded=node["worded"] is True)
    if kind is Rows:
        rows, heads = _texts(node["rows"]), _texts(node["heads"])
        wipe = None if node["wipe"] is None else _places(node["wipe"], len(rows))
        _require(len(rows) * sheet.columns <= sheet.count and len(heads) in (0, sheet.columns)
                 and (wipe is None or len(wipe) == 2), "rows of other pictures")
        return Rows(**texts, rows=rows, heads=heads, wipe=wipe)
    times, kinds = node["times"], _texts(node["kinds"])
    _require(all(type(time) in (int, float) for time in times) and 0 < len(kinds) <= sheet.columns
             and sheet.columns % len(kinds) == 0 and 0 < len(times) * sheet.columns <= sheet.count,
             "a film of other pictures")
    return Film(**texts, times=list(map(float, times)), kinds=kinds)


def _places(values: Any, count: int) -> list[int]:
    _require(isinstance(values, list) and all(type(place) is int and 0 <= place < count for place in values),
             "a picture that is not there")
    return values


def _texts(values: Any) -> list[str]:
    _require(isinstance(values, list), "a list is wanted")
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    _require(isinstance(value, str), "words are wanted")
    return value


def _require(true: bool, problem: str) -> None:
    if not true:
        raise ValueError(f"{INDEX} is none of this version: {problem}")

