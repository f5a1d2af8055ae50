from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from networks import network
from torch.utils.flop_counter import FlopCounterMode

import models
from configs.errors import UserError
from models.convnext import ConvNextBlock, ConvNextUNet


def conv(i: int, o: int, k: int) -> int:
    """Parameters of a convolution."""
    return i * o * k * k + o


def block(i: int, o: int, emb: int = 64, norm: bool = True) -> int:
    """Depthwise 7x7, time, norm, two convolutions, 1x1 shortcut."""
    return (conv(1, i, 7) + (emb + 1) * i * bool(emb) + 2 * i * norm + conv(i, 2 * o, 3) + conv(2 * o, o, 3)
            + conv(i, o, 1) * (i != o))


def attention(c: int) -> int:
    """Norm, queries, keys and values of 4 heads of 32 without a bias, output."""
    return 2 * c + 3 * 128 * c + conv(128, c, 1)


def expected(channels: int) -> int:
    """The layers of the paper's network, one by one."""
    widths = [64, 128, 256, 512]
    total = 64 * 256 + 256 + 256 * 64 + 64
    total += sum(block(i, o, norm=i != channels) + block(o, o) + attention(o)
                 for i, o in pairwise([channels, *widths])) + sum(conv(c, c, 4) for c in widths[:-1])
    total += 2 * block(512, 512) + attention(512)
    total += sum(block(2 * i, o) + block(o, o) + attention(o) + conv(o, o, 4) for o, i in pairwise(widths))
    return total + block(64, 64, emb=0) + conv(64, channels, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_network_of_the_paper_has_its_parameters(channels):
    with torch.device("meta"):
        count = sum(p.numel() for p in models.build("cold_paper", in_channels=channels).parameters())
    assert count == expected(channels) == pytest.approx(56.6e6, rel=0.01)


@pytest.mark.parametrize(("size", "operations"), [(128, 67.4e9), (32, 4.2e9)])
def test_the_network_of_the_paper_has_its_operations(size, operations):
    """Measured on the original code."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        models.build("cold_paper", in_channels=3)(torch.empty(1, 3, size, size), torch.empty(1))
    assert counter.get_total_flops() == pytest.approx(operations, rel=0.01)


@pytest.mark.parametrize("out", [4, 6])
def test_block_by_its_formula(out):
    made, x, emb = ConvNextBlock(4, out, 5), torch.randn(2, 4, 6, 7), torch.randn(2, 5)
    h = F.conv2d(x, made.depthwise.weight, made.depthwise.bias, padding=3, groups=4)
    h = h + (F.gelu(emb) @ made.shift[1].weight.T + made.shift[1].bias)[:, :, None, None]
    h = (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    h = F.conv2d(h, made.conv1.weight, made.conv1.bias, padding=1)
    h = F.conv2d(F.gelu(h), made.conv2.weight, made.conv2.bias, padding=1)
    assert made.conv1.out_channels == 2 * out
    shortcut = x if out == 4 else F.conv2d(x, made.shortcut.weight, made.shortcut.bias)
    torch.testing.assert_close(made(x, emb), shortcut + h, atol=1e-5, rtol=1e-5)


def test_sites_are_one_per_level_and_one_in_the_middle():
    sites = [(site.name, site.scale_factor) for site in network(name="cold_paper", multipliers=[1, 2, 2]).sites]
    assert sites == [("down.0.self", 1), ("down.1.self", 2), ("down.2.self", 4), ("mid.0.self", 4), ("up.2.self", 4),
                     ("up.1.self", 2)]


def test_the_first_level_is_no_skip():
    """Below it, what the decoder knows of the image comes through the bottleneck and the other skips."""
    net, x, t = network(name="cold_paper"), torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.8])
    features = net.encode(x, t)
    assert [skip.shape[1:] for skip in features.skips] == [(16, 4, 4)]
    one = ConvNextUNet(1, 8, (1,), time_scale=10)
    assert one.encode(x, t).skips == ()
    assert one(x, t).shape == x.shape


def test_the_scale_multiplies_the_time():
    x = torch.randn(2, 1, 8, 8)
    coarse, fine = (network(name="cold_paper", time_scale=scale) for scale in (20.0, 40.0))
    assert torch.equal(coarse(x, torch.tensor([0.5, 1.0])), fine(x, torch.tensor([0.25, 0.5])))
    assert not torch.equal(coarse(x, torch.tensor([0.5, 1.0])), fine(x, torch.tensor([0.5, 1.0])))


def test_an_odd_base_is_refused():
    with pytest.raises(UserError) as error:
        ConvNextUNet(1, 9)
    assert error.value.fix == "model.base=10"
