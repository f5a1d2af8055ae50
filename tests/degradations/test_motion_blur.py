"""Motion blur against means along lines that SciPy computes."""

import numpy as np
import pytest
import torch
from oracles import Perfect, state_of
from scipy.ndimage import convolve1d, map_coordinates

import degradations
import samplers
from configs import UserError
from degradations.randomness import Streams
from models.context import Context

BORDERS = {"circular": "wrap", "reflect": "mirror", "replicate": "nearest", "zeros": "constant"}
"""SciPy's names of them."""


def blurred(operator, x0, t, state=None):
    return operator.forward(x0, torch.full((len(x0),), t, dtype=torch.float64), state or state_of(operator, x0.shape))


def overlaps(length, reach):
    """How much of each pixel -reach .. reach the interval of this length around 0 covers, in shares of all."""
    edges = np.clip(np.arange(-reach, reach + 2) - 0.5, -length / 2, length / 2)
    return np.diff(edges) / length


@pytest.mark.parametrize("padding", BORDERS)
@pytest.mark.parametrize(("angle", "axis"), [(0, 3), (90, 2), (180.0, 3), (-90.0, 2)])
@pytest.mark.parametrize("length", [2.0, 5.0, 6.3])
def test_along_rows_and_columns_it_is_a_box_filter(length, angle, axis, padding):
    operator = degradations.build("motion_blur", length=length, angle=angle, padding=padding, levels=10)
    x0 = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    for t in (0.1, 0.35, 0.7, 1.0):
        weights = overlaps(1 + (length - 1) * t, 4)
        expected = convolve1d(x0.numpy(), weights, axis=axis, mode=BORDERS[padding])
        torch.testing.assert_close(blurred(operator, x0, t), torch.from_numpy(expected), atol=1e-12, rtol=0)


@pytest.mark.parametrize("padding", BORDERS)
@pytest.mark.parametrize("angle", [30.0, 45.0, 101.0])
def test_at_any_angle_it_is_the_mean_of_points_of_the_line(angle, padding):
    operator = degradations.build("motion_blur", length=6.5, angle=angle, padding=padding)
    x0 = torch.randn(1, 1, 10, 9, dtype=torch.float64)
    rows, columns = np.mgrid[:10, :9].astype(float)
    mode = {"wrap": "grid-wrap", "constant": "grid-constant"}.get(BORDERS[padding], BORDERS[padding])
    for t in (0.2, 0.625, 1.0):
        expected = np.zeros((10, 9))
        for j, weight in enumerate(overlaps(1 + 5.5 * t, 4), -4):
            up, right = j * np.sin(np.radians(angle)), j * np.cos(np.radians(angle))
            expected += weight * map_coordinates(x0[0, 0].numpy(), [rows - up, columns + right], order=1, mode=mode)
        torch.testing.assert_close(blurred(operator, x0, t)[0, 0], torch.from_numpy(expected), atol=1e-12, rtol=0)


def test_a_point_is_drawn_out_along_the_angle():
    x0 = torch.zeros(1, 1, 9, 9)
    x0[..., 4, 4] = 1
    line = blurred(degradations.build("motion_blur", angle=45), x0, 1.0)[0, 0]
    assert line[3, 5] > 0.05 < line[5, 3]
    assert line[3, 3] == line[5, 5] == 0


def test_the_line_only_grows():
    """Its ends move outwards and no weight inside increases; nothing jumps."""
    operator = degradations.build("motion_blur", angle=25, levels=7)
    times = torch.linspace(0, 1, 201, dtype=torch.float64)
    kernels = operator.kernel(times, state_of(operator, times.shape))
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(201, dtype=torch.float64))
    assert (kernels >= 0).all()
    centre = kernels[:, 3, 3]
    assert kernels[0].sum() == centre[0] == 1
    assert (centre.diff() <= 0).all()
    place = torch.arange(-3.0, 4)
    spread = (kernels * (place**2 + place[:, None] ** 2)).sum((1, 2))
    assert (spread.diff() > 0).all()
    assert kernels.diff(dim=0).abs().max() < 6 / 200


def test_each_image_has_its_own_angle():
    operator, x0 = degradations.build("motion_blur", angle="random"), torch.randn(5, 2, 16, 16)
    state, t = state_of(operator, x0.shape), torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0])
    x_t = operator.forward(x0, t, state)
    alone = operator.draw((1, 2, 16, 16), Streams(0, (3,)))
    torch.testing.assert_close(operator.forward(x0[3:4], t[3:4], alone), x_t[3:4])
    fixed = degradations.build("motion_blur", angle=state["angle"][3].item())
    torch.testing.assert_close(fixed.forward(x0[3:4], t[3:4], state_of(fixed, (1, 2, 16, 16))), x_t[3:4])
    angles = state_of(operator, (2000, 1, 8, 8))["angle"]
    assert torch.histc(angles, 6, 0, 180).min() > 2000 / 6 / 1.3


@pytest.mark.parametrize("steps", [20, 3])
def test_algorithm_2_gives_a_known_image_back(steps):
    operator, x0 = degradations.build("motion_blur", angle="random", length=8), torch.rand(3, 1, 8, 8) * 2 - 1
    state = state_of(operator, x0.shape)
    sampler = samplers.build("cold2", num_steps=steps)
    x = sampler.sample(Perfect(x0, operator), operator, blurred(operator, x0, 1.0, state), state, Context(),
                       Streams(0, (0, 1, 2)))
    torch.testing.assert_close(x, x0, atol=2e-6, rtol=0)


def test_a_line_beyond_the_image_is_refused():
    operator = degradations.build("motion_blur", length=9)
    operator.check((3, 9, 12))
    with pytest.raises(UserError, match="9 px on images of 12x8") as error:
        operator.check((3, 12, 8))
    assert error.value.fix == "degradation.length=8"


@pytest.mark.parametrize("side", [2, 3, 5])
@pytest.mark.parametrize("padding", BORDERS)
def test_a_line_as_long_as_the_image(side, padding):
    operator = degradations.build("motion_blur", length=side, angle=20, padding=padding)
    operator.check((1, side, side))
    assert blurred(operator, torch.ones(1, 1, side, side), 1.0).max() <= 1 + 1e-6


@pytest.mark.parametrize("settings", [
    {"levels": 0}, {"length": 1.0}, {"length": float("inf")}, {"angle": "left"}, {"angle": float("inf")},
    {"padding": "mirror"}])
def test_unusable_settings_are_refused(settings):
    with pytest.raises(UserError) as error:
        degradations.build("motion_blur", **settings)
    assert error.value.fix.startswith("degradation.")
