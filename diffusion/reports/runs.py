"""A page about several runs: tables of what was measured alike, curves, differences, and the pictures behind them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from configs import UserError
from diffusion.reports.curves import MOST_LINES, plot_losses
from diffusion.reports.evaluation import ARROWS, Evaluation, list_facts, save_report, write_cell, write_plain
from diffusion.reports.gallery import PREVIEW, Gallery, Grid, Group
from diffusion.reports.numbers import find_direction
from diffusion.reports.pages import Cell, Table, save_page, write_number
from diffusion.reports.protocols import (
    MADE,
    NFE,
    Measured,
    drop_repeated,
    explain_apart,
    find_best,
    find_differences,
    group_alike,
    name_columns,
)
from diffusion.reports.scatter import plot_quality, plot_steps
from diffusion.reports.sheets import Sheet
from diffusion.reports.show import show_figure

MOST_PAIRS = 200
"""Differences of a number that are listed."""
MOST_PREVIEWS = 12 * 2**20
"""Bytes of all pictures of the page."""


class Preview(NamedTuple):
    """Some pictures of a set.

    :ivar name: of the class of the sheet
    :ivar figure: as the template takes it
    """

    name: str
    sheet: Sheet
    figure: dict[str, Any]

    @property
    def link(self) -> str:
        """The name of the place on the page."""
        return f"pictures-{self.name}"


def save_overview(folders: Sequence[Path], out: Path) -> Path:
    """A page about all runs in these folders. A folder that is one evaluation gets its own page instead, there.

    :param out: the file to write
    :raises UserError: if a folder is not there, or nothing in them is a run or was measured
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder", "run folders, or folders of such", "runs")
    if len(folders) == 1 and (folders[0] / "evaluation.json").is_file():
        return save_report(folders[0])
    runs, remarks = find_runs(folders)
    measured = []
    for path in dict.fromkeys(path for folder in folders for path in sorted(folder.rglob("evaluation.json"))):
        try:
            evaluation = Evaluation.read(path.parent)
        except ValueError as error:
            remarks.append((name_place(path.parent), str(error)))
            continue
        run = name_place(evaluation.run or path.parent)
        measured += [Measured(evaluation, name, run) for name in evaluation.subject]
    measured = drop_repeated(measured)
    if not runs and not measured:
        raise UserError(f"no runs in {', '.join(map(str, folders))}", "folders that train.py or evaluate.py wrote",
                        "runs")
    of = {one.evaluation.run for one in measured}
    remarks += [(name_place(run), f"not measured: python evaluate.py run={run}") for run in runs if run not in of]
    pictures, left_out = read_previews(measured)
    return save_page(out, "runs.html", title=f"{len(runs) or len(of)} runs, {len(measured)} sets of images",
                     groups=show_groups(group_alike(measured), pictures, out.parent),
                     remarks=remarks, left_out=left_out, sheets=[(one.name, one.sheet) for one in pictures.values()],
                     losses=[plot.draw() for plot in plot_losses({name_place(run): run for run in runs})],
                     most_lines=MOST_LINES if len(runs) > MOST_LINES else 0)


def find_runs(folders: Sequence[Path]) -> tuple[list[Path], list[tuple[str, str]]]:
    """The run folders at any depth, and a remark for each folder that has none."""
    runs, remarks = [], []
    for folder in folders:
        found = sorted({path.parent for path in folder.rglob("config.yaml")
                        if (path.parent / "checkpoints").is_dir() or (path.parent / "metrics.csv").is_file()})
        runs += found
        if not found and not any(folder.rglob("evaluation.json")):
            remarks.append((str(folder), "no run, and nothing that was measured"))
    return list(dict.fromkeys(runs)), remarks


def name_place(folder: Path) -> str:
    """The last two parts of a path, which name a run."""
    return "/".join(folder.absolute().parts[-2:])


def write_row(one: Measured) -> str:
    """The name of a set of images, with that of its run."""
    alone = len(one.evaluation.subject) == 1
    return one.run if alone else f"{one.run}: {one.name}"


def show_groups(groups: Sequence[Sequence[Measured]], pictures: Mapping[int, Preview],
                here: Path) -> list[dict[str, Any]]:
    """The groups as the template takes them; those of one title say in what they differ from the one before."""
    before: dict[str, dict[str, Any]] = {}
    shown = []
    for group in groups:
        protocol, found = group[0].evaluation.protocol, show_group(group, pictures, here)
        earlier = before.get(found["title"])
        shown.append({**found, "apart": list_facts(explain_apart(earlier, protocol)) if earlier is not None else []})
        before[found["title"]] = protocol
    return shown


