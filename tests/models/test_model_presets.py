"""What every network of ``configs/model`` that restores must do, whatever its kind; at its own size it is built without
memory. Classifiers: test_classifier.py."""

import copy
import inspect
import re
from pathlib import Path

import pytest
import torch
from networks import AUTOENCODERS, CLASSES, CLASSIFIERS, RESTORERS, encoder, network, small

import configs
import models
from configs import registry
from configs.errors import UserError
from models.attention import rows
from models.blocks import Recomputed, recompute
from models.context import Context
from models.protocol import Network, ThreeParts
from models.unet import UNet

FOLDER = Path(configs.__file__).parent / "model"
UNITS = {"k": 1e3, "M": 1e6}
B = 3
T = torch.tensor([0.2, 0.6, 1.0])


@pytest.fixture(scope="module", params=RESTORERS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def net(name) -> ThreeParts:
    return network(name=name)


@pytest.fixture
def x():
    return torch.randn(B, 1, 16, 8, generator=torch.Generator().manual_seed(1))


def context(**fields) -> Context:
    """An embedding, and whatever else."""
    return Context(emb=torch.randn(B, 32, generator=torch.Generator().manual_seed(2)), **fields)


def middle(call):
    """The hook of perturbed-attention guidance."""
    return call.v if call.site.name == "mid.0.self" else None


def accepted(name: str, **wanted) -> dict:
    """Those arguments that this kind of network has."""
    return {key: value for key, value in wanted.items() if key in inspect.signature(type(small(name))).parameters}


@pytest.mark.parametrize("name", models.available())
def test_preset_has_the_size_that_it_states(name):
    stated = re.match(r"# ([\d.]+) ([kM]) parameters", (FOLDER / f"{name}.yaml").read_text())
    assert stated
    with torch.device("meta"):
        net = models.build(name, **({"classes": CLASSES} if name in CLASSIFIERS else {}))
    count = sum(p.numel() for p in net.parameters())
    assert count == pytest.approx(float(stated[1]) * UNITS[stated[2]], rel=0.02)
    if name not in AUTOENCODERS:
        assert net.emb_dim == registry.node("model", name).emb_dim, "where conditions look for their length"


def test_preset_runs_at_its_own_size(name):
    with torch.device("meta"):
        net = models.build(name, in_channels=3)
        x = torch.randn(2, 3, 32, 64)
        assert net(x, torch.rand(2)).shape == x.shape


def test_three_parts_are_the_forward_bit_for_bit(net, x):
    ctx = context()
    features = net.encode(x, T, ctx, middle)
    assert torch.equal(net.decode(net.middle(features, middle), middle), net(x, T, ctx, middle))
    assert isinstance(net, Network)


def test_three_parts_hold_all_parameters(net):
    assert {key.split(".")[0] for key, _ in net.named_parameters()} == {"encoder", "middle", "decoder"}


def test_features_are_as_announced(net, x):
    features = net.encode(x, T)
    assert tuple(skip.shape[1] for skip in features.skips) == net.skip_channels
    assert net.middle(features).h.shape[1] == net.mid_channels
    assert features.emb.shape == (B, net.emb_dim)


def test_a_part_leaves_given_features_as_they_are(net, x):
    features = net.encode(x, T)
    before = [tensor.clone() for tensor in (features.h, features.emb, *features.skips)]
    after = net.middle(features)
    assert torch.equal(net.decode(after), net.decode(after))
    assert all(torch.equal(a, b) for a, b in zip(before, (features.h, features.emb, *features.skips)))


def test_output_at_the_start_is_as_documented(name, x):
    words = " ".join(inspect.getdoc(type(small(name))).split())
    assert ("Output zero at the start" in words) != ("Nothing starts at zero" in words)
    assert small(name)(x, T, context()).any() == ("Nothing starts at zero" in words)


def test_output_depends_on_time_image_label_and_maps(name, x):
    net = network(name=name, spatial_channels=2)
    three, four = (encoder()({"label": torch.full((B,), label)}).replace(spatial=torch.cat([x, x], dim=1))
                   for label in (3, 4))
    out = net(x, T, three)
    for other in (net(x + 0.1, T, three), net(x, T - 0.1, three), net(x, T, four), net(x, T, three.replace(emb=None)),
                  net(x, T, three.replace(spatial=three.spatial + 0.1))):
        assert (out - other).abs().amax(dim=(1, 2, 3)).min() > 1e-4 * out.abs().max()


def test_output_depends_on_all_pixels(net, x):
    """The middle's attention sees the whole image, so that one corner answers to the other."""
    leaf = x[:1].clone().requires_grad_()
    net(leaf, T[:1])[..., 0, 0].sum().backward()
    assert leaf.grad[..., -1, -1].all()


def test_samples_do_not_see_each_other(net, x):
    ctx = context()
    alone = torch.cat([net(x[i:i + 1], T[i:i + 1], ctx[i:i + 1]) for i in range(B)])
    torch.testing.assert_close(net(x, T, ctx), alone, atol=1e-5, rtol=1e-4)


def test_every_parameter_gets_a_gradient(name, x):
    net = network(name=name, **accepted(name, cross_dim=6)).requires_grad_(True)
    net(x, T, context(tokens={"main": torch.randn(B, 5, 6)})).square().sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_network_can_be_cast_as_a_whole(net, x):
    cast = copy.deepcopy(net).bfloat16()(x.bfloat16(), T, context().to(dtype=torch.bfloat16))
    exact = net(x, T, context())
    assert cast.dtype == torch.bfloat16
    assert (cast.float() - exact).norm() / exact.norm() < 0.1


def test_a_hook_without_interest_is_no_hook(net, x):
    plain = net(x, T, context())
    for hook in (lambda call: None, lambda call: call.rest(), rows([(1, None), (2, lambda call: None)])):
        assert torch.equal(net(x, T, context(), hook), plain)


def test_perturbed_attention_of_the_middle_changes_the_output_of_its_rows(net, x):
    """In double precision: a deep network of random weights hears its middle only faintly."""
    net, x, ctx = copy.deepcopy(net).double(), x.double(), context().to(dtype=torch.float64)
    plain, out = net(x, T, ctx), net(x, T, ctx, rows([(1, None), (2, middle)]))
    torch.testing.assert_close(out[:1], plain[:1], atol=1e-10, rtol=0)
    assert (out[1:] - plain[1:]).abs().amax(dim=(1, 2, 3)).min() > 1e-6
    assert torch.equal(net.encode(x, T, ctx, middle).h, net.encode(x, T, ctx).h)


def test_sites_are_those_that_are_called(name, x):
    net, called = network(name=name, **accepted(name, cross_dim=6)), []
    net(x, T, context(tokens={"main": torch.randn(B, 5, 6)}), lambda call: called.append(call))
    assert [call.site for call in called] == net.sites
    assert len({site.name for site in net.sites}) == len(net.sites)
    for call in called:
        site, (height, width) = call.site, call.size
        assert (height * site.scale_factor, width * site.scale_factor) == (16, 8)
        assert call.q.shape == (B, site.heads, height * width, site.channels // site.heads)
        assert call.k.shape[2] == (5 if site.kind == "cross" else height * width)


def test_cross_attention_starts_without_effect(name, x):
    if not accepted(name, cross_dim=6):
        pytest.skip("without cross-attention")
    net = small(name, cross_dim=6).eval()
    for key, parameter in net.named_parameters():
        if "cross" not in key:
            torch.nn.init.normal_(parameter, std=0.15)
    assert torch.equal(net(x, T, context(tokens={"main": torch.randn(B, 5, 6)})), net(x, T, context()))


def test_copies_are_independent(net, x):
    twin, before = copy.deepcopy(net), net(x, T)
    assert torch.equal(twin(x, T), before)
    for parameter in twin.parameters():
        parameter.add_(0.1)
    assert torch.equal(net(x, T), before)
    assert not torch.equal(twin(x, T), before)
    assert twin.sites == net.sites


def test_what_does_not_fit_is_refused_in_words(name, net, x):
    mapped = network(name=name, spatial_channels=2)
    for call, got in ((lambda: net(x.expand(-1, 3, -1, -1), T), "3 channels"), (lambda: mapped(x, T), "0 channels"),
                      (lambda: net(x, T, Context(spatial=x)), "1 channels"),
                      (lambda: net(x, T, Context(emb=torch.randn(B, 5))), "length 5"),
                      (lambda: net(x[..., :7], T), "16 x 7")):
        with pytest.raises(UserError) as error:
            call()
        assert got in error.value.got
        assert "model." in error.value.fix or "condition." in error.value.fix


class TestRecomputation:
    """Gradient checkpointing: less memory, and nothing else."""

    @staticmethod
    def twins(name, **changes):
        """The same random network in training, without and with recomputation."""
        plain = network(name=name, **accepted(name, cross_dim=6, dropout=0.3), **changes).requires_grad_(True).train()
        again = copy.deepcopy(plain)
        recompute(again)
        return plain, again

    @staticmethod
    def step(net, x):
        """Loss, gradients, and the bytes that the graph keeps besides the weights."""
        weights, kept = {p.untyped_storage().data_ptr() for p in net.parameters()}, {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        torch.manual_seed(0)
        leaves = [x.clone().requires_grad_(), torch.randn(B, 5, 6).requires_grad_()]
        ctx = context(tokens={"main": leaves[1]})
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = net(leaves[0], T, ctx, middle).square().mean()
        loss.backward()
        return loss, [leaf.grad for leaf in (*leaves, *net.parameters())], sum(size for size, _ in kept.values())

    def test_loss_and_gradients_are_the_same_bits(self, name, x):
        plain, again = self.twins(name)
        (loss, gradients, most), (other, others, least) = self.step(plain, x), self.step(again, x)
        assert torch.equal(loss, other)
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(gradients, others))
        assert sum(g is not None and bool(g.any()) for g in gradients) > 10
        assert least < 0.6 * most

    def test_it_stays_on_in_a_copy_and_names_stay(self, name):
        plain, again = self.twins(name)
        assert list(plain.state_dict()) == list(again.state_dict())
        twin = copy.deepcopy(again)
        units = [module.recompute for module in twin.modules() if isinstance(module, Recomputed)]
        assert units
        assert all(units)
        assert not any(module.recompute for module in plain.modules() if isinstance(module, Recomputed))

    def test_without_gradients_nothing_is_computed_twice(self, name, x, monkeypatch):
        _, again = self.twins(name)
        monkeypatch.setattr("models.blocks.checkpoint", None)
        with torch.no_grad():
            again(x, T, context())


def test_a_network_without_units_is_refused():
    with pytest.raises(UserError) as error:
        recompute(torch.nn.Linear(2, 2))
    assert error.value.fix == "trainer.gradient_checkpointing=false"


def test_the_trainer_switches_the_recomputation_on(tmp_path, monkeypatch):
    from helpers import DIGITS, train

    from models import blocks

    calls, real = [], blocks.checkpoint
    monkeypatch.setattr(blocks, "checkpoint", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    train(tmp_path, *DIGITS, "max_steps=1", "callbacks.pictures.count=0", "trainer.gradient_checkpointing=true")
    units = [m for m in small("nano").modules() if isinstance(m, Recomputed)]
    assert len(calls) == len(units)


def test_overrides_reach_the_network():
    net = models.build("tiny", base=64, multipliers=[1, 2], attention=[1], emb_dim=256, cross_dim=6)
    assert isinstance(net, UNet)
    assert (net.emb_dim, net.mid_channels) == (256, 128)
    assert any(site.kind == "cross" for site in net.sites)
