"""``report.html`` of one evaluation: its numbers, pictures, cost and protocol, of the files in its folder alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import UserError
from diffusion.reports.curves import plot_log
from diffusion.reports.gallery import Gallery, Grid
from diffusion.reports.numbers import Number, find_direction
from diffusion.reports.pages import Cell, Table, save_page, write_number
from diffusion.reports.sheets import embed
from diffusion.reports.show import show_figure, show_sheets

MOST_BYTES = 2**25
"""Of a file that is read whole."""
DEEPEST = 40
"""Mappings and lists within each other."""
PICTURES = {"pairs.png": "The first images below their originals", "nearest.png":
            "Samples that are nearest to an image of the training, above that image"}
"""Those of evaluations without a gallery."""
ARROWS = {1: "↑", -1: "↓", 0: ""}


@dataclass(frozen=True)
class Evaluation:
    """What is in ``evaluation.json``, checked: somebody else may have written it.

    :ivar folder: that it is in
    :ivar sets: the numbers of each set of images, by its name
    :ivar subject: which of the sets it is about
    """

    folder: Path
    sets: dict[str, dict[str, Number]]
    subject: list[str]
    skipped: dict[str, str]
    cost: dict[str, dict[str, Any]]
    protocol: dict[str, Any]
    environment: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Evaluation":
        """That of a folder.

        :raises ValueError: if it is not as ``evaluate.py`` writes it
        """
        content = read_json(folder / "evaluation.json")
        parts = {key: content.get(key, {}) for key in ("rows", "skipped", "cost", "protocol", "environment")}
        for node in (parts, parts["rows"], parts["cost"]):
            if not isinstance(node, dict) or not all(isinstance(part, dict) for part in node.values()):
                raise ValueError("evaluation.json is none of this version")
        sets = {name: {key: Number.read(node) for key, node in numbers.items()}
                for name, numbers in parts.pop("rows").items()}
        subject = content.get("subject")
        return cls(folder, sets, [name for name in sets if isinstance(subject, list) and name in subject], **parts)

    @property
    def run(self) -> Path | None:
        """The folder of the run; None if it is in none."""
        folder = self.folder.parent.parent
        return folder if (folder / "config.yaml").is_file() else None

    @property
    def title(self) -> str:
        """What was measured of what, in words."""
        images = self.protocol.get("images")
        named = self.run or Path(str(images["what"] if isinstance(images, dict) and "what" in images
                                     else self.protocol.get("run")))
        return f"{'/'.join(named.absolute().parts[-2:])}: {self.protocol.get('what', 'images')}"


def read_json(path: Path) -> dict[str, Any]:
    """A mapping from a file that somebody else may have written.

    :raises ValueError: if it is none
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        content = json.loads(data) if len(data) <= MOST_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} cannot be read ({type(error).__name__})") from error
    if not isinstance(content, dict) or measure_depth(content) > DEEPEST:
        raise ValueError(f"{path.name} is no mapping, has more than {MOST_BYTES} bytes, or is nested without end")
    return content


def measure_depth(node: Any) -> int:
    """How many mappings and lists lie within each other."""
    depth, level = 0, [node]
    while level := [one for node in level for one in (node.values() if isinstance(node, dict) else node)
                    if isinstance(one, dict | list)]:
        depth += 1
    return depth


