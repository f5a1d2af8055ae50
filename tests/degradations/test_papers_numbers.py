"""The degraded columns of the tables of Cold Diffusion, which need no training: SSIM and RMSE between the test images
and their last level. Where the paper's column is that of a later state (inpainting, snow), or is missing, the number is
that of the official operators on the same images. ``THAW_DATA`` names a folder with the real data sets (CIFAR-10 as a
copy in JPEG)."""

import os
from pathlib import Path

import pytest
import torch

from configs import build
from degradations.randomness import Streams
from diffusion.data.pixels import to_float
from diffusion.metrics.pairs import SSIM, PooledRMSE

pytestmark = pytest.mark.skipif("THAW_DATA" not in os.environ,
                                reason="THAW_DATA names a folder with the real data sets")

BLUR, CIFAR_BLUR = {"kernels": "constant"}, {"kernels": "linear", "levels": 50, "padding": "reflect"}
ROWS = {  # data, degradation, its settings, SSIM (None where the paper's slipped), RMSE
    "mnist blur": ("mnist", "blur", BLUR, None, 0.287),
    "mnist downsample": ("mnist", "downsample", {}, 0.182, 0.231),
    "mnist downsample, average": ("mnist", "downsample", {"first": "average"}, 0.178, 0.231),
    "mnist inpaint": ("mnist", "inpaint", {}, 0.511, 0.260),
    "cifar10 blur": ("cifar10", "blur", CIFAR_BLUR, 0.315, 0.136),
    "cifar10 downsample": ("cifar10", "downsample", {}, 0.279, 0.146),
    "cifar10 inpaint": ("cifar10", "inpaint", {}, 0.631, 0.141),
    "cifar10 desaturate": ("cifar10", "desaturate", {}, 0.958, 0.074),
    "cifar10 snow 2": ("cifar10", "snow", {"flakes": "level2"}, 0.416, 0.318),
    "cifar10 snow 3": ("cifar10", "snow", {}, 0.423, 0.319),
    "cifar10 snow 3, brightened": ("cifar10", "snow", {"fix_brightness": False}, 0.252, 0.516),
}


def degraded(data: str, degradation: str, settings: dict) -> tuple[float, float]:
    """SSIM and RMSE of the whole test set at t = 1."""
    root = Path(os.environ["THAW_DATA"])
    images = build("data", data, root=str(root if data == "mnist" else root / data))
    operator, ssim, rmse = build("degradation", degradation, **settings), SSIM(), PooledRMSE()
    test, structure, squares = images.split("test"), [], []
    for rows in torch.arange(len(test)).split(500):
        x0 = to_float(test.batch(rows)[0])
        state = operator.draw(x0.shape, Streams(0, tuple(rows.tolist())))
        x_T = operator.forward(x0, torch.ones(len(x0)), state)
        structure.append(ssim(x0, x_T))
        squares.append(rmse(x0, x_T))
    return torch.cat(structure).mean().item(), torch.cat(squares).mean().sqrt().item()


@pytest.mark.parametrize("name", ROWS)
def test_the_degraded_column(name):
    data, degradation, settings, ssim, rmse = ROWS[name]
    tolerance = 0.01 if data == "mnist" else 0.015
    mine = degraded(data, degradation, settings)
    print(f"{name}: SSIM {mine[0]:.3f} RMSE {mine[1]:.3f}")
    assert mine[1] == pytest.approx(rmse, abs=tolerance)
    assert ssim is None or mine[0] == pytest.approx(ssim, abs=tolerance)
