"""Curves of what runs logged: ``python scripts/plot_metrics.py RUN [RUN ...] [--columns loss] [--out curves.png]``.

One panel per column of ``metrics.csv``, one line per run. Needs matplotlib (the extra ``plots``).
"""

import argparse
from fnmatch import fnmatch
from pathlib import Path

from pages import save_figure

from configs import UserError
from configs.cli import stop
from configs.registry import closest
from diffusion.reports.curves import read_log
from diffusion.runs.run import Run

LOGARITHMIC = ("loss", "lr")


def read(run: Path) -> dict[str, list[float]]:
    """The columns of a run's ``metrics.csv``; an empty cell is not a number.

    :raises UserError: if there is no run, or it has logged nothing yet
    """
    columns = read_log(Run.open(run).metrics)
    if not columns:
        raise UserError(f"nothing logged in {run} yet", "a run that has logged a row", "callbacks.log.every=10")
    return columns


def chosen(patterns: list[str], runs: list[dict[str, list[float]]]) -> list[str]:
    """The columns that match, in the order of the files.

    :raises UserError: for a pattern that matches none
    """
    names = [name for name in dict.fromkeys(name for run in runs for name in run) if name != "step"]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise UserError(f"--columns {pattern}", f"columns among {', '.join(names)}",
                            f"--columns {closest(pattern, names)}")
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def plot(runs: list[Path], patterns: list[str], out: Path) -> Path:
    """Draw the curves into a PNG file."""
    logged = [read(run) for run in runs]
    columns = chosen(patterns, logged)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(columns), 3.2), layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for axis, column in zip(axes, columns):
        for run, values in zip(runs, logged):
            if column in values:
                axis.plot(values["step"], values[column], label="/".join(run.parts[-2:]), linewidth=1)
        axis.set(xlabel="step", title=column, yscale="log" if column.startswith(LOGARITHMIC) else "linear")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    return save_figure(figure, out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--columns", nargs="+", default=["loss"], help="of metrics.csv; patterns such as 'loss*'")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="the PNG file to write")
    arguments = parser.parse_args()
    try:
        print(plot(arguments.runs, arguments.columns, arguments.out))
    except UserError as error:
        stop(str(error), 2)
    except ModuleNotFoundError:
        stop("matplotlib is not installed\n  try:    pip install matplotlib", 2)


if __name__ == "__main__":
    main()
