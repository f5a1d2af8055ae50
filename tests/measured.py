"""Runs that look as if they had been trained and measured, for the tests of reports."""

import json
from pathlib import Path
from typing import Any

import torch

from diffusion.reports.gallery import Film, Gallery, Grid, Group, Rows
from diffusion.reports.sheets import make_sheet

HOSTILE = "<script>alert(1)</script>"
QUOTES = "'\" onload=alert(1) </style><img src=http://example.org/x>"


def draw_pixels(n: int, size: int = 8, channels: int = 3) -> torch.Tensor:
    """Different pictures of flat colours with a bright edge."""
    levels = torch.arange(n * channels).reshape(n, channels, 1, 1) * 37 % 200
    pixels = levels.expand(n, channels, size, size).to(torch.uint8).clone()
    pixels[:, :, 0] = 255
    return pixels


def make_gallery(words: str = "a seven") -> Gallery:
    """One figure of each kind."""
    grid = Grid("At random", "note", "samples", [Group(words, [0, 2, 1], [words, "b", "c"])], worded=True)
    rows = Rows("First images", words, "first", ["degraded", words], ["0", "1"], [0, 1])
    film = Film("The way", "", "film", [1.0, 0.5, 0.0], ["x_t", "estimate of x0"])
    return Gallery({"samples": make_sheet(draw_pixels(6), 3, [words] * 6), "first": make_sheet(draw_pixels(4), 2),
                    "film": make_sheet(draw_pixels(12), 4), "preview-0": make_sheet(draw_pixels(5), 5)},
                   [grid, rows, film], [Grid("All 6", "", "samples", [Group("", list(range(6)))])])


def save_evaluation(run: Path, name: str, numbers: dict[str, tuple[float, ...]], gallery: Gallery | None = None,
                    nfe: float | None = None, subject: str = "samples", **protocol: Any) -> Path:
    """An evaluation in a run folder, as ``evaluate.py`` leaves it.

    :param numbers: value, low and high by name
    """
    folder = run / "evaluations" / name
    folder.mkdir(parents=True)
    rows = {key: dict(zip(("value", "low", "high"), number), how="by hand") for key, number in numbers.items()}
    usual = {"what": "samples", "count": 10, "run": str(run), "sampler": "DDIM (num_steps 5)",
             "reference": {"what": "test split of Digits", "count": 20, "shape": [1, 8, 8], "hash": "aa"},
             "judge": {"name": "classifier", "identity": "step 1, bb", "resizing": "none"}}
    (folder / "evaluation.json").write_text(json.dumps(
        {"rows": {subject: rows, "training images": rows}, "subject": [subject], "skipped": {"kid": "more images"},
         "cost": {subject: {"evaluations/sample": nfe}} if nfe else {}, "protocol": usual | protocol,
         "environment": {"command": "evaluate.py"}}))
    if gallery is not None:
        gallery.save(folder)
    return folder


def save_run(folder: Path) -> Path:
    """A run folder with a log and no checkpoint."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("format: 2\n")
    (folder / "metrics.csv").write_text("step,loss,loss_t0.0-0.2,lr\n1,1.0,,0.1\n2,0.5,0.4,0.1\n3,nan,0.3,0.1\n")
    return folder
