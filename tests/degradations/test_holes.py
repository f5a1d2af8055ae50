"""Boxes and single pixels that vanish, against masks that are painted pixel by pixel."""

import numpy as np
import pytest
import torch
from oracles import Perfect, state_of

import degradations
import samplers
from configs import UserError
from degradations.base import State
from degradations.randomness import Streams
from models.context import Context

HOLES = ["inpaint", "inpaint_color", "inpaint_box", "inpaint_pixels"]
NEW = HOLES[2:]
FINE = 20
"""Parts into which a side of a pixel is divided, so that each level of the test's boxes ends between two parts."""


def at(hole, x0, t, state):
    return hole.forward(x0, torch.full((len(x0),), t, dtype=torch.float64), state)


def paint_box(side, corner, size, t):
    """Visible share of each pixel: a box is painted on a finer grid, whose mean is taken."""
    rows, columns = (slice(*(round(FINE * (c + n / 2 * (1 + sign * t))) for sign in (-1, 1)))
                     for c, n in zip(corner, size))
    fine = np.ones((side[0] * FINE, side[1] * FINE))
    fine[rows, columns] = 0
    return fine.reshape(side[0], FINE, side[1], FINE).mean((1, 3))


class TestBox:
    @pytest.mark.parametrize(("height", "width", "size"), [
        (0.5, 0.5, (5, 6)), (0.25, 1.0, (2, 12)), (0.01, 0.1, (1, 1))])
    @pytest.mark.parametrize("center", ["random", "middle"])
    def test_a_box_is_painted_out(self, height, width, size, center):
        box = degradations.build("inpaint_box", levels=5, height=height, width=width, center=center, value=-0.4)
        x0 = torch.randn(4, 3, 10, 12, dtype=torch.float64)
        state = state_of(box, x0.shape)
        for t in (0.2, 0.3, 0.6, 0.8, 1.0):
            masks = np.stack([paint_box((10, 12), corner, size, t) for corner in state["corner"].tolist()])
            v = torch.from_numpy(masks)[:, None]
            torch.testing.assert_close(at(box, x0, t, state), v * x0 + (1 - v) * -0.4, atol=1e-6, rtol=0)

    def test_it_ends_on_whole_pixels_anywhere_in_the_image(self):
        box = degradations.build("inpaint_box", height=0.5, width=0.25)
        ones = torch.ones(3000, 1, 8, 12)
        state = state_of(box, ones.shape)
        erased = at(box, ones, 1.0, state) == 0
        assert ((at(box, ones, 1.0, state) == 1) | erased).all()
        assert (erased.sum((1, 2, 3)) == 4 * 3).all()
        for axis, places in enumerate((5, 10)):
            values, counts = state["corner"][:, axis].unique(return_counts=True)
            assert values.tolist() == list(range(places))
            assert counts.min() > 3000 / places / 1.3

    def test_in_the_middle(self):
        box = degradations.build("inpaint_box", center="middle")
        expected = torch.ones(2, 1, 16, 16)
        expected[:, :, 4:12, 4:12] = 0
        assert torch.equal(at(box, torch.ones(2, 1, 16, 16), 1.0, state_of(box, (2, 1, 16, 16))), expected)


class TestPixels:
    def test_pixels_go_at_their_thresholds(self):
        hole, x0 = degradations.build("inpaint_pixels", levels=8, share=0.6, value=-1.0), torch.randn(3, 2, 6, 5)
        state = state_of(hole, x0.shape)
        gone = [torch.from_numpy(state["threshold"].numpy() < 0.6 * k / 8)[:, None] for k in range(9)]
        for k in range(1, 9):
            assert torch.equal(at(hole, x0, k / 8, state), x0.masked_fill(gone[k], -1.0))
        between = 0.75 * x0.masked_fill(gone[3], -1.0) + 0.25 * x0.masked_fill(gone[4], -1.0)
        torch.testing.assert_close(at(hole, x0, 3.25 / 8, state), between)

    def test_how_many(self):
        hole, ones = degradations.build("inpaint_pixels", levels=10), torch.ones(50, 1, 32, 32)
        state = state_of(hole, ones.shape)
        for t in (0.1, 0.5, 1.0):
            assert (at(hole, ones, t, state) == 0).float().mean().item() == pytest.approx(0.7 * t, abs=0.01)
        assert not torch.equal(state["threshold"][0], state["threshold"][1])

    def test_all_of_them(self):
        hole = degradations.build("inpaint_pixels", share=1.0)
        assert at(hole, torch.ones(2, 1, 8, 8), 1.0, state_of(hole, (2, 1, 8, 8))).abs().max() == 0


@pytest.mark.parametrize("name", HOLES)
def test_what_is_gone_stays_gone_and_nothing_jumps(name):
    hole, x = degradations.build(name, levels=10), torch.ones(1, 3, 9, 8)
    state, times = state_of(hole, x.shape), torch.linspace(0, 1, 401, dtype=torch.float64)
    state = State(**{entry: state[entry].expand(401, *state[entry].shape[1:]) for entry in state})
    visible = hole.visible(x.expand(401, -1, -1, -1), times, state, torch.float64)
    assert visible[0].min() == 1
    assert (visible.diff(dim=0) < 1e-12).all()
    assert visible.diff(dim=0).abs().max() < 0.1
    assert visible.min() >= 0


@pytest.mark.parametrize("name", NEW)
def test_the_hole_is_the_same_in_all_channels_and_follows_the_sample(name):
    hole, ones = degradations.build(name), torch.ones(5, 4, 8, 8)
    x_t = at(hole, ones, 0.65, state_of(hole, ones.shape))
    assert torch.equal(x_t[:, :1].expand_as(x_t), x_t)
    alone = hole.draw((1, 4, 8, 8), Streams(0, (3,)))
    assert torch.equal(at(hole, ones[:1], 0.65, alone), x_t[3:4])


@pytest.mark.parametrize("steps", [20, 3])
@pytest.mark.parametrize("name", NEW)
def test_algorithm_2_gives_a_known_image_back(name, steps):
    hole, x0 = degradations.build(name, value=-1.0), torch.rand(3, 1, 8, 8) * 2 - 1
    state = state_of(hole, x0.shape)
    sampler = samplers.build("cold2", num_steps=steps)
    x = sampler.sample(Perfect(x0, hole), hole, at(hole, x0, 1.0, state), state, Context(), Streams(0, (0, 1, 2)))
    torch.testing.assert_close(x, x0, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("name", "settings"), [
    ("inpaint_box", {"levels": 0}), ("inpaint_box", {"height": 0.0}), ("inpaint_box", {"width": 1.5}),
    ("inpaint_box", {"center": "left"}), ("inpaint_box", {"value": 2.0}), ("inpaint_pixels", {"levels": 0}),
    ("inpaint_pixels", {"share": 0.0}), ("inpaint_pixels", {"share": 1.1}), ("inpaint_pixels", {"value": -1.5})])
def test_unusable_settings_are_refused(name, settings):
    with pytest.raises(UserError) as error:
        degradations.build(name, **settings)
    assert error.value.fix.startswith("degradation.")
