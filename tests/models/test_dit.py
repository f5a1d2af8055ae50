import pytest
import torch
import torch.nn.functional as F
from networks import network, randomized
from torch.utils.flop_counter import FlopCounterMode

from configs.errors import UserError
from models.attention import AttentionSite
from models.context import Context
from models.dit import DiT, DiTBlock, positions

SITE = AttentionSite("mid.0.self", "self", 2, 8, 2)
CPU = torch.device("cpu")


@pytest.mark.parametrize(("width", "depth", "head_dim", "parameters", "operations"), [
    (384, 12, 64, 33e6, 6.06e9), (1152, 28, 72, 675e6, 118.64e9)], ids=["DiT-S/2", "DiT-XL/2"])
def test_sizes_of_the_paper(width, depth, head_dim, parameters, operations):
    """Its table 4, whose Gflops are multiply-adds: latents of 32 x 32 x 4, variances predicted, a table of 1001
    classes. Its code makes the time of 256 features instead of ``width``."""
    with torch.device("meta"):
        net = DiT(4, width, depth, head_dim=head_dim, patch=2, out_channels=8)
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 4, 32, 32), torch.empty(1))
    count = sum(p.numel() for p in net.parameters()) + 1001 * width + (256 - width) * width
    assert count == pytest.approx(parameters, rel=0.005)
    assert counter.get_total_flops() / 2 == pytest.approx(operations, rel=0.01)


def test_positions_by_their_formula():
    """Cosines and sines of the row in the first half of the channels, of the column in the second."""
    code = positions(5, 7, 16, CPU).double()
    for y, x in ((0, 0), (4, 1), (2, 6)):
        w = 10_000.0 ** (-2 * torch.arange(4, dtype=torch.float64) / 8)
        by_hand = torch.cat([(y * w).cos(), (y * w).sin(), (x * w).cos(), (x * w).sin()])
        torch.testing.assert_close(code[:, y, x], by_hand, atol=1e-5, rtol=0)


def test_positions_of_a_larger_image_continue_those_of_a_smaller():
    large = positions(6, 9, 8, CPU)
    assert torch.equal(large[:, :4, :5], positions(4, 5, 8, CPU))
    assert len(large.flatten(1).T.unique(dim=0)) == 54


def test_block_does_nothing_at_the_start():
    made, h = DiTBlock(SITE, 8, 0.0, 6), torch.randn(2, 8, 4, 3)
    ctx = Context(tokens={"main": torch.randn(2, 5, 6)})
    assert torch.equal(made(h, torch.randn(2, 8), ctx, None), h)


def test_block_by_its_formula():
    made = randomized(DiTBlock(SITE, 8, 0.0, None))
    h, emb = torch.randn(2, 8, 4, 3), torch.randn(2, 8)
    x = h.flatten(2).transpose(1, 2)
    six = F.linear(F.silu(emb), made.modulation[1].weight, made.modulation[1].bias)[:, None]
    scale1, shift1, gate1, scale2, shift2, gate2 = six.chunk(6, dim=2)
    normed = F.layer_norm(x, (8,), eps=1e-6) * (1 + scale1) + shift1
    q, k, v = made.own.qkv(normed).chunk(3, dim=2)
    heads = [(q[..., s] @ k[..., s].transpose(1, 2) / 2).softmax(-1) @ v[..., s] for s in (slice(0, 4), slice(4, 8))]
    x = x + gate1 * made.own.out(torch.cat(heads, dim=2))
    hidden = made.mlp[0](F.layer_norm(x, (8,), eps=1e-6) * (1 + scale2) + shift2)
    x = x + gate2 * made.mlp[2](F.gelu(hidden, approximate="tanh"))
    out = made(h, emb, Context(), None)
    torch.testing.assert_close(out, x.transpose(1, 2).unflatten(2, (4, 3)), atol=1e-5, rtol=1e-4)


def test_places_matter_to_the_network_and_not_to_a_block():
    made, h = randomized(DiTBlock(SITE, 8, 0.0, None)), torch.randn(2, 8, 4, 3)
    emb, order = torch.randn(2, 8), torch.randperm(12)
    mixed = h.flatten(2)[..., order].unflatten(2, (4, 3))
    out, turned = (made(given, emb, Context(), None).flatten(2) for given in (h, mixed))
    torch.testing.assert_close(turned, out[..., order], atol=1e-5, rtol=1e-4)
    net, x, t = network(name="dit"), torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.8])
    assert (net(x.roll(2, dims=3), t) - net(x, t).roll(2, dims=3)).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(2, 2), (4, 10), (14, 6)])
def test_any_sides_that_the_patch_divides(size):
    x = torch.randn(2, 1, *size)
    assert network(name="dit")(x, torch.tensor([0.3, 0.8])).shape == x.shape


def test_the_blocks_are_shared_out():
    assert [site.name for site in network(name="dit", depth=8).sites] == [
        "down.0.self", "down.1.self", "mid.0.self", "mid.1.self", *(f"up.{i}.self" for i in range(4))]


def test_dropout_acts_in_training_alone():
    net, x, t = network(name="dit", dropout=0.5), torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.8])
    assert torch.equal(net(x, t), net(x, t))
    net.train()
    assert not torch.equal(net(x, t), net(x, t))


@pytest.mark.parametrize(("arguments", "fix"), [
    ({"width": 100}, "model.width=128"), ({"width": 6, "head_dim": 3}, "model.width=12"),
    ({"depth": 2}, "model.depth=3")])
def test_arguments_that_do_not_fit_are_refused(arguments, fix):
    with pytest.raises(UserError) as error:
        DiT(1, **arguments)
    assert error.value.fix == fix
