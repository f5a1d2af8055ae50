"""Augmentation: keyed by position, explained by its vector, and never a part of what is sampled."""

from math import cos, pi, sin

import numpy as np
import pytest
import torch
from helpers import DIGITS, train

from configs import UserError, compose, registry
from configs.values import to_plain
from diffusion.data.augment import Geometric, Shift
from diffusion.loading import load
from diffusion.model import Model
from diffusion.runs import checkpoint
from diffusion.runs.identity import extract_identity
from diffusion.training.fit import fill_signals

pytestmark = pytest.mark.commands

POSITIONS = np.arange(24)


@pytest.fixture
def images():
    return torch.rand(24, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1


def moved(images, **entries):
    """The images under one vector, its entries by their place in the table."""
    class Given(Geometric):
        def vector(self, seed, positions):
            return torch.tensor([[entries.get(f"e{i}", 0.0) for i in range(9)]] * len(positions))

    return Given()(images, 0, POSITIONS[:len(images)])[0]


def test_position_decides_not_the_batch(images):
    augment = Geometric(p=0.5)
    whole, vector = augment(images, 7, POSITIONS)
    order = np.random.default_rng(0).permutation(24)
    parts = [augment(images[rows], 7, POSITIONS[rows]) for rows in np.split(order, [1, 10])]
    assert torch.equal(torch.cat([part[1] for part in parts]), vector[order])
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), whole[order], atol=1e-6, rtol=0)
    again = augment.vector(7, POSITIONS + 24)
    assert not torch.equal(again, vector), "another epoch"
    assert not torch.equal(augment.vector(8, POSITIONS), vector), "another seed"


def test_what_is_not_treated_is_untouched_bit_for_bit(images):
    out, vector = Geometric(p=0.12)(images, 0, POSITIONS)
    left = ~vector.any(dim=1)
    assert 0 < left.sum() < 24
    assert torch.equal(out[left], images[left])
    assert (out[~left] != images[~left]).flatten(1).any(dim=1).all()
    assert not Geometric(p=0.0).vector(0, POSITIONS).any()


def test_laws():
    """Shares and spreads of everything that is drawn, and what is drawn for one thing says nothing about another."""
    n, p = 40_000, 0.12
    vector = Geometric(p).vector(3, np.arange(n))
    hit = vector != 0
    assert hit[:, [0, 1]].double().mean(0).tolist() == pytest.approx([p / 2, p / 2], abs=0.006)
    turned = 1 - (1 - 0.75 * p) * (1 - p)
    share = [turned, p, p, p]
    assert hit[:, [2, 4, 5, 7]].double().mean(0).tolist() == pytest.approx(share, abs=0.008)
    expected = (1 - p / 2) ** 2 * (1 - turned) * (1 - p) ** 3
    assert (~hit.any(dim=1)).double().mean().item() == pytest.approx(expected, abs=0.008)
    for normal in (vector[hit[:, 4], 4], vector[hit[:, 7], 7], vector[hit[:, 8], 8],
                   vector[hit[:, 5], 5:7].square().sum(1).sqrt() * torch.randn(int(hit[:, 5].sum())).sign()):
        u = torch.special.ndtr(normal.double()).sort().values
        assert (u - torch.arange(len(u)) / len(u)).abs().max() < 0.03, "Kolmogorov-Smirnov"
    torch.testing.assert_close((vector[:, 2] + 1) ** 2 + vector[:, 3] ** 2, torch.ones(n))
    away = torch.corrcoef(torch.cat([vector, hit[:, [2, 4, 5, 7]]], dim=1).T[[0, 1, 3, 4, 5, 7, 8]])
    assert (away - torch.eye(7)).abs().max() < 0.02


def test_mirrors_and_quarter_turns_are_exchanges_of_pixels(images):
    for out, expected in ((moved(images, e0=1.0), images.flip(3)), (moved(images, e1=1.0), images.flip(2)),
                          (moved(images, e2=-1.0, e3=1.0), images.rot90(1, (2, 3))),
                          (moved(images, e2=-1.0, e3=-1.0), images.rot90(-1, (2, 3))),
                          (moved(images, e2=-2.0), images.rot90(2, (2, 3)))):
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


def test_shifts_move_to_the_right_and_down(images):
    """1/8 of 12 px is 1.5 px per unit: two units are three pixels, the border is mirrored."""
    torch.testing.assert_close(moved(images, e7=2.0)[..., 3:], images[..., :-3], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved(images, e8=2.0)[..., 3:, :], images[..., :-3, :], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved(images, e7=2.0)[..., :3], images[..., :3].flip(-1), atol=1e-4, rtol=0)


def wave(kx, ky, size=32):
    """A smooth plane wave, of kx and ky radians per half image."""
    x = (torch.arange(size) + 0.5) * 2 / size - 1
    return torch.cos(kx * x[None, :] + ky * x[:, None])[None, None]


@pytest.mark.parametrize(("entries", "before", "after"), [
    ({"e4": 5.0}, (4.0, 2.0), (2.0, 1.0)), ({"e4": -2.5}, (2.0, 1.0), (2.0 * 2**0.5, 2**0.5)),
    ({"e5": 5.0}, (4.0, 2.0), (2.0, 4.0)), ({"e5": -5.0}, (2.0, 1.0), (4.0, 0.5)),
    ({"e6": 5.0}, (2.0, 2.0), (1.0, 1.0)), ({"e6": 5.0}, (1.0, -1.0), (2.0, -2.0))])
