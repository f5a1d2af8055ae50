"""A network whose bottleneck can be shifted: equal to its base at first and where nothing is asked."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from networks import network, randomized
from torch import nn

from configs import UserError
from models.context import Context
from models.shifted import Shift, ShiftedNet, ask_shift

KINDS = ["nano", "cold_paper", "dit"]


def inputs(n=3):
    rng = torch.Generator().manual_seed(0)
    x, t, emb = (torch.randn(shape, generator=rng) for shape in ((n, 1, 8, 8), (n,), (n, 32)))
    return x, t.sigmoid(), Context(emb=emb)


def shifted(name="nano") -> ShiftedNet:
    """With a shift that is not zero."""
    net = ShiftedNet(network(name=name))
    randomized(net.shift, seed=1)
    return net


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("strength", [-1.0, 1.0])
def test_at_first_it_is_its_base(name, strength):
    x, t, ctx = inputs()
    net = ShiftedNet(network(name=name))
    assert torch.equal(net(x, t, ask_shift(ctx, strength, x)), network(name=name)(x, t, ctx))


@pytest.mark.parametrize("name", KINDS)
def test_what_is_not_asked_is_not_shifted(name):
    x, t, ctx = inputs()
    net, plain = shifted(name), network(name=name)(x, t, ctx)
    assert torch.equal(net(x, t, ctx), plain)
    assert torch.equal(net(x, t, ask_shift(ctx, 0.0, x)), plain)
    assert not torch.allclose(net(x, t, ask_shift(ctx, 1.0, x)), plain, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_the_bottleneck_is_shifted(name):
    """Against the parts of the base by hand, with another strength for each row."""
    x, t, ctx = inputs()
    net, base = shifted(name), network(name=name)
    strengths = torch.tensor([[-1.0], [0.0], [0.5]])
    asked = ask_shift(ctx, 1.0, x).replace(extra={"shift": strengths})
    features = base.middle(base.encode(x, t, ctx))
    moved = replace(features, h=features.h + strengths[:, :, None, None] * net.shift(features.h, features.emb))
    assert torch.equal(net(x, t, asked), base.decode(moved))


def test_a_shift_is_its_formula():
    f = randomized(Shift(8, 5))
    rng = torch.Generator().manual_seed(0)
    h, emb = torch.randn(2, 8, 3, 3, generator=rng), torch.randn(2, 5, generator=rng)
    inside = torch.einsum("oi,bihw->bohw", f.enter.weight[:, :, 0, 0], h) + f.enter.bias[:, None, None]
    inside = inside + (F.silu(emb) @ f.time[1].weight.T + f.time[1].bias)[:, :, None, None]
    normed = F.group_norm(inside, 2, f.norm.weight, f.norm.bias)
    expected = torch.einsum("oi,bihw->bohw", f.leave.weight[:, :, 0, 0], F.silu(normed)) + f.leave.bias[:, None, None]
    torch.testing.assert_close(f(h, emb), expected, atol=1e-5, rtol=1e-5)


def test_a_row_does_not_depend_on_its_batch():
    x, t, ctx = inputs()
    net = shifted()
    whole = net(x, t, ask_shift(ctx, 1.0, x))
    torch.testing.assert_close(net(x[1:2], t[1:2], ask_shift(ctx[1:2], 1.0, x[1:2])), whole[1:2], atol=1e-5, rtol=1e-5)


def test_a_frozen_base_stays_as_it_is():
    x, t, ctx = inputs()
    net, before = shifted().requires_grad_(True), network().state_dict()
    net.base.requires_grad_(False)
    net.train()
    assert net.shift.training
    assert not net.base.training
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        net(x, t, ask_shift(ctx, 1.0, x)).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in net.base.state_dict().items())
    assert all(parameter.grad.any() for parameter in net.shift.parameters())


def test_what_is_refused():
    with pytest.raises(UserError, match="no bottleneck"):
        ShiftedNet(nn.Identity())
    with pytest.raises(UserError, match="3 channels"):
        ShiftedNet(network(), in_channels=3)
