"""A table of runs, such as a sweep: ``python scripts/sweep_table.py runs/ddpm_digits [--sort loss] [--markdown]``.

One row per run below the folder: the settings in which the runs differ, how far each is, what it logged, and what
``evaluate.py`` measured.
"""

import argparse
import csv
import json
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pages
from rich.console import Console
from rich.table import Table

from configs import UserError
from configs.cli import stop
from configs.registry import closest
from diffusion.runs.identity import IDENTITY
from diffusion.runs.run import Run


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """A nested config as {dotted key: value}; an object counts as its class's name."""
    if not isinstance(node, dict):
        return {path: node}
    found = {path: node["_target_"].split(".")[-1]} if "_target_" in node else {}
    for key, value in node.items():
        if key != "_target_":
            found |= flat(value, f"{path}.{key}" if path else str(key))
    return found


def settings(run: Run) -> dict[str, Any]:
    """What makes a run what it is, and its length."""
    config = run.config
    return flat({key: config[key] for key in ("max_steps", *IDENTITY) if key in config})


def progress(run: Run) -> dict[str, Any]:
    """The last step that is saved, the last loss and the usual speed."""
    rows = list(csv.DictReader(run.metrics.open())) if run.metrics.is_file() else []
    logged = {"loss": float(rows[-1]["loss"]) if rows[-1]["loss"] else None,
              "images/s": statistics.median(float(row["images_per_s"]) for row in rows)} if rows else {}
    return {"step": max(run.steps, default=0), **logged}


def measured(run: Run) -> dict[str, Any]:
    """The numbers of the newest evaluation, e.g. ``samples.agreement``."""
    rows = json.loads(run.evaluations[-1].read_text())["rows"] if run.evaluations else {}
    return {f"{images}.{name}": number["value"] for images, numbers in rows.items() for name, number in numbers.items()}


def table(folder: Path) -> list[dict[str, Any]]:
    """The rows, all with the same columns, None where there is nothing.

    :raises UserError: if there are no runs
    """
    runs = [Run(path.parent) for path in sorted(folder.rglob("environment.json"))]
    if not runs:
        raise UserError(f"no runs below {folder}", "a folder with runs that train.py wrote", "runs")
    chosen, results = [], []
    for run in runs:
        parts, broken = [], []
        for name, read in {"config.yaml": settings, "metrics.csv": progress, "evaluations": measured}.items():
            try:
                parts.append(read(run))
            except Exception as error:  # whatever is wrong with a file, the other runs are listed
                parts.append({})
                broken.append(f"{name} ({type(error).__name__})")
        done = parts[0] and parts[1].get("step", 0) >= parts[0]["max_steps"]
        state = "broken: " + ", ".join(broken) if broken else "done" if done else "unfinished"
        chosen.append(parts[0])
        results.append({"state": state, **parts[1], **parts[2]})
    values = {key: [json.dumps(one.get(key)) for one in chosen if one] for key in _union(chosen)}
    differ = [key for key, found in values.items() if len(set(found)) > 1]
    columns = _union([{"state": 0, "step": 0, "loss": 0, "images/s": 0}, *results])
    names = short([*differ, *columns])[:len(differ)]
    return [{"run": str(run.folder.relative_to(folder)), **{name: one.get(key) for name, key in zip(names, differ)},
             **{column: result.get(column) for column in columns}} for run, one, result in zip(runs, chosen, results)]


def short(keys: Sequence[str]) -> list[str]:
    """The keys without what is not needed to tell them apart: ``lr`` for ``optimizer.lr``."""
    ends = [[".".join(key.split(".")[i:]) for i in reversed(range(key.count(".") + 1))] for key in keys]
    count = Counter(end for some in ends for end in some)
    return [next((end for end in some if count[end] == 1), some[-1]) for some in ends]


def _union(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def arranged(rows: list[dict[str, Any]], column: str | None) -> list[dict[str, Any]]:
    """The rows in rising order of a column, those without a value last.

    :raises UserError: if there is no such column
    """
    if column is None:
        return rows
    if column not in rows[0]:
        raise UserError(f"--sort {column}", f"one of {', '.join(rows[0])}", f"--sort {closest(column, list(rows[0]))}")
    numbers = all(isinstance(row[column], int | float | None) for row in rows)
    return sorted(rows, key=lambda row: (row[column] is None, (row[column] or 0) if numbers else str(row[column])))


def text(value: Any) -> str:
    """A value for people."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def show(rows: list[dict[str, Any]], form: str | None) -> None:
    """Print the rows, as ``json``, ``csv``, ``markdown``, or None for a table, which is turned if it is too wide, and
    shows the columns that fit if it is too wide both ways."""
    if form == "json":
        print(json.dumps(rows, indent=2))
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    elif form == "markdown":
        print(pages.table([list(rows[0]), *([text(value) for value in row.values()] for row in rows)]))
    else:
        console, lines = Console(), [list(rows[0]), *([text(value) for value in row.values()] for row in rows)]
        left_out = 0
        if width(lines) >= console.width:
            turned = [list(column) for column in zip(*lines)]  # many settings: a line for each, a column per run
            if width(turned) < console.width:
                lines = turned
            else:
                lines, left_out = fit_columns(lines, console.width)
        grid = Table(padding=0)
        for column in lines[0]:
            grid.add_column(column, overflow="fold")
        for line in lines[1:]:
            grid.add_row(*line)
        console.print(grid, markup=False)
        if left_out:
            console.print(f"{left_out} more columns do not fit: --csv has all of them", markup=False)


def width(lines: Sequence[Sequence[str]]) -> int:
    """Letters that a table needs from side to side."""
    return sum(max(map(len, column)) + 1 for column in zip(*lines)) + 1


def fit_columns(lines: list[list[str]], most: int) -> tuple[list[list[str]], int]:
    """The columns that fit into so many letters, in their order, and how many do not: the first, which names the run
    and takes a third at most, then the results, the settings last."""
    columns = [list(column) for column in zip(*lines)]
    first = lines[0].index("state")
    room, kept = most - 1 - min(max(map(len, columns[0])), most // 3) - 1, [0]
    for i in [*range(first, len(columns)), *range(1, first)]:
        need = max(map(len, columns[i])) + 1
        if need <= room:
            room -= need
            kept.append(i)
    return [[line[i] for i in sorted(kept)] for line in lines], len(columns) - len(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder with runs in it, at any depth")
    parser.add_argument("--sort", metavar="COLUMN", help="rising")
    forms = parser.add_mutually_exclusive_group()
    for form in ("markdown", "csv", "json"):
        forms.add_argument(f"--{form}", dest="form", action="store_const", const=form, help=f"print {form}")
    arguments = parser.parse_args()
    try:
        show(arranged(table(arguments.folder), arguments.sort), arguments.form)
    except UserError as error:
        stop(str(error), 2)


if __name__ == "__main__":
    main()
