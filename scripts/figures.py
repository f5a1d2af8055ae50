"""Figures of the documentation.

``python scripts/figures.py --hot RUN --cold RUN --out docs/pictures/hot_and_cold.png``: one loop, two degradations.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from diffusion import load
from diffusion.data.pixels import to_float
from diffusion.model import Model
from diffusion.pictures import save_grid

COLUMNS = 10


def strip(model: Model, indices: range, images: Tensor | None) -> list[Tensor]:
    """One row per sample: ``COLUMNS`` stations of the way from ``x_T`` to the image, evenly strided."""
    with torch.no_grad():
        x, frames = model.trajectory(indices, images=images)
        stations = [x, *(frame.x_s for frame in frames if frame.x_s is not None)]
    last = len(stations) - 1
    picked = [stations[round(last * c / (COLUMNS - 1))] for c in range(COLUMNS)]
    return [torch.stack([model.space.decode(x)[row] for x in picked]).cpu() for row in range(len(indices))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hot", required=True, help="run folder of a model that starts from noise")
    parser.add_argument("--cold", required=True, help="run folder of a model that restores digits")
    parser.add_argument("--out", type=Path, required=True, help="the PNG file to write")
    arguments = parser.parse_args()

    from diffusion.data.digits import Digits

    hot, cold = load(arguments.hot), load(arguments.cold)
    held_out = Digits(cold.config["data"]["size"]).split("test")
    images = to_float(held_out.images[:3])
    rows = strip(hot, range(2, 5), None) + strip(cold, range(3), images)
    print(save_grid(torch.cat(rows), arguments.out, columns=COLUMNS))


if __name__ == "__main__":
    main()
