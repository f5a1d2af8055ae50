import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models
from configs.errors import UserError
from models.attention import SelfAttention
from models.context import Context
from models.unet import Block, UNet


@pytest.mark.parametrize("norm", ["group", "channel_layer"])
@pytest.mark.parametrize("patch", [1, 2])
def test_output_is_zero_at_the_start(norm, patch, t):
    net = UNet(3, 8, (1, 2), 1, (1,), patch=patch, norm=norm, cross_dim=6)
    x = torch.randn(4, 3, 16, 8)
    out = net(x, t, Context(tokens={"main": torch.randn(4, 5, 6)}))
    assert out.shape == x.shape
    assert not out.any()


@pytest.mark.parametrize("norm", ["group", "channel_layer"])
def test_output_depends_on_time_image_and_condition(make, norm, x, t):
    net = make(norm=norm, cross_dim=6, spatial_channels=2)
    ctx = Context(emb=torch.randn(4, 32), tokens={"main": torch.randn(4, 5, 6)}, spatial=torch.randn(4, 2, 8, 8))
    out = net(x, t, ctx)
    for other in (net(x + 0.1, t, ctx), net(x, t - 0.01, ctx), net(x, t, ctx.replace(emb=ctx.emb + 0.1)),
                  net(x, t, ctx.replace(emb=None)), net(x, t, ctx.replace(tokens={})),
                  net(x, t, ctx.replace(spatial=ctx.spatial + 0.1))):
        assert (out - other).abs().amax(dim=(1, 2, 3)).min() > 1e-4


def test_without_condition_is_the_empty_context(cross, x, t):
    assert torch.equal(cross(x, t), cross(x, t, Context()))


def test_self_attention_starts_without_effect():
    layers = [module for module in UNet(1, 8, (1, 2), 1, (1,)).modules() if isinstance(module, SelfAttention)]
    assert len(layers) == 4
    for layer in layers:
        h = torch.randn(2, layer.site.channels, 4, 4)
        assert torch.equal(layer(h, Context()), h)


def test_only_the_main_stream_is_attended_to(cross, x, t):
    assert torch.equal(cross(x, t, Context(tokens={"other": torch.randn(4, 5, 6)})), cross(x, t))


def test_masked_tokens_do_not_matter(cross, x, t):
    tokens, mask = torch.randn(4, 5, 6), torch.tensor([[True, True, False, False, True]]).expand(4, -1)
    changed = tokens.masked_fill(~mask[..., None], 7.0)
    full = cross(x, t, Context(tokens={"main": tokens}))
    out = cross(x, t, Context(tokens={"main": tokens}, mask={"main": mask}))
    assert torch.equal(out, cross(x, t, Context(tokens={"main": changed}, mask={"main": mask})))
    assert (out - full).abs().max() > 1e-4
    kept = cross(x, t, Context(tokens={"main": tokens[:, [0, 1, 4]]}))
    torch.testing.assert_close(out, kept, atol=1e-5, rtol=1e-5)


def test_order_of_tokens_does_not_matter(cross, x, t):
    tokens = torch.randn(4, 5, 6)
    out, turned = (cross(x, t, Context(tokens={"main": tok})) for tok in (tokens, tokens.flip(1)))
    torch.testing.assert_close(out, turned, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (16, 2), (2, 2), (36, 36)])
@pytest.mark.parametrize("norm", ["group", "channel_layer"])
def test_any_divisible_size(make, norm, size):
    x = torch.randn(1, 1, *size)
    out = make(norm=norm)(x, torch.tensor([0.5]))
    assert out.shape == x.shape
    assert out.isfinite().all()


@pytest.mark.parametrize(("size", "fix"), [((31, 31), "data.size=32"), ((1, 1), "data.size=4"),
                                           ((8, 7), "data.size=8"), ((8, 13), "images of 8 x 12")])
