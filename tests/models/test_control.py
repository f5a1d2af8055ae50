"""Control branches: equal to the base at first and at scale 0, gradients in their order, and what is refused."""

import pytest
import torch
from networks import SMALL, randomized
from torch import nn

from configs import UserError
from degradations.inpaint import Inpaint
from degradations.randomness import Streams
from diffusion.begin import copy_module
from models.attention import attend
from models.conditioning import ConditionEncoder, LabelSignal
from models.context import Context
from models.control import ControlledNet, HintEncoder, HintSignal, Widened
from models.convnext import ConvNextUNet
from models.decoupled import DecoupledNet
from models.dit import DiT
from models.sources import Boxes, Degraded, Edges, Given
from models.text import TextSignal, list_words
from models.unet import UNet
from samplers.guidance.control import ControlStrength
from samplers.protocol import Step

WORDS = list_words(["a", "red", "seven"])


def make_base(kind="UNet", **changes):
    classes = {"UNet": UNet, "DiT": DiT, "ConvNextUNet": ConvNextUNet}
    own = {"UNet": {"multipliers": [1, 2], "blocks": 1, "attention": [1], "cross_dim": 16}}.get(kind, {})
    return randomized(classes[kind](in_channels=1, **{**SMALL[kind], **own, **changes}))


def make(kind="UNet", **changes):
    """A base, and a controlled network that has begun with it."""
    base = make_base(kind, **changes)
    torch.manual_seed(0)
    net = ControlledNet(make_base(kind, **changes), HintEncoder(1, (4, 6)))
    state = {f"net.{name}": value for name, value in base.state_dict().items()}
    home = nn.ModuleDict({"net": net})
    with torch.no_grad():
        for source, target in (("net", "net.base"), ("net.encoder", "net.encoder"), ("net.middle", "net.middle")):
            copy_module(home, state, source, target, "begin")
    return base, net


def inputs(n=3, seed=0, side=8):
    rng = torch.Generator().manual_seed(seed)
    x, hint, t, emb = (torch.randn(shape, generator=rng)
                       for shape in ((n, 1, side, side), (n, 1, side, side), (n,), (n, 32)))
    tokens = torch.randn(n, 5, 16, generator=rng)
    return x, t.sigmoid(), Context(emb=emb, tokens={"main": tokens}, extra={"hint": hint})


def learn(net, steps, lr=0.05):
    """Steps towards a target, with the base frozen."""
    net.requires_grad_(True)
    net.base.requires_grad_(False)
    net.train()
    x, t, ctx = inputs()
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x, t, ctx) - ctx.extra["hint"]).square().mean().backward()
        optimizer.step()
    return net


@pytest.mark.parametrize(("kind", "changes"), [("UNet", {}), ("UNet", {"patch": 2}), ("DiT", {}),
                                               ("UNet", {"dropout": 0.5})])
def test_at_first_the_answer_is_the_bases_whatever_the_hint(kind, changes):
    base, net = make(kind, **changes)
    net.base.requires_grad_(False)
    net.train()
    for seed in (0, 1):
        x, t, ctx = inputs(seed=seed)
        assert torch.equal(net(x, t, ctx), base(x, t, ctx))
    copied, trained = net.encoder.state_dict(), base.encoder.state_dict()
    for name, value in trained.items():
        wide = copied[name]
        assert torch.equal(wide[:, :value.shape[1]] if wide.dim() > 1 else wide, value)
        assert wide.shape == value.shape or not wide[:, value.shape[1]:].any()


def test_gradients_reach_the_zero_layers_then_the_copy_then_the_hint():
    _, net = make()

    def moving(part):
        return any(p.grad is not None and p.grad.abs().max() > 0 for p in part)

    entry = net.encoder.entry.weight
    seen = []
    for _ in range(3):
        learn(net, 1)
        seen.append((moving(net.zeros.parameters()), moving(net.middle.parameters()), moving([entry]),
                     moving(net.hint.parameters()), moving(net.base.parameters())))
    assert seen == [(True, False, False, False, False), (True, True, True, False, False),
                    (True, True, True, True, False)]


