"""What lies beside the images of a folder or archive: captions, and numbers in tables."""

import csv
import io
import json
import logging
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from configs.errors import UserError
from diffusion.data.files.archive import Archive, open_archive
from diffusion.data.files.threads import in_order

logger = logging.getLogger(__name__)

CAPTIONS = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
"""The tables of captions, the first of which there is one counts; without any, there is a ``.txt`` for each image."""
NUMBERS = {"attributes": ("attributes.csv",), "vector": ("vector.csv", "attributes.csv")}
"""The tables of the signals that are numbers."""
SIGNALS = ("text", *NUMBERS)
"""What can be read beside images."""
FILE_COLUMNS, TEXT_COLUMNS = ("file", "file_name", "filename", "image"), ("text", "caption")
"""How the columns with the image and with its caption may be called, whatever their case."""


@dataclass(frozen=True)
class Numbers:
    """The numbers of each image.

    :ivar names: of the columns
    :ivar rows: by the path of the image
    """

    names: list[str]
    rows: Mapping[str, Float32[np.ndarray, " d"]]


@dataclass(frozen=True)
class Beside:
    """What is said about images.

    :ivar captions: by the path of the image; empty where nobody asked
    :ivar numbers: the tables by the name of their signal
    """

    captions: Mapping[str, str]
    numbers: Mapping[str, Numbers]


@dataclass
class _Table:
    """The tables of one name in all folders: one in a folder is about the images in it and further inside."""

    path: str
    columns: list[str] = field(default_factory=list)
    rows: list[tuple[str, list[str]]] = field(default_factory=list)


def read_beside(root: Path, signals: Sequence[str]) -> Beside:
    """What lies beside all images of a folder or archive, whether these can be read or not.

    :param signals: which of ``SIGNALS``
    :raises UserError: if there is none of a signal, a file cannot be read or is something else, an image is without,
        or named twice
    """
    with open_archive(root) as archive:
        images = [entry.name for entry in archive.entries()]
        if not images:  # which the one who reads them says better
            return Beside({}, {})
        captions = _read_captions(archive, root, images) if "text" in signals else {}
        return Beside(captions, {name: _read_numbers(archive, root, images, name)
                                 for name in signals if name in NUMBERS})


def has_captions(images: Iterable[str], texts: Iterable[str]) -> bool:
    """Whether some of these texts are captions of the images.

    :param images: their paths
    :param texts: of an archive, see :class:`diffusion.data.files.archive.Archive`
    """
    stems = {_stem(text) for text in texts if text.lower().endswith(".txt")}
    return _list_tables(texts, CAPTIONS) != [] or (bool(stems) and any(_stem(image) in stems for image in images))


def take_line(text: str) -> tuple[str, bool]:
    """The caption in a text, which is its first line that is not blank, and whether there are more such lines."""
    lines = [line for line in text.splitlines() if line.strip()]
    return " ".join(lines[0].split()) if lines else "", len(lines) > 1


def _read_captions(archive: Archive, root: Path, images: Sequence[str]) -> dict[str, str]:
    tables = _list_tables(archive.texts, CAPTIONS)
    if not tables:
        return _read_texts(archive, root, images)
    table = _read_tables(archive, root, tables, TEXT_COLUMNS)
    return {image: cells[0] for image, cells in _match(table, images).items()}


def _read_texts(archive: Archive, root: Path, images: Sequence[str]) -> dict[str, str]:
    """The captions in the ``.txt`` beside each image."""
    places = {_stem(text): text for text in archive.texts if text.lower().endswith(".txt")}
    missing = [image for image in images if _stem(image) not in places]
    if len(missing) == len(images):
        raise UserError(f"data.signals=[text] without captions in {root}", f"{', '.join(CAPTIONS[:2])}, or a .txt "
                        "beside each image", "put them there, or data.signals=[]")
    if missing:
        raise UserError(f"{len(missing)} images such as {missing[0]} without a caption beside them in {root}",
                        "a .txt for each image, of the same name", "add them, which may be empty, or data.signals=[]")
    found = in_order(lambda image: take_line(_read(archive, root, places[_stem(image)])), images)
    lines = dict(zip(images, found, strict=True))
    longer = [image for image, (_, more) in lines.items() if more]
    if longer:
        logger.warning("%s: of %d captions such as that of %s the first line is taken, and no more", root, len(longer),
                       longer[0])
    return {image: caption for image, (caption, _) in lines.items()}


def _read_numbers(archive: Archive, root: Path, images: Sequence[str], signal: str) -> Numbers:
    tables = _list_tables(archive.texts, NUMBERS[signal])
    if not tables:
        raise UserError(f"data.signals=[{signal}] without {' or '.join(NUMBERS[signal])} in {root}",
                        "a table: file,NAME,NAME,... and below it an image and its numbers",
                        "put it there, or data.signals=[]")
    table = _read_tables(archive, root, tables, None)
    rows = {image: _parse(cells, image, table) for image, cells in _match(table, images).items()}
    if signal == "attributes":
        values = set(np.unique(np.stack(list(rows.values()))).tolist())
        if not (values <= {0, 1} or values <= {-1, 1}):
            shown = sorted(values - {-1, 0, 1})[:5] or [-1, 0, 1]
            raise UserError(f"{table.path} with the numbers {', '.join(f'{value:g}' for value in shown)}",
                            "0 and 1, or -1 and 1", "data.signals=[vector], which takes any numbers")
        rows = {image: (row == 1).astype(np.float32) for image, row in rows.items()}
    return Numbers(table.columns, rows)