def test_indivisible_size_is_refused(make, size, fix):
    net = make(multipliers=(1, 1), attention=(), patch=2)
    with pytest.raises(UserError) as info:
        net(torch.randn(1, 1, *size), torch.tensor([0.5]))
    assert f"{size[0]} x {size[1]}" in info.value.got
    assert "divisible by 4" in info.value.wanted
    assert info.value.fix.startswith(fix)


@pytest.mark.parametrize(("arguments", "fix"), [
    ({"attention": (2,)}, "model.attention=[1]"), ({"attention": (-1,)}, "model.attention=[1]"),
    ({"norm": "batch"}, "model.norm=group"), ({"modulation": "add"}, "model.modulation=film"),
    ({"base": 9}, "model.base=10"),
    ({"base": 10, "head_dim": 6}, "model.head_dim=20")])
def test_arguments_that_do_not_fit_are_refused(make, arguments, fix):
    with pytest.raises(UserError) as info:
        make(**arguments)
    assert info.value.fix.startswith(fix)


def test_wrong_inputs_are_refused(make, x, t):
    net, mapped = make(), make(spatial_channels=2)
    for call in (lambda: net(x.expand(-1, 3, -1, -1), t), lambda: mapped(x, t),
                 lambda: net(x, t, Context(spatial=x)), lambda: net(x, t, Context(emb=torch.randn(4, 5)))):
        with pytest.raises(UserError):
            call()