def test_the_base_stays_and_scale_zero_is_the_base_for_ever():
    base, net = make()
    before = {name: value.clone() for name, value in net.base.state_dict().items()}
    learn(net, 5).eval()
    x, t, ctx = inputs()
    assert all(torch.equal(value, before[name]) for name, value in net.base.state_dict().items())
    assert not torch.equal(net(x, t, ctx), base(x, t, ctx))
    off = ControlStrength(scale=0)(ctx, None)
    assert torch.equal(net(x, t, off), base(x, t, ctx))
    assert torch.equal(net(x, t, ControlStrength(scale=1)(ctx, None)), net(x, t, ctx))


def test_strength_by_depth_by_time_and_in_the_null():
    _, net = make()
    learn(net, 5).eval()
    x, t, ctx = inputs()
    told = ctx.replace(null=ctx, nulls={"a": ctx})
    found = ControlStrength(scale=0.5, decay=0.8)(told, None)
    seen = {}
    for place, layer in enumerate(net.zeros):
        layer.register_forward_hook(lambda module, args, out, place=place: seen.__setitem__(place, out))
    features = net.base.middle(net.base.encode(x, t, ctx))
    made = net.add_control(features, x, t, found)
    n = len(net.zeros) - 1
    for place in range(n):
        assert torch.allclose(made.skips[place], features.skips[place] + 0.5 * 0.8**(n - place) * seen[place])
    assert torch.allclose(made.h, features.h + 0.5 * seen[n])
    assert torch.equal(found.null.extra["control"], found.extra["control"])
    guess = ControlStrength(scale=0.5, guess=True)(told, None)
    assert guess.extra["control"][:, 0].tolist() == [0.5, 0.5, 0.5]
    assert guess.null.extra["control"][:, 0].tolist() == guess.nulls["a"].extra["control"][:, 0].tolist() == [0, 0, 0]
    late = ControlStrength(begin=0.7, end=0.3)
    for time, scale in ((0.9, 0), (0.7, 1), (0.5, 1), (0.2, 0)):
        step = Step(0, 1, time, 0.0, Streams(0, (0, 1, 2)))
        assert late(ctx, step).extra["control"][0, 0] == scale


def test_a_hook_sees_the_base_alone():
    _, net = make()
    x, t, ctx = inputs()
    calls = []
    net(x, t, ctx, lambda call: calls.append(call.site.name))
    assert calls == [site.name for site in net.sites]


def test_the_null_keeps_the_hint():
    encoder = ConditionEncoder({"label": LabelSignal(3, 32), "hint": HintSignal(1, 8, 32)}, 32)
    hint = torch.randn(2, 1, 8, 8)
    ctx = encoder.with_null({"label": torch.tensor([0, 1]), "hint": hint})
    assert torch.equal(ctx.null.extra["hint"], hint)
    assert torch.equal(ctx.extra["hint"], hint)
    pixels = (127.5 * (hint.clamp(-1, 1) + 1)).round().to(torch.uint8)
    assert torch.allclose(encoder.signals["hint"](pixels).extra["hint"], hint.clamp(-1, 1), atol=0.01)
    with pytest.raises(UserError, match="hint"):
        encoder({"label": torch.tensor([0, 1])})


def test_what_does_not_fit():
    _, net = make()
    x, t, ctx = inputs()
    wrong = {"two": Context(emb=ctx.emb, tokens=ctx.tokens, extra={"hint": torch.zeros(3, 2, 8, 8)}),
             "size": Context(emb=ctx.emb, tokens=ctx.tokens, extra={"hint": torch.zeros(3, 1, 16, 16)}),
             "none": Context(emb=ctx.emb, tokens=ctx.tokens)}
    for one in wrong.values():
        with pytest.raises(UserError):
            net(x, t, one)
    with pytest.raises(UserError, match="entry"):
        ControlledNet(make_base("ConvNextUNet"), HintEncoder(1))
    with pytest.raises(UserError, match="channels"):
        ControlledNet(make_base(), HintEncoder(1), in_channels=3)
    with pytest.raises(UserError, match="strides"):
        HintEncoder(1, (4, 4), (1,))
    for bad in ({"decay": 0.0}, {"begin": 0.2, "end": 0.4}):
        with pytest.raises(UserError):
            ControlStrength(**bad)
    with pytest.raises(UserError, match="hint"):
        ControlStrength()(Context(), None)