def save_report(folder: Path) -> Path:
    """``report.html`` of an evaluation, beside its numbers; ``report-2.html`` and so on show all pictures where there
    are more than one page has room for. The same files give the same bytes.

    :param folder: that ``evaluate.py`` has printed
    :raises UserError: if there is no evaluation, or it cannot be read
    """
    try:
        evaluation, gallery = Evaluation.read(folder), Gallery.load(folder)
    except ValueError as error:
        raise UserError(f"{folder}: {error}", "the folder of an evaluation", "evaluate.py ... overwrite=true"
                        ) from error
    here = [page for page in gallery.pages if any(page.sheet == figure.sheet for figure in gallery.figures)]
    further = [page for page in gallery.pages if page not in here]
    names = {f"report-{i}.html": page for i, page in enumerate(further, 2)}
    for name, page in names.items():
        save_page(folder / name, "images.html", title=f"{evaluation.title}: {page.title}",
                  sheets=show_sheets(gallery, [page]), figure=show_figure(gallery, page),
                  pages=[(other.title, other_name, other_name == name) for other_name, other in names.items()])
    run = evaluation.run
    return save_page(
        folder / "report.html", "evaluation.html", title=evaluation.title,
        numbers=table_numbers(evaluation), skipped=group_reasons(evaluation.skipped), cost=table_cost(evaluation.cost),
        facts=list_facts(evaluation.protocol), environment=list_facts(evaluation.environment),
        comparison=table_comparison(folder), sheets=show_sheets(gallery, [*gallery.figures, *here]),
        figures=[show_figure(gallery, figure) for figure in gallery.figures],
        all=[show_figure(gallery, page) for page in here if isinstance(page, Grid)],
        pages=[(page.title, name) for name, page in names.items()],
        pictures=[] if gallery.figures else find_pictures(folder),
        curves=[plot.draw() for plot in plot_log(run)] if run else [])


def table_numbers(evaluation: Evaluation) -> Table:
    """A column for each set of images, that of the subject first."""
    sets = evaluation.sets
    names = dict.fromkeys(key for numbers in sets.values() for key in numbers)
    rows = [[Cell(name, note=ARROWS[find_direction(name)]),
             *(write_cell(numbers[name]) if name in numbers else Cell("-") for numbers in sets.values())]
            for name in names]
    return Table(["", *sets], rows)


def write_cell(number: Number, strong: bool = False) -> Cell:
    """A number with its interval."""
    return Cell(str(number), number.value, number.interval, strong)


def group_reasons(skipped: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was not measured, by the reason."""
    reasons: dict[str, list[str]] = {}
    for key, reason in skipped.items():
        reasons.setdefault(str(reason), []).append(str(key))
    return [(", ".join(keys), reason) for reason, keys in reasons.items()]


def table_cost(cost: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """What the sets of images have cost; None if none has."""
    units = list(dict.fromkeys(unit for one in cost.values() for unit in one))
    rows = [[name, *(write_number(one[unit]) if unit in one else "-" for unit in units)] for name, one in cost.items()]
    return Table(["", *units], rows) if rows else None


def list_facts(node: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Plain data as words; what says the same again, as a config, is left out."""
    return [(str(key), write_plain(value)) for key, value in node.items() if key not in ("composed", "metrics")] + (
        [("metrics", ", ".join(map(str, node["metrics"])))] if isinstance(node.get("metrics"), dict) else [])


def write_plain(value: Any) -> str:
    """Plain data in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {write_plain(one)}" for key, one in value.items()) or "-"
    if isinstance(value, list):
        return " x ".join(map(write_plain, value)) if all(type(one) is int for one in value) else \
            ", ".join(map(write_plain, value))
    return "none" if value is None else write_number(value)


def table_comparison(folder: Path) -> list[Table]:
    """What ``against`` has said, a table for each set; nothing if it was not asked, or cannot be read."""
    if not (folder / "comparison.json").is_file():
        return []
    try:
        content = read_json(folder / "comparison.json")
        tables = []
        for name, numbers in content["rows"].items():
            rows = []
            for key, row in numbers.items():
                difference = Number.read({"value": row["difference"], "low": row["low"], "high": row["high"]})
                a, b = (f"{float(row[which]):.{difference.places}f}" for which in ("a", "b"))
                verdict = "exceeds the noise" if row["exceeds"] else "within the noise"
                rows.append([str(key), a, b, write_cell(difference, bool(row["exceeds"])), verdict])
            tables.append(Table([str(name), "this", "the other", "difference", ""], rows,
                                f"Against {content.get('against')}"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return tables


def find_pictures(folder: Path) -> list[tuple[str, str]]:
    """The pictures of an evaluation without a gallery: what they show, and the file as an address in itself."""
    found = []
    for name, words in PICTURES.items():
        if (folder / name).is_file() and (folder / name).stat().st_size <= MOST_BYTES // 4:
            found.append((words, embed((folder / name).read_bytes())))
    return found