def test_sites_are_those_that_are_called(cross, x, t):
    called = []
    cross(x, t, Context(tokens={"main": torch.randn(4, 5, 6)}), lambda call: called.append(call))
    assert [call.site for call in called] == cross.sites
    assert [site.name for site in cross.sites] == [
        "down.1.0.self", "down.1.0.cross", "mid.0.self", "mid.0.cross", "up.1.0.self", "up.1.0.cross", "up.1.1.self",
        "up.1.1.cross"]
    for call in called:
        site = call.site
        assert call.size == (8 // site.scale_factor, 8 // site.scale_factor)
        assert call.q.shape == (4, site.heads, call.size[0] * call.size[1], site.channels // site.heads)
        assert call.k.shape[2] == (5 if site.kind == "cross" else call.q.shape[2])


def test_scale_factors_count_the_patch(make, t):
    calls = []
    make(patch=2, attention=(0, 1))(torch.randn(4, 1, 8, 16), t, None, lambda call: calls.append(call))
    assert {call.site.scale_factor for call in calls} == {2, 4}
    assert all(call.size == (8 // call.site.scale_factor, 16 // call.site.scale_factor) for call in calls)


def test_decoder_blocks_are_fed_the_feature_map_then_the_skip(net, x, t):
    net = copy.deepcopy(net)
    seen = []
    block = next(step.res for step in net.decoder.steps if isinstance(step, Block))
    block.norm1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    features = net.middle(net.encode(x, t))
    net.decode(features)
    assert torch.equal(seen[0], torch.cat([features.h, features.skips[-1]], dim=1))


def test_middle_always_has_self_attention(make):
    net = make(attention=())
    assert [site.name for site in net.sites] == ["mid.0.self"]


def test_control_branch_that_adds_zero_changes_nothing(net, x, t):
    control = nn.ModuleDict({"encoder": copy.deepcopy(net.encoder), "middle": copy.deepcopy(net.middle)})
    zeros = nn.ModuleList(nn.Conv2d(c, c, 1) for c in (*net.skip_channels, net.mid_channels))
    for parameter in zeros.parameters():
        nn.init.zeros_(parameter)

    def controlled(x, t, hint):
        features = net.middle(net.encode(x, t))
        mine = control["middle"](control["encoder"](x + hint, t, Context()))
        skips = [a + layer(b) for a, b, layer in zip(features.skips, mine.skips, zeros)]
        return net.decode(replace(features, h=features.h + zeros[-1](mine.h), skips=tuple(skips)))

    hint = torch.randn_like(x)
    assert torch.equal(controlled(x, t, hint), net(x, t))
    nn.init.normal_(zeros[-1].weight)
    assert (controlled(x, t, hint) - net(x, t)).abs().max() > 1e-3


def test_bottleneck_can_be_edited(net, x, t):
    features = net.middle(net.encode(x, t))
    assert torch.equal(net.decode(replace(features, h=features.h + 0)), net(x, t))
    assert (net.decode(replace(features, h=features.h + 1)) - net(x, t)).abs().max() > 1e-3


class Wrapped(nn.Module):
    """Calls another layer, and counts."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.calls = layer, 0

    def forward(self, *args):
        self.calls += 1
        return self.layer(*args)


def test_every_layer_can_be_exchanged(cross, x, t):
    net = copy.deepcopy(cross)
    wrapped = []
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d | nn.Linear | nn.GroupNorm | nn.SiLU):
                setattr(module, name, Wrapped(child))
                wrapped.append(getattr(module, name))
    ctx = Context(tokens={"main": torch.randn(4, 5, 6)})
    assert torch.equal(net(x, t, ctx), cross(x, t, ctx))
    assert {layer.calls for layer in wrapped} == {1}
    bare = [m for m in net.modules() if list(m.parameters(recurse=False))]
    assert len(bare) == len([w for w in wrapped if list(w.layer.parameters())])


def test_gradient_with_respect_to_the_image(net, x, t):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = copy.deepcopy(net).double(), x[:1, :, :4, :4].double().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: net(x, t[:1].double()).square().sum(), x)


@pytest.mark.parametrize("norm", ["group", "channel_layer"])
def test_bf16_is_close(make, norm, x, t):
    net = make(norm=norm, cross_dim=6)
    ctx = Context(emb=torch.randn(4, 32), tokens={"main": torch.randn(4, 5, 6)})
    exact = net(x, t, ctx)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(x, t, ctx)
    assert ((out.float() - exact).norm() / exact.norm()) < 0.05


def test_bf16_can_tell_neighbouring_times_apart(net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a, b = (net.encode(x[:1], torch.tensor([time])).emb for time in (0.999, 1.0))
    assert (a - b).abs().max() > 0.01


def test_dropout_acts_in_training_alone(make, x, t):
    net = make(dropout=0.5)
    assert torch.equal(net(x, t), net(x, t))
    net.train()
    assert not torch.equal(net(x, t), net(x, t))


def run(code: str) -> None:
    """In a process of its own, without the shape checks of the tests."""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_graph_has_no_breaks():
    run("import torch; from models.unet import UNet; from models.conditioning import Context\n"
        "net = UNet(1, 8, (1, 2), 1, (1,), cross_dim=6)\n"
        "torch.nn.init.normal_(net.decoder.exit.weight)\n"
        "ctx = Context(emb=torch.randn(2, 32), tokens={'main': torch.randn(2, 3, 6)})\n"
        "x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.9])\n"
        "out = torch.compile(net, backend='eager', fullgraph=True)(x, t, ctx)\n"
        "torch.testing.assert_close(out, net(x, t, ctx))")


def test_listing_does_not_import_torch():
    run("import sys, models; models.available(); assert 'torch' not in sys.modules")


def test_presets_are_listed():
    presets = {"nano", "tiny", "small", "base", "ddpm_cifar10", "cold_paper", "dit", "classifier", "classifier_small"}
    assert presets <= set(models.available())


def test_the_network_of_ddpm_has_its_parameters_and_operations():
    """As many as google/ddpm-cifar10-32 in diffusers; 12.4 GFLOP for an image of 32 px."""
    with torch.device("meta"):
        net = models.build("ddpm_cifar10", in_channels=3)
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 32, 32), torch.empty(1))
    assert sum(p.numel() for p in net.parameters()) == 35_746_307
    assert counter.get_total_flops() == pytest.approx(12.4e9, rel=0.01)
    assert [(site.name, site.heads) for site in net.sites] == [
        *((f"down.1.{i}.self", 1) for i in range(2)), ("mid.0.self", 1), *((f"up.1.{i}.self", 1) for i in range(3))]
    norms = [module for module in net.modules() if isinstance(module, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {32}
