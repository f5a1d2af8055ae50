"""The main job in a few minutes, on scikit-learn's digits: a hot and a cold model, sampled, restored, and measured
through the eyes of a classifier.

Each step is a command that is printed before it runs, so that it can be copied. The demo fails (exit code 1) when a
number misses its mark.
"""

import json
import shlex
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from configs.cli import child, stop
from diffusion.runs.run import Run

RUNS = Path("runs/demo")
HOT, COLD = RUNS / "ddpm_digits" / "hot", RUNS / "cold_blur_digits" / "cold"
JUDGE = RUNS / "classifier_digits" / "judge"
COUNT = 200
console = Console(highlight=False)


def call(command: str) -> None:
    """Run a command, stop the demo if it fails."""
    code = child(shlex.split(command))
    if code:
        sys.exit(code)


def measured(run: Path) -> dict[str, dict[str, float]]:
    """The numbers of a run's newest evaluation, by set of images and name."""
    rows = json.loads(Run(run).evaluations[-1].read_text())["rows"]
    return {images: {name: number["value"] for name, number in numbers.items()} for images, numbers in rows.items()}


def main() -> int:
    start = time.monotonic()
    call(f"train.py experiment=ddpm_digits run.root={RUNS} run.name=hot")
    call(f"train.py experiment=cold_blur_digits run.root={RUNS} run.name=cold")
    call(f"train.py experiment=classifier_digits run.root={RUNS} run.name=judge")
    call(f"sample.py run={HOT} samples=0-99 out={HOT}/samples/digits")
    call(f"sample.py run={COLD} samples=0-15 out={COLD}/samples/restored")
    call(f"evaluate.py run={JUDGE}")
    call(f"evaluate.py run={HOT} count={COUNT}")
    call(f"evaluate.py run={COLD} count={COUNT}")

    judge, hot, cold = (measured(run) for run in (JUDGE, HOT, COLD))
    frechet = f"fd/classifier@{COUNT}"
    one, two, blurred = (cold[name] for name in ("cold1", "cold2", "degraded"))
    checks = [
        ("the classifier, on held-out digits", judge["test split"]["accuracy"], ">=", 0.97),
        (f"{COUNT} samples drawn with CFG: class agreement", hot["samples"]["agreement"], ">=", 0.80),
        ("restoration RMSE: Algorithm 2 below Algorithm 1", two["rmse"], "<", one["rmse"]),
        ("restoration RMSE: Algorithm 2 below the blurred input", two["rmse"], "<", blurred["rmse"]),
        ("restoration Fréchet distance: Algorithm 2 below Algorithm 1", two[frechet], "<", one[frechet]),
        ("restoration Fréchet distance: Algorithm 2 below the blurred input", two[frechet], "<", blurred[frechet]),
    ]
    table = Table(title="\nWhat came out", title_justify="left")
    for column in ("", "value", "wanted", ""):
        table.add_column(column, justify="right" if column in ("value", "wanted") else "left")
    held = [value >= mark if sign == ">=" else value < mark for _, value, sign, mark in checks]
    for (text, value, sign, mark), good in zip(checks, held):
        table.add_row(text, f"{value:.4f}", f"{sign} {mark:.4f}", "[green]ok[/]" if good else "[red]missed[/]")
    console.print(table)
    console.print(f"""
Pictures, in {RUNS}:
  {HOT.relative_to(RUNS)}/samples/digits/grid.png       a hundred digits made from noise, classes 0-9 from left to right
  {COLD.relative_to(RUNS)}/samples/restored/grid.png  rows: blurred, direct estimate, Algorithm 2, original
  */*/pictures/                          how they came about during training

{time.monotonic() - start:.0f} seconds. Train on your own images: see README.md.""", soft_wrap=True)
    return 0 if all(held) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        stop("interrupted; the same command goes on", 130)