def _parse(cells: Sequence[str], image: str, table: _Table) -> Float32[np.ndarray, " d"]:
    try:
        with np.errstate(over="ignore"):
            numbers = np.array([float(cell) for cell in cells]).astype(np.float32)
    except ValueError as error:
        raise UserError(f"{table.path}: {image}: {error}", "numbers", "correct it") from error
    if not np.isfinite(numbers).all():
        raise UserError(f"{table.path}: {image} with {cells[int(np.argmin(np.isfinite(numbers)))]}",
                        "numbers that are finite", "correct it, or leave the image out")
    return numbers


def _match(table: _Table, images: Sequence[str]) -> dict[str, list[str]]:
    """The cells of each image."""
    twice = [image for image, count in Counter(image for image, _ in table.rows).items() if count > 1]
    if twice:
        raise UserError(f"{table.path} names {len(twice)} files twice, such as {twice[0]}", "one row for each image",
                        "keep one of them")
    rows = dict(table.rows)
    missing = [image for image in images if image not in rows]
    if missing:
        raise UserError(f"{len(missing)} images such as {missing[0]} without a row in {table.path}",
                        "a row for each image, with its path from the table's folder", "add them, or data.signals=[]")
    strangers = rows.keys() - set(images)
    if strangers:
        logger.warning("%s names %d files that are no images here, such as %s", table.path, len(strangers),
                       min(strangers))
    return {image: rows[image] for image in images}


def _list_tables(texts: Iterable[str], names: Sequence[str]) -> list[str]:
    """The paths of the tables that bear the first of these names of which there are any."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for text in texts:
        name = text.rpartition("/")[2].lower()
        if name in found:
            found[name].append(text)
    return next(filter(None, found.values()), [])


def _read_tables(archive: Archive, root: Path, places: Sequence[str], wanted: Sequence[str] | None) -> _Table:
    """The rows of some tables.

    :param wanted: how the column that is read may be called; None reads all
    """
    whole = _Table(str(root / places[0]))
    for place in places:
        path = str(root / place)
        text = _read(archive, root, place)
        columns, rows = _read_lines(text, path) if place.lower().endswith(".jsonl") else _read_csv(text, path, wanted)
        if wanted is not None:
            columns, rows = _choose_column(columns, rows, path, wanted)
        if len({*columns}) < len(columns) or not all(columns) or len(columns) < 2:
            raise UserError(f"{path} with the columns {', '.join(columns)}", "file and at least one other, each with a "
                            "name of its own", "correct its first line")
        if whole.columns and whole.columns != columns[1:]:
            raise UserError(f"{path} with other columns than {whole.path}", "the same ones in the same order",
                            "correct its first line")
        whole.columns = columns[1:]
        folder = place[: place.rfind("/") + 1]
        whole.rows += [(folder + cells[0].strip().replace("\\", "/").removeprefix("./"), cells[1:]) for cells in rows]
    return whole


def _read_csv(text: str, path: str, wanted: Sequence[str] | None) -> tuple[list[str], list[list[str]]]:
    """The names of the columns of a table and its rows; captions may be without the names."""
    reader, rows = csv.reader(io.StringIO(text, newline=""), strict=True), []
    try:
        for cells in reader:
            if not any(cells):
                continue
            if rows and len(cells) != len(rows[0]):
                raise UserError(f"{path}, line {reader.line_num}, with {len(cells)} columns",
                                f"{len(rows[0])} columns in each", 'a text with commas in quotes: a.png,"one, two"')
            rows.append(cells)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}, cannot be read ({error})", "a table: file,caption",
                        'a text with commas in quotes: a.png,"one, two"') from error
    head = [cell.strip() for cell in rows[0]] if rows else []
    if wanted is not None and len(head) == 2 and head[0].lower() not in FILE_COLUMNS:
        return [FILE_COLUMNS[0], wanted[0]], rows
    if not head or (wanted is None and head[0].lower() not in FILE_COLUMNS):
        raise UserError(f"{path} with the first line {','.join(head)}", "file,NAME,NAME,... with the name of each "
                        "column", "correct its first line")
    return head, rows[1:]


def _read_lines(text: str, path: str) -> tuple[list[str], list[list[str]]]:
    """The file names and captions in lines of JSON."""
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        cells = [next((found[name] for name in names if isinstance(found.get(name), str)), None)
                 for names in (FILE_COLUMNS, TEXT_COLUMNS)] if isinstance(found, dict) else [None]
        if None in cells:
            raise UserError(f"{path}, line {number}, without a file name and a text",
                            '{"file_name": "a.png", "text": "a caption"} in each line', "correct it")
        rows.append(cells)
    return [FILE_COLUMNS[0], TEXT_COLUMNS[0]], rows


def _choose_column(columns: list[str], rows: list[list[str]], path: str,
                   wanted: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The columns of the file and of what is wanted."""
    names = [column.lower() for column in columns]
    places = [next((names.index(one) for one in some if one in names), -1) for some in (FILE_COLUMNS, wanted)]
    if -1 in places:
        raise UserError(f"{path} with the columns {', '.join(columns)}", f"one of {', '.join(FILE_COLUMNS)} and one of "
                        f"{', '.join(wanted)}", "correct its first line")
    return [FILE_COLUMNS[0], wanted[0]], [[cells[place] for place in places] for cells in rows]


def _read(archive: Archive, root: Path, name: str) -> str:
    try:
        return archive.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{root / name} is no text in UTF-8 (byte {error.start})", "text in UTF-8",
                        "save it in UTF-8") from error
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{root / name} cannot be read ({error})", "a readable file of at most 1 GB",
                        "correct it, or data.signals=[]") from error


def _stem(name: str) -> str:
    """A path without its ending."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.rpartition(".")[0]
