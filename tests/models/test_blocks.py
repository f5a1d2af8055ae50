import pytest
import torch

from models.blocks import MODULATIONS, NORMS, ChannelLayerNorm, Downsample, GroupNorm, ResBlock, ShiftResBlock, Upsample
from models.embeddings import ScalarEmbedding, sinusoid


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (6, 1), (8, 2), (20, 5), (28, 7), (64, 16), (128, 32),
                                                 (192, 32), (384, 32)])
def test_groups_divide_the_channels(channels, groups):
    assert GroupNorm(channels).num_groups == groups


def test_channel_layer_norm_normalizes_each_pixel():
    out = ChannelLayerNorm(6)(3 + 2 * torch.randn(2, 6, 4, 5))
    torch.testing.assert_close(out.mean(dim=1), torch.zeros(2, 4, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.std(dim=1, correction=0), torch.ones(2, 4, 5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("norm", NORMS.values())
@pytest.mark.parametrize("block", MODULATIONS.values())
def test_block_is_its_shortcut_at_the_start(block, norm):
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    assert torch.equal(block(8, 8, 16, norm)(x, emb), x)
    wider = block(8, 12, 16, norm)
    assert torch.equal(wider(x, emb), wider.shortcut(x))


def test_block_scales_and_shifts_by_the_embedding():
    block = ResBlock(8, 8, 16)
    torch.nn.init.normal_(block.conv2.weight)
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    h = block.norm2(block.conv1(block.act1(block.norm1(x))))
    scale, shift = block.emb(torch.nn.functional.silu(emb))[..., None, None].chunk(2, dim=1)
    torch.testing.assert_close(block(x, emb), x + block.conv2(block.act2(h * (1 + scale) + shift)))


def test_block_adds_the_embedding_before_the_norm():
    block = ShiftResBlock(8, 12, 16)
    torch.nn.init.normal_(block.conv2.weight)
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    h = block.conv1(block.act1(block.norm1(x))) + block.emb(torch.nn.functional.silu(emb))[..., None, None]
    torch.testing.assert_close(block(x, emb), block.shortcut(x) + block.conv2(block.act2(block.norm2(h))))


def test_block_leaves_its_input_alone():
    block, x, emb = ResBlock(8, 12, 16), torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    before = x.clone()
    block(x, emb)
    assert torch.equal(x, before)


def test_resampling_halves_and_doubles():
    x = torch.randn(2, 4, 6, 8)
    assert Downsample(4)(x).shape == (2, 4, 3, 4)
    assert Upsample(4)(x).shape == (2, 4, 12, 16)


def test_sinusoid_by_its_formula():
    t = torch.tensor([0.0, 0.25, 1.0])
    w = 10_000.0 ** (-2 * torch.arange(4, dtype=torch.float64) / 8)
    phase = 1000 * t.double()[:, None] * w
    expected = torch.cat([phase.cos(), phase.sin()], dim=1)
    torch.testing.assert_close(sinusoid(t, 8).double(), expected, atol=2e-4, rtol=0)


def test_sinusoid_tells_a_thousand_times_apart():
    codes = sinusoid(torch.arange(1001) / 1000, 32)
    assert (codes[1:] - codes[:-1]).norm(dim=1).min() > 0.3


def test_embedding_stays_float32_before_its_layers():
    t = torch.tensor([0.5, 1.0], dtype=torch.float64)
    assert sinusoid(t, 8).dtype == torch.float32
    assert ScalarEmbedding(8, 12)(t).shape == (2, 12)
