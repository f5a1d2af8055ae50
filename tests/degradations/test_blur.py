"""The table is the paper's chain of kernels."""

import pytest
import torch
import torch.nn.functional as F

import degradations
from configs import UserError
from degradations.base import State, flush_denormals
from degradations.blur import PADDINGS

STDS = {
    "constant": ({"kernels": "constant"}, lambda i: 7.0, 11),
    "linear": ({"kernels": "linear"}, lambda i: 0.35 + i / 100, 11),
    "exponential": ({"kernels": "exponential"}, lambda i: torch.tensor(0.01 * i).exp().item(), 15),
}


def kernel(size, std):
    """As in the paper's code: an outer product of one-dimensional Gaussians, normalised in float32."""
    j = torch.arange(size, dtype=torch.float32) - size // 2
    k = torch.exp(-j**2 / (2 * std**2))
    k = k[:, None] * k[None]
    return k / k.sum()


def chain(x, size, stds, padding):
    """One depthwise convolution after another."""
    mode = {"zeros": "constant"}.get(padding, padding)
    for std in stds:
        weight = kernel(size, std).expand(x.shape[1], 1, -1, -1)
        x = F.conv2d(F.pad(x, [size // 2] * 4, mode=mode), weight, groups=x.shape[1])
    return x


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", STDS)
def test_equals_the_sequential_chain(name, padding):
    build, std, size = STDS[name]
    blur = degradations.build("blur", levels=12, padding=padding, **build)
    x = torch.rand(2, 3, 20, 28) * 2 - 1
    for k in (1, 2, 7, 12):
        t = torch.full((2,), k / 12)
        expected = chain(x, size, [std(i) for i in range(k)], padding)
        torch.testing.assert_close(blur.forward(x, t, State()), expected, atol=1e-5, rtol=0)


def test_a_long_chain():
    blur = degradations.build("blur", levels=200, padding="reflect", kernels="exponential")
    x = torch.rand(1, 1, 32, 32) * 2 - 1
    expected = chain(x.double().float(), 15, [torch.tensor(0.01 * i).exp().item() for i in range(200)], "reflect")
    torch.testing.assert_close(blur.forward(x, torch.ones(1), State()), expected, atol=1e-5, rtol=0)


def test_individual_kernels_are_not_composed():
    blur = degradations.build("blur", levels=4, kernels="individual")
    x = torch.rand(1, 1, 16, 16)
    for k in (1, 2, 4):
        expected = chain(x, 2 * k - 1, [2.0 * (2 * k - 1)], "circular")
        torch.testing.assert_close(blur.forward(x, torch.tensor([k / 4]), State()), expected, atol=1e-6, rtol=0)


def test_the_papers_mnist_blur_has_its_width():
    """20 kernels of size 11 and std 7 (3.04 px after truncation) blur 13.6 px in all: variances add on a circle."""
    blur = degradations.build("blur")
    x = torch.zeros(1, 1, 256, 256)
    x[..., 128, 128] = 1
    profile = blur.forward(x, torch.ones(1), State())[0, 0].sum(0)
    place = torch.arange(256.0) - 128
    assert (profile * place**2).sum().sqrt().item() == pytest.approx(13.6, abs=0.05)


def test_circular_blur_keeps_channel_means():
    blur = degradations.build("blur")
    x = torch.rand(2, 3, 32, 32)
    x_t = blur.forward(x, torch.tensor([0.5, 1.0]), State())
    torch.testing.assert_close(x_t.mean((2, 3)), x.mean((2, 3)))


def test_collapse_leaves_the_channel_mean():
    blur = degradations.build("blur", collapse=True)
    x = torch.rand(1, 3, 16, 24)
    x_t = blur.forward(x, torch.ones(1), State())
    torch.testing.assert_close(x_t, x.mean((2, 3), keepdim=True).expand_as(x))


def test_small_differences_do_not_cancel():
    blur = degradations.build("blur", levels=200, padding="reflect", kernels="exponential")
    x = torch.rand(1, 1, 32, 32) * 2 - 1
    t, s = torch.ones(1), torch.full((1,), 199 / 200)
    exact = blur.difference(x.double(), t, s, State())
    mine = blur.difference(x, t, s, State())
    assert (mine - exact).norm() / exact.norm() < 1e-5
    assert exact.abs().max() < 1e-2


def test_between_two_levels_it_interpolates():
    blur = degradations.build("blur", levels=4)
    x = torch.rand(1, 1, 16, 16)
    a, b, c = (blur.forward(x, torch.tensor([t]), State()) for t in (0.25, 0.375, 0.5))
    assert (a - b).norm() > 0
    assert (b - c).norm() > 0
    assert a.std() > b.std() > c.std()


def test_no_denormals_in_tables():
    values = flush_denormals(torch.tensor([1e-30, -1e-25, 1e-10, 1.0]))
    assert torch.equal(values, torch.tensor([0, 0, 1e-10, 1.0]))


def test_unusable_settings_are_refused():
    with pytest.raises(UserError, match="odd"):
        degradations.build("blur", **{"kernels.size": 4})
    with pytest.raises(UserError, match="circular"):
        degradations.build("blur", padding="mirror")
    with pytest.raises(UserError, match="radius"):
        degradations.build("blur", kernels="exponential", padding="reflect").check((1, 7, 7))