def show_group(group: Sequence[Measured], pictures: Mapping[int, Preview], here: Path) -> dict[str, Any]:
    """What was measured under one protocol, as the template takes it."""
    protocol = group[0].evaluation.protocol
    columns = name_columns(group)
    names = list(dict.fromkeys(name for one in group for name in one.numbers))
    links = {id(one): pictures[id(one)].link for one in group if id(one) in pictures}
    plots = [plot_steps(group, columns, links), plot_quality(group, columns, links)]
    words = write_rows(group, columns)
    return {"title": describe_group(protocol), "facts": list_facts({key: value for key, value in protocol.items()
                                                                    if key not in MADE}),
            "table": table_group(group, columns, names, links), "differences": list(list_differences(group, names)),
            "plots": [[plot.draw() for plot in some] for some in plots if some],
            "pictures": [(pictures[id(one)], words[id(one)]) for one in group if id(one) in pictures],
            "reports": list_reports(group, here)}


def describe_group(protocol: dict[str, Any]) -> str:
    """The main lines of a protocol: how many of what, against what."""
    reference = protocol.get("reference")
    parts = [f"{write_plain(protocol.get('count'))} {write_plain(protocol.get('what'))}"]
    parts += [write_plain(reference["what"])] if isinstance(reference, dict) and "what" in reference else []
    return ", ".join(parts)


def table_group(group: Sequence[Measured], columns: dict[str, str], names: Sequence[str],
                links: dict[int, str]) -> Table:
    """A row for each set of images, and a column for each setting in which they differ and each number. Bold are the
    best number, and those that the noise does not tell apart from it."""
    best = {name: {id(one) for one in find_best(group, name)} for name in names}
    costs = any(one.nfe is not None for one in group)
    rows = []
    for one in group:
        settings = [one.settings.get(key) for key in columns]
        row: list[Cell | str] = [Cell(write_row(one), link=links.get(id(one)))]
        row += [Cell("-" if value is None else write_plain(value), write_value(value)) for value in settings]
        row += [Cell("-" if one.nfe is None else write_number(one.nfe), one.nfe)] if costs else []
        row += [write_cell(one.numbers[name], id(one) in best[name]) if name in one.numbers else Cell("-")
                for name in names]
        rows.append(row)
    arrows = [f"{name} {ARROWS[find_direction(name)]}".strip() for name in names]
    return Table(["run", *columns.values(), *([NFE] if costs else []), *arrows], rows, sortable=True)


def write_value(value: Any) -> float | None:
    """A setting as a number to sort by."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def list_differences(group: Sequence[Measured], names: Iterable[str]) -> Iterable[dict[str, Any]]:
    """Of each number, the pairs that differ by more than the noise."""
    words = write_rows(group, name_columns(group))
    for name in names:
        found, count = find_differences(group, name)
        rows = [[words[id(one.a)], words[id(one.b)], write_cell(one.value)] for one in found[:MOST_PAIRS]]
        if count:
            yield {"name": name, "count": count, "found": len(found), "listed": len(rows),
                   "table": Table(["A", "B", "A - B"], rows)}


def write_rows(group: Sequence[Measured], columns: Mapping[str, str]) -> dict[int, str]:
    """The names of sets by their ``id``, with the settings in which they differ."""
    words = {}
    for one in group:
        settings = ", ".join(f"{short} {write_plain(one.settings[key])}" for key, short in columns.items()
                             if one.settings.get(key) is not None)
        words[id(one)] = f"{write_row(one)} ({settings})" if settings else write_row(one)
    return words


def list_reports(group: Sequence[Measured], here: Path) -> list[tuple[str, str]]:
    """The pages of the evaluations themselves, by their way from this one."""
    folders = dict.fromkeys(one.evaluation.folder for one in group)
    return [(f"{name_place(folder.parents[1])}/{folder.name}",
             quote(os.fsencode(os.path.relpath(folder.absolute() / "report.html", here.absolute()))))
            for folder in folders if (folder / "report.html").is_file()]


def read_previews(measured: Sequence[Measured]) -> tuple[dict[int, Preview], int]:
    """Some pictures of each set that has any, by its ``id``, and of how many sets there was no room for them."""
    found, size, left_out = {}, 0, 0
    for i, one in enumerate(measured):
        name = f"{PREVIEW}-{one.evaluation.subject.index(one.name)}"
        try:
            sheet = Gallery.load(one.evaluation.folder, lambda sheet, name=name: sheet == name).sheets.get(name)
        except ValueError:
            continue
        if sheet is None:
            continue
        size += len(sheet.data)
        if size > MOST_PREVIEWS:
            left_out += 1
            continue
        grid = Grid(write_row(one), "", name, [Group("", list(range(sheet.count)))])
        figure = show_figure(Gallery({name: sheet}), grid)
        found[id(one)] = Preview(f"p{i}", sheet, {**figure, "class": figure["class"].replace("s0", f"p{i}")})
    return found, left_out
