"""Each operator against the definition of Cold Diffusion, step by step, as its code does it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import state_of
from scipy.ndimage import zoom

import degradations
from configs import UserError
from degradations.base import State


def same(mine, theirs, atol=1e-5):
    torch.testing.assert_close(mine, theirs.to(mine.dtype), atol=atol, rtol=0)


def at(operator, x0, k, state):
    return operator.forward(x0, torch.full((len(x0),), k / operator.levels), state)


def gaussian_mask(size, std, centre):
    """One minus a Gaussian, as tensors of the code: 1 at the centre of the hole."""
    y, x = (torch.arange(n, dtype=torch.float32) - c for n, c in zip(size, centre))
    return 1 - torch.exp(-y**2 / (2 * std**2))[:, None] * torch.exp(-x**2 / (2 * std**2))[None]


class TestInpaint:
    @pytest.mark.parametrize("settings", [
        {}, {"levels": 100, "kernel_std": 0.2, "initial_mask": 1, "center": "middle"},
        {"levels": 7, "kernel_std": 0.5, "initial_mask": 3}])
    @pytest.mark.parametrize("size", [(32, 32), (20, 28)])
    def test_one_mask_after_another(self, settings, size):
        hole, x0 = degradations.build("inpaint", **settings), torch.rand(3, 3, *size) * 2 - 1
        state = state_of(hole, x0.shape)
        x = x0.clone()
        for i in range(hole.levels):
            std = hole.kernel_std * (i + hole.initial_mask)
            x = torch.stack([image * gaussian_mask(size, std, centre) for image, centre in zip(x, state["center"])])
            if i % 6 == 0 or i == hole.levels - 1:
                same(at(hole, x0, i + 1, state), x)

    def test_where_the_centres_are(self):
        """On a grid of twice the size, cropped at 0 .. H inclusive: rows -1 .. H - 1."""
        hole = degradations.build("inpaint")
        centres = state_of(hole, (4000, 1, 8, 16))["center"]
        for axis, side in enumerate((8, 16)):
            values, counts = centres[:, axis].unique(return_counts=True)
            assert values.tolist() == list(range(-1, side))
            assert counts.min() > 4000 / (side + 1) / 1.5
        middle = state_of(degradations.build("inpaint", center="middle"), (2, 3, 128, 128))["center"]
        assert middle.tolist() == [[63, 63]] * 2

    def test_the_papers_hole(self):
        """Mean of the mask of CelebA, and how much of it is gone."""
        hole = degradations.build("inpaint", levels=100, kernel_std=0.2, initial_mask=1, center="middle")
        ones = torch.ones(1, 1, 128, 128)
        state = state_of(hole, ones.shape)
        means = [at(hole, ones, k, state).mean().item() for k in (1, 10, 50, 100)]
        assert means == pytest.approx([0.9999, 0.9975, 0.900, 0.526], abs=6e-4)
        assert (at(hole, ones, 100, state) < 0.01).float().mean().item() == pytest.approx(0.23, abs=0.005)

    def test_the_hole_is_the_same_in_all_channels(self):
        hole, ones = degradations.build("inpaint"), torch.ones(2, 4, 8, 8)
        x_t = at(hole, ones, 30, state_of(hole, ones.shape))
        assert torch.equal(x_t[:, :1].expand_as(x_t), x_t)


class TestColourInpaint:
    def test_the_masks_in_reverse(self):
        """``w_k`` is the product of the first ``T - k`` masks."""
        veil = degradations.build("inpaint_color", levels=40)
        x0 = torch.rand(2, 3, 24, 24) * 2 - 1
        state = state_of(veil, x0.shape)
        colour = state["color"][:, :, None, None]
        for k in (1, 7, 33, 39, 40):
            w = torch.ones(24, 24)
            for i in range(40 - k):
                w = w * gaussian_mask((24, 24), 0.05 * (i + 1), (11, 11))
            same(at(veil, x0, k, state), (1 - w) * x0 + w * colour)

    def test_the_papers_schedule(self):
        veil = degradations.build("inpaint_color")
        ones = torch.zeros(1, 1, 128, 128)
        state = State(center=torch.tensor([[63, 63]]), color=torch.ones(1, 1))
        w = {k: at(veil, ones, k, state) for k in (1, 101, 376, 601, 701, 749, 750)}
        assert [w[k].mean().item() for k in (101, 376, 601, 701)] == pytest.approx([0.0027, 0.446, 0.927, 0.994],
                                                                                   abs=1e-3)
        assert w[1].max().item() == pytest.approx(0.007, abs=1e-3)
        assert (w[749] < 0.5).nonzero().tolist() == [[0, 0, 63, 63]]
        assert torch.equal(w[750], torch.ones_like(ones))

    def test_colours(self):
        veil = degradations.build("inpaint_color")
        colour = state_of(veil, (500, 3, 8, 8))["color"]
        assert colour.shape == (500, 3)
        assert colour.abs().max() <= 0.5
        assert colour.std().item() == pytest.approx(1 / math.sqrt(12), abs=0.01)


class TestDownsample:
    @pytest.mark.parametrize(("first", "mode"), [("bicubic", "bicubic"), ("average", "area"), ("average", "bilinear")])
    @pytest.mark.parametrize("size", [(32, 32), (16, 48)])
    def test_one_halving_after_another(self, first, mode, size):
        down, x0 = degradations.build("downsample", levels=4, first=first), torch.rand(2, 3, *size) * 2 - 1
        x = x0
        for i in range(4):
            small = F.interpolate(x, [side // 2 ** (i + 1) for side in size], mode=mode)
            x = F.interpolate(small, size, mode="nearest-exact")
            same(at(down, x0, i + 1, State()), x)

    def test_the_first_halving_must_be_chosen(self):
        x0 = torch.randn(1, 1, 16, 16)
        bicubic, average = (at(degradations.build("downsample", first=first), x0, 1, State())
                            for first in ("bicubic", "average"))
        assert (bicubic - average).abs().max() > 0.1

    def test_between_two_levels_the_one_above_holds(self):
        down, x0 = degradations.build("downsample"), torch.rand(5, 1, 16, 16)
        x_t = down.forward(x0, torch.tensor([0.01, 1 / 3, 0.34, 2 / 3, 0.7]), State())
        whole = [at(down, x0, k, State())[i] for i, k in enumerate((1, 1, 2, 2, 3))]
        torch.testing.assert_close(x_t, torch.stack(whole))

    @pytest.mark.parametrize(("size", "levels", "words"), [
        ((28, 28), 3, "levels=2 or data.size=32"), ((16, 24), 4, "levels=3"), ((15, 15), 1, "data.size=16")])
    def test_sides_that_it_cannot_halve(self, size, levels, words):
        with pytest.raises(UserError, match="halvings") as error:
            degradations.build("downsample", levels=levels).check((1, *size))
        assert words in error.value.fix


class TestDesaturate:
    @pytest.mark.parametrize("settings", [{}, {"keep": 0.9}, {"keep": 0.9, "total": True}])
    def test_one_mixture_after_another(self, settings):
        grey, x0 = degradations.build("desaturate", **settings), torch.rand(2, 3, 8, 8) * 2 - 1
        x, left = x0, 1.0
        for i in range(20):
            last = i == 19 and grey.total
            factor = 0.0 if last else grey.keep or 1 - 1 / 20 / left
            left *= factor
            kernel = factor * torch.eye(3) + (1 - factor) / 3
            x = F.conv2d(x, kernel[:, :, None, None])
            same(at(grey, x0, i + 1, State()), x)

    @pytest.mark.parametrize("channels", [1, 4])
    def test_other_channels(self, channels):
        with pytest.raises(UserError, match=f"{channels} channels"):
            degradations.build("desaturate").check((channels, 8, 8))


def snow_chain(x0, flakes, k, levels, field, vertical, fix_brightness):
    """Level k of the code, of one image."""
    threshold, sigma, keep = (torch.linspace(*ends, levels)[k - 1].item()
                              for ends in (flakes.threshold, flakes.sigma, flakes.brightness))
    layer = field.clone()
    layer[layer < threshold] = 0
    layer = layer.clip(0, 1)[None, None]
    place = torch.arange(flakes.taps) - flakes.taps // 2
    gauss = torch.exp(-place.double() ** 2 / (2 * sigma**2)).float()
    kernel = torch.zeros(flakes.taps, flakes.taps)
    kernel[flakes.taps // 2] = gauss / gauss.sum()
    if vertical:
        kernel = torch.rot90(kernel, 1)
    layer = F.conv2d(layer, kernel[None, None], padding="same")
    image = (x0 + 1) / 2
    if not fix_brightness:
        grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        image = keep * image + (1 - keep) * torch.maximum(image, grey * 1.5 + 0.5)
    return torch.clip(image + layer[0] + torch.rot90(layer, 2, (2, 3))[0], 0, 1) * 2 - 1


class TestSnow:
    @pytest.mark.parametrize("fix_brightness", [True, False])
    @pytest.mark.parametrize("flakes", ["level1", "level2", "level3", "level4"])
    def test_each_level_of_the_code(self, flakes, fix_brightness):
        snow = degradations.build("snow", flakes=flakes, levels=50, fix_brightness=fix_brightness)
        x0 = torch.rand(6, 3, 20, 24) * 2 - 1
        state = state_of(snow, x0.shape)
        assert state["vertical"].unique().tolist() == [0, 1]
        for k in (1, 2, 17, 50):
            theirs = [snow_chain(x, snow.flakes, k, 50, field, vertical, fix_brightness)
                      for x, field, vertical in zip(x0, state["field"], state["vertical"])]
            same(at(snow, x0, k, state), torch.stack(theirs))

    @pytest.mark.parametrize(("side", "flakes"), [(32, "level3"), (128, "level4"), (32, "level1"), (20, "level2")])
    def test_the_field_is_enlarged_as_in_the_code(self, side, flakes):
        """A centre crop of ceil(H / zoom), zoomed by splines of order 1, trimmed."""
        snow = degradations.build("snow", flakes=flakes)
        size, factor = math.ceil(side / snow.flakes.zoom), snow.flakes.zoom
        crop = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, size, size))).float()

        class Fixed:
            step = 0
            indices = (0,)

            def normal(self, purpose, shape):
                assert tuple(shape) == (1, 1, size, size)
                return crop

            def integers(self, purpose, high, shape):
                return torch.zeros(shape, dtype=torch.long)

            even = uniform = normal

        mine = snow.draw((1, 3, side, side), Fixed())["field"][0]
        theirs = zoom(crop[0, 0].double().numpy() * snow.flakes.std + snow.flakes.mean, factor, order=1)
        trim = (len(theirs) - side) // 2
        same(mine, torch.from_numpy(theirs[trim:trim + side, trim:trim + side]))

    def test_first_and_last_level(self):
        snow, x0 = degradations.build("snow"), torch.zeros(64, 1, 32, 32)
        state = state_of(snow, x0.shape)
        assert (at(snow, x0, 1, state) != x0).float().mean() < 0.1
        assert (at(snow, x0, 200, state) != x0).float().mean() > 0.9

    def test_each_image_has_its_own_field_and_direction(self):
        state = state_of(degradations.build("snow"), (64, 3, 16, 16))
        assert len(state["field"].flatten(1).unique(dim=0)) == 64
        assert 16 < state["vertical"].sum() < 48

    @pytest.mark.parametrize("channels", [2, 4])
    def test_other_channels(self, channels):
        with pytest.raises(UserError, match=f"{channels} channels"):
            degradations.build("snow").check((channels, 8, 8))


class TestAnimorph:
    def test_two_images(self):
        morph, x0 = degradations.build("animorph"), torch.rand(3, 1, 16, 16)
        state = state_of(morph, x0.shape)
        u = 77 / 200
        alpha_bar = math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        same(at(morph, x0, 77, state), math.sqrt(alpha_bar) * x0 + math.sqrt(1 - alpha_bar) * state["z"])
        same(at(morph, x0, 200, state), state["z"], atol=1e-3)


class TestCompose:
    def test_one_after_the_other(self):
        both, x0 = degradations.build("compose"), torch.rand(2, 3, 16, 16)
        state = state_of(both, x0.shape)
        blurred = at(degradations.build("blur"), x0, 12, State())
        same(at(both, x0, 12, state), blurred + 0.1 * 0.6 * state["noise.z"])

    def test_parts_of_the_same_kind_have_their_own_state(self):
        from degradations.compose import Compose

        both = Compose({"a": degradations.build("inpaint"), "b": degradations.build("inpaint")})
        state = state_of(both, (8, 1, 16, 16))
        assert set(state) == {"a.center", "b.center"}
        assert not torch.equal(state["a.center"], state["b.center"])

    def test_small_differences_do_not_cancel(self):
        from degradations.compose import Compose

        blur = {"levels": 200, "padding": "reflect", "kernels": "exponential"}
        both = Compose({"a": degradations.build("blur", **blur), "b": degradations.build("desaturate", levels=200)})
        x, t, s = torch.rand(1, 3, 32, 32) * 2 - 1, torch.full((1,), 198 / 200), torch.full((1,), 197 / 200)
        exact = both.difference(x.double(), t, s, State())
        assert (both.difference(x, t, s, State()) - exact).norm() / exact.norm() < 1e-5
        assert exact.abs().max() < 1e-2

    def test_what_does_not_go_together(self):
        from degradations.compose import Compose

        with pytest.raises(UserError, match=r"20 levels \(a\) and 50 levels \(b\)"):
            Compose({"a": degradations.build("blur"), "b": degradations.build("inpaint")})
        with pytest.raises(UserError, match="at least one"):
            Compose({})
        both = Compose({"a": degradations.build("desaturate"), "b": degradations.build("blur")})
        with pytest.raises(UserError, match="channels"):
            both.check((1, 8, 8))


@pytest.mark.parametrize(("name", "settings"), [
    ("inpaint", {"levels": 0}), ("inpaint", {"kernel_std": 0.0}), ("inpaint", {"initial_mask": 0}),
    ("inpaint", {"center": "left"}), ("downsample", {"levels": 0}), ("downsample", {"first": "cubic"}),
    ("desaturate", {"levels": 0}), ("desaturate", {"keep": 1.0}), ("snow", {"levels": 0}),
    ("snow", {"flakes.taps": 4}), ("snow", {"flakes.zoom": 0.5}), ("snow", {"flakes.sigma": [0.0, 1.0]})])
def test_unusable_settings_are_refused(name, settings):
    with pytest.raises(UserError) as error:
        degradations.build(name, **settings)
    assert error.value.fix.startswith("degradation.")


@pytest.mark.parametrize("name", ["blur", "downsample", "inpaint", "inpaint_color"])
def test_no_denormals_in_tables(name):
    """They slow a product fifteen times, and say nothing."""
    from degradations import inpaint, separable

    operator = degradations.build(name)
    table = (inpaint._table if name.startswith("inpaint") else separable._table)(operator, 64, "cpu", torch.float32)
    assert ((table == 0) | (table.abs() > 1e-20)).all()