def test_a_hint_in_pixels_reaches_latents_of_half_the_side():
    net = ControlledNet(make_base(), HintEncoder(1, (4, 6), (2, 1)))
    x, t, ctx = inputs()
    big = ctx.replace(extra={"hint": torch.randn(3, 1, 16, 16)})
    assert net(x, t, big).shape == x.shape


def test_a_widened_convolution_reads_its_first_maps_as_before():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    wide, x = Widened(conv, 2), torch.randn(2, 3, 8, 8)
    assert torch.allclose(wide(torch.cat([x, torch.randn(2, 2, 8, 8)], 1)), conv(x), atol=1e-6)


def make_decoupled():
    torch.manual_seed(0)
    signal = TextSignal(WORDS, 5, 32, 12, 1, 4, stream="image")
    return DecoupledNet(make_base(), 12), signal


def test_a_stream_of_its_own_leaves_a_trained_model_as_it_is():
    """A text signal that is added to a trained model, read by a network around it with a value projection of zero."""
    base = make_base()
    net, signal = make_decoupled()
    encoder = ConditionEncoder({"text": TextSignal(WORDS, 5, 32, 16, 1)}, 32)
    raw = encoder.signals["text"].read(["a red seven", "a"])
    before = encoder({"text": raw})
    encoder.add_signal("other", signal)
    ctx = encoder({"text": raw, "other": signal.read(["seven", "red"])})
    x, t, _ = inputs(2)
    assert torch.equal(net(x, t, ctx), base(x, t, before))
    with torch.no_grad():
        for layer in net.values:
            layer.weight.normal_()
    assert not torch.allclose(net(x, t, ctx), base(x, t, before))
    assert torch.equal(net(x, t, before), base(x, t, before))


def test_the_stream_is_attended_with_the_same_queries():
    net, signal = make_decoupled()
    for layer in net.values:
        nn.init.normal_(layer.weight)
    ctx = signal(signal.read(["a red", "seven"])).replace(emb=torch.zeros(2, 32))
    ctx = ctx.replace(tokens={**ctx.tokens, "main": torch.randn(2, 4, 16)})
    answers = []

    def watch(call):
        answers.append((call, call.rest()))
        return

    x, t, _ = inputs(2)
    net(x, t, ctx, watch)
    cross = [(call, out) for call, out in answers if call.site.kind == "cross"]
    assert len(cross) == len(net.keys)
    for place, (call, out) in enumerate(cross):
        tokens = ctx.tokens["image"]
        k, v = ((tokens @ layers[place].weight.T).unflatten(2, (call.site.heads, -1)).transpose(1, 2)
                for layers in (net.keys, net.values))
        own = attend(call.q, call.k, call.v, call.mask) + attend(call.q, k, v, ctx.mask["image"][:, None, None])
        assert torch.allclose(out, own, atol=1e-5)
    with pytest.raises(UserError, match="cross-attention"):
        DecoupledNet(make_base(cross_dim=None), 12)


def test_sources_of_hints():
    images, rng = torch.rand(3, 3, 8, 8) * 2 - 1, Streams(0, (0, 1, 2))
    box = torch.tensor([[[1, 2, 3, 4]], [[0, 0, 8, 8]], [[5, 5, 2, 2]]])
    drawn = Boxes()(images, {"box": box}, rng)
    assert drawn[0, 0, 1:4, 2:6].eq(1).all()
    assert (drawn == 1).sum((1, 2, 3)).tolist() == [12, 64, 4]
    assert torch.equal(Given("mask")(images, {"mask": images}, rng), images)
    assert Edges()(images.new_zeros(1, 3, 8, 8), {}, rng).eq(-1).all()
    degraded = Degraded(Inpaint(), 1.0)(images, {}, rng)
    assert degraded.shape == images.shape
    assert not torch.equal(degraded, images)
    for wrong in (lambda: Edges(1.0), lambda: Degraded(Inpaint(), 0.0)):
        with pytest.raises(UserError):
            wrong()
