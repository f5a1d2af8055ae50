"""The classes that docs/extending.md writes do what it says of them."""

import numpy as np
import pytest
import torch
from helpers import GUEST, read_blocks, write_guest
from oracles import Arbitrary, state_of

import degradations
from degradations.randomness import BatchStream, Streams
from models.conditioning import ConditionEncoder, LabelSignal
from models.context import Context
from models.unet import UNet
from samplers.guidance.base import Guided

pytestmark = pytest.mark.docs


@pytest.fixture
def extending(tmp_path, monkeypatch):
    """The classes of docs/extending.md by name."""
    monkeypatch.syspath_prepend(write_guest(tmp_path))
    found: dict = {}
    for block in read_blocks(GUEST, "python"):
        assert len(block.splitlines()) < 30
        exec(block, found)
    return found


def test_own_degradation(extending):
    d = extending["Fade"]()
    x0, t = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 0.5, 1.0])
    state = state_of(d, x0.shape)
    x_t = d.forward(x0, t, state)
    assert torch.equal(x_t[0], x0[0])
    torch.testing.assert_close(x_t[2], state["c"][2].expand(1, 8, 8))


def test_own_sampler(extending):
    d = degradations.build("blur")
    x_T = torch.randn(2, 1, 8, 8)
    sampler = extending["Cautious"](num_steps=4)
    out = sampler.sample(Arbitrary(d), d, x_T, state_of(d, x_T.shape), Context(), Streams(0, (0, 1)))
    assert out.isfinite().all()


def test_own_guidance_and_network(extending):
    from diffusion.objectives.evaluator import NetworkRestorer
    from diffusion.objectives.parameterization import V

    d = degradations.build("gaussian")
    torch.manual_seed(0)
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.5)
    state = state_of(d, x.shape)
    net = UNet(1, base=8, multipliers=(1, 2), attention=(1,), emb_dim=16, head_dim=8)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    for network in (net, extending["Convolutions"](emb_dim=16)):
        encoder = ConditionEncoder({"label": LabelSignal(3, 16)}, 16)
        ctx = encoder.with_null({"label": torch.tensor([0, 2])})
        restorer = NetworkRestorer(network, d, V())
        plain = restorer(x, t, ctx, state=state, step=None)
        guided = Guided(restorer, d, [extending["Perturbed"](3.0)])(x, t, ctx, state=state, step=None)
        changed = (plain.x0 - guided.x0).abs().max() > 1e-4
        assert changed == (network is net), "only a network with attention is perturbed"


def test_own_data(extending):
    shapes = extending["Shapes"](16, 1, False)
    images, signals = shapes.split("train").batch(np.arange(2000))
    labels = signals["label"]
    area = (images == 255).double().mean(dim=(1, 2, 3))
    torch.testing.assert_close(area[labels == 1].mean(), torch.tensor(0.4**2).double(), rtol=0.05, atol=0)
    torch.testing.assert_close(area[labels == 0].mean(), torch.tensor(torch.pi * 0.2**2).double(), rtol=0.05, atol=0)
    assert shapes.fingerprint() == extending["Shapes"](16, 1, False).fingerprint()


def test_own_times(extending):
    t = extending["Power"](2.0)(4000, degradations.build("gaussian"), BatchStream(0, 0, slice(0, 4000), 4000))
    assert t.min() > 0
    assert t.max() <= 1
    torch.testing.assert_close(t.sqrt().mean(), torch.tensor(0.5), rtol=0.05, atol=0)


def test_own_condition(extending):
    encoder = ConditionEncoder({"label": extending["Words"](3, 16)}, 16)
    net = UNet(1, base=8, multipliers=(1, 2), attention=(1,), emb_dim=16, head_dim=8, cross_dim=16)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    ctx = encoder.with_null({"label": torch.tensor([0, 2])})
    x, t = torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1), torch.full((2,), 0.5)
    first, second = net(x, t, ctx)
    null = net(x, t, ctx.null)
    assert (first - second).abs().max() > 1e-4
    assert (first - null[0]).abs().max() > 1e-4
    torch.testing.assert_close(null[0], null[1])
