"""The classifier network: any image, any time, one row at a time."""

import copy

import pytest
import torch
from networks import CLASSES, CLASSIFIERS, randomized
from torch import nn

import models
from configs import UserError
from models.blocks import Recomputed, recompute
from models.classifier import Classifier
from models.context import Context
from models.protocol import ClassifierNetwork, Network

B = 3
T = torch.tensor([0.0, 0.6, 1.0])


def small(name: str = "classifier", **changes) -> Classifier:
    """A preset with its structure, but narrow, and all its weights random."""
    return randomized(models.build(name, **{"classes": CLASSES, "base": 8, "emb_dim": 32} | changes))


@pytest.fixture(params=CLASSIFIERS)
def net(request) -> Classifier:
    return small(request.param)


@pytest.fixture
def x():
    return torch.randn(B, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("side", [1, 7, 8, 9, 28, 32, 96, 128])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_any_side(name, side):
    with torch.device("meta"):
        net = models.build(name, in_channels=3, classes=7)
        x, t = torch.randn(2, 3, side, side), torch.rand(2)
        assert net(x, t).shape == (2, 7)
        assert net.features(x, t).shape == (2, net.head.in_features)


def test_a_pixel_is_seen_wherever_it_is(net, x):
    leaf = x.clone().requires_grad_()
    net(leaf, T).square().sum().backward()
    assert leaf.grad.all()


def test_samples_do_not_see_each_other(net, x):
    """Nothing is normalised over the batch, in training neither."""
    for each in (net, net.train()):
        alone = torch.cat([each(x[i:i + 1], T[i:i + 1]) for i in range(B)])
        torch.testing.assert_close(each(x, T), alone, atol=1e-5, rtol=1e-4)


def test_logits_are_the_head_of_the_features(net, x):
    assert torch.equal(net.head(net.features(x, T)), net(x, T, Context(), None))
    assert isinstance(net, Network)
    assert isinstance(net, ClassifierNetwork)


def test_it_is_told_the_time_and_nothing_else(net, x):
    out = net(x, T)
    assert (net(x, T - 0.1) - out).abs().amax(1).min() > 1e-3 * out.abs().max()
    assert torch.equal(net(x, T, Context(emb=torch.randn(B, 32)), lambda call: call.v), out)


def test_every_parameter_gets_a_gradient(net, x):
    net.requires_grad_(True)(x, T).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_recomputation_changes_nothing(x):
    plain = small(dropout=0.3).requires_grad_(True).train()
    again = copy.deepcopy(plain)
    recompute(again)
    assert list(plain.state_dict()) == list(again.state_dict())
    assert sum(isinstance(module, Recomputed) for module in again.modules()) == 3
    for net in (plain, again):
        torch.manual_seed(0)
        net(x, T).square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), again.parameters()))


def test_arguments_reach_the_network():
    net = small(multipliers=[1, 3], blocks=2, stride=1, norm="channel_layer")
    assert net.head.in_features == 24
    assert net.features(torch.zeros(1, 1, 8, 8), T[:1]).shape == (1, 24)
    assert sum(isinstance(module, Recomputed) for module in net.modules()) == 4
    assert not any(isinstance(module, nn.GroupNorm) for module in net.modules())
    assert models.build("classifier", classes=2, emb_dim=None).emb_dim == 256


@pytest.mark.parametrize(("arguments", "fix"), [({"classes": None}, "model.classes=10"), ({"base": 7}, "model.base=8"),
                                                ({"norm": "batch"}, "model.norm=group")])
def test_arguments_that_mean_nothing(arguments, fix):
    with pytest.raises(UserError) as error:
        small(**arguments)
    assert fix in error.value.fix


def test_other_channels_are_refused(net, x):
    with pytest.raises(UserError, match="3 channels") as error:
        net(x.expand(-1, 3, -1, -1), T)
    assert error.value.fix == "model.in_channels=3"
