"""What a run has logged, as plots."""

import csv
import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from diffusion.reports.plots import Plot, Point

MOST_ROWS = 200_000
"""Rows of a log that are read."""
MOST_POINTS = 400
"""Of a line; more rows are averaged."""
PLOTTED = ("loss", "val", "accuracy", "balanced", "psnr", "ssim", "lpips", "rmse", "grad")
"""Beginnings of the names of columns that are drawn; what is not a curve of learning is left out."""
ALONE = 6
"""Panels, at most."""
MOST_LINES = 16
"""Runs in one panel."""


def read_log(path: Path) -> dict[str, list[float]]:
    """The columns of a file such as ``metrics.csv``; a cell without a number is none. Empty if there is no file."""
    if not path.is_file():
        return {}
    with path.open(newline="", errors="replace") as file:
        rows = list(islice(csv.DictReader(file), MOST_ROWS))
    names = [name for name in (rows[0] if rows else ()) if isinstance(name, str)]
    return {name: [_number(row.get(name)) for row in rows] for name in names}


def plot_log(folder: Path) -> list[Plot]:
    """The curves of a run: the losses in one panel, every other number in one of its own."""
    panels: dict[str, dict[str, list[Point]]] = {}
    for file in ("metrics.csv", "accuracy.csv"):
        try:
            columns = read_log(folder / file)
        except (csv.Error, OSError):
            continue
        steps = columns.get("step", [])
        for name, values in columns.items():
            if name != "step" and name.startswith(PLOTTED) and any(map(math.isfinite, values)):
                panel = name.split("_t")[0]
                panels.setdefault(panel, {})[name] = thin(steps, values)
    plots = [Plot(panel, "step", panel, lines, log_y=panel.startswith("loss"), dots=False)
             for panel, lines in panels.items()]
    return plots[:ALONE]


def plot_losses(runs: Mapping[str, Path]) -> list[Plot]:
    """The losses of several runs in one panel, the first :data:`MOST_LINES` that have logged one.

    :param runs: folders by name
    """
    lines: dict[str, list[Point]] = {}
    for name, folder in runs.items():
        try:
            columns = read_log(folder / "metrics.csv")
        except (csv.Error, OSError):
            continue
        if any(map(math.isfinite, columns.get("loss", []))) and len(lines) < MOST_LINES:
            lines[name] = thin(columns.get("step", []), columns["loss"])
    return [Plot("loss", "step", "loss", lines, log_y=True, dots=False)] if lines else []


def thin(steps: list[float], values: list[float]) -> list[Point]:
    """A line of few points: means over neighbours."""
    known = [(x, y) for x, y in zip(steps, values) if math.isfinite(x) and math.isfinite(y)]
    size = -(-len(known) // MOST_POINTS) or 1
    parts = [known[i:i + size] for i in range(0, len(known), size)]
    return [Point(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _number(text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        return math.nan