def test_scales_and_stretches_change_the_wavelength(entries, before, after):
    """Twice as large is half the wave number; what is stretched along an axis (or the diagonal) shrinks across it."""
    inner = (..., slice(8, -8), slice(8, -8))
    torch.testing.assert_close(moved(wave(*before), **entries)[inner], wave(*after)[inner], atol=0.02, rtol=0)


def test_any_angle_turns_the_wave():
    a = 0.3 * pi
    out = moved(wave(3.0, 1.0), e2=cos(a) - 1, e3=sin(a))[..., 10:-10, 10:-10]
    kx, ky = 3 * cos(a) + sin(a), cos(a) - 3 * sin(a)
    torch.testing.assert_close(out, wave(kx, ky)[..., 10:-10, 10:-10], atol=0.02, rtol=0)


class TestShift:
    def test_every_image_is_moved_by_its_vector(self, images):
        """``new[i, j] = old[i - l, j - k]``, the border repeated: one loop over all pixels."""
        out, vector = Shift(0.25)(images, 7, POSITIONS)
        shifts = (vector * 3).round().long()
        torch.testing.assert_close(shifts / 3, vector)
        for image, old, (k, m) in zip(out, images, shifts.tolist()):
            for i in range(12):
                for j in range(12):
                    from_row, from_column = min(max(i - m, 0), 11), min(max(j - k, 0), 11)
                    assert torch.equal(image[:, i, j], old[:, from_row, from_column])

    def test_position_decides_not_the_batch(self, images):
        augment = Shift(0.25)
        whole, vector = augment(images, 7, POSITIONS)
        for rows in (slice(0, 1), slice(1, 10), slice(10, 24)):
            part = augment(images[rows], 7, POSITIONS[rows])
            assert torch.equal(part[0], whole[rows])
            assert torch.equal(part[1], vector[rows])
        assert not torch.equal(augment(images, 7, POSITIONS + 24)[1], vector)
        assert not torch.equal(augment(images, 8, POSITIONS)[1], vector)

    def test_all_shifts_are_alike_and_independent(self):
        n = 20_000
        _, vector = Shift(0.25)(torch.zeros(n, 1, 8, 8), 3, np.arange(n))
        cells = ((vector + 1) * 2).round().long()
        counts = torch.bincount(cells[:, 0] * 5 + cells[:, 1], minlength=25)
        assert (counts / n - 1 / 25).abs().max() < 0.006

    @pytest.mark.parametrize("share", [0.0, 0.03])
    def test_less_than_half_a_pixel_is_nothing(self, images, share):
        out, vector = Shift(share)(images, 0, POSITIONS)
        assert torch.equal(out, images)
        assert not vector.any()

    def test_other_shares_are_refused(self):
        with pytest.raises(UserError, match=r"augment\.share=0\.125"):
            registry.build("augment", "shift", share=1.0)


def test_a_share_outside_zero_one_is_refused():
    with pytest.raises(UserError, match=r"augment\.p=0\.12"):
        registry.build("augment", "geometric", p=1.5)


def model(*overrides):
    return Model(fill_signals(to_plain(compose("train", [*DIGITS, *overrides])), {"label": {"num_classes": 10}}))


@pytest.mark.parametrize("condition", ["label", "none"])
def test_sampling_says_that_nothing_was_done(condition):
    """The trained signal changes nothing but where something was done."""
    with_it = model("augment=geometric", f"condition={condition}")
    plain_one = model(f"condition={condition}")
    signal = with_it.weights.encoder.signals["augment"]
    torch.nn.init.normal_(signal.linear.weight)
    weights = {name: value for name, value in with_it.weights.state_dict().items() if ".augment." not in name}
    plain_one.weights.load_state_dict(weights)
    recipe = with_it.recipe(["sampler.num_steps=3", *(["guidance=none"] if condition == "none" else [])])
    torch.testing.assert_close(with_it.sample(range(3), recipe=recipe), plain_one.sample(range(3), recipe=recipe))
    told = {"label": torch.ones(3).long()} if condition == "label" else {}
    ctx, given = with_it.context(told, 3), {"augment": torch.zeros(3, 9)} | told
    assert torch.equal(ctx.emb, with_it.weights.encoder(given).emb)
    told = with_it.weights.encoder(given | {"augment": torch.ones(3, 9)}).emb
    torch.testing.assert_close(told - ctx.emb, signal.linear.weight.sum(1).expand(3, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("condition", ["label", "none"])
def test_training_with_it_and_loading_again(tmp_path, condition):
    settings = [*DIGITS, "augment=geometric", "augment.p=0.5", f"condition={condition}", "callbacks.pictures.count=0",
                "max_steps=3", "optimizer.lr=0.01", "callbacks.checkpoint.every=2", "callbacks.checkpoint.keep=0"]
    run = train(tmp_path, *settings)
    found = checkpoint.read_latest(run.checkpoints)
    weight = found["raw"]["encoder.signals.augment.linear.weight"]
    assert weight.shape == (32, 9)
    assert weight.abs().sum() > 0, "it has learned"
    assert load(run.folder).sample(range(2)).isfinite().all()
    checkpoint.list_checkpoints(run.checkpoints)[3].unlink()
    train(tmp_path, *settings)
    for name, value in checkpoint.read_latest(run.checkpoints)["raw"].items():
        assert torch.equal(value, found["raw"][name]), name


def test_it_belongs_to_the_identity_where_there_is_one():
    record = to_plain(compose("train", DIGITS))
    old = {name: value for name, value in record.items() if name != "augment"}
    assert extract_identity(record) == extract_identity(old), "a run of before goes on"
    assert extract_identity(to_plain(compose("train", [*DIGITS, "augment=geometric"]))) != extract_identity(record)
    assert Model(fill_signals(old, {"label": {"num_classes": 10}})).augment is None
