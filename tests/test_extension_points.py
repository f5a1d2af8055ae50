"""Methods that are not part of Thaw, each in a few lines on public names: the seams hold."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from networks import context, network, randomized
from oracles import AnalyticGaussian, Arbitrary, Constant, Perfect, state_of
from torch import nn

import degradations
import samplers
from degradations.base import Degradation, Estimate, State
from degradations.randomness import Streams
from degradations.shapes import expand_like
from diffusion.objectives.evaluator import NetworkRestorer
from diffusion.objectives.parameterization import X0, V
from models.attention import attend, chain
from models.context import Context
from samplers.base import Sampler
from samplers.grids import UniformGrid
from samplers.guidance.base import Branch, Guided, Term
from samplers.guidance.cfg import CFG
from samplers.moves import Direct, Keep, Move, Residual
from samplers.protocol import Callback

B = 3
SHAPE = (B, 1, 8, 8)
T = torch.tensor([0.2, 0.6, 1.0])


@pytest.fixture(scope="module", params=["nano", "cold_paper", "dit"])
def net(request):
    """A U-Net, another, and a transformer."""
    return network(name=request.param)


@pytest.fixture(scope="module")
def gaussian():
    return degradations.build("gaussian", schedule="linear")


@pytest.fixture
def x():
    return normal(*SHAPE)


def normal(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(restorer, degradation, x, ctx=None, name="ddim", steps=4, **arguments):
    sampler = samplers.build(name, num_steps=steps) if isinstance(name, str) else name
    state = state_of(degradation, x.shape)
    streams = Streams(0, tuple(range(len(x))))
    return sampler.sample(restorer, degradation, x, state, ctx or Context(), streams, **arguments)


# Attention hooks


def test_perturbed_attention_guidance(net, gaussian, x):
    """A linear term of one branch; where it is far from the base, the guided estimate lies beyond the base."""

    class PAG(Term):
        def branches(self, view):
            return [Branch(view.ctx, lambda call: call.v if call.site.name.startswith("mid") else None)]

        def delta(self, base, outs, view):
            return 3.0 * (base - outs[0])

    restorer, ctx = NetworkRestorer(net, gaussian, V()), context([1, 2, 3])
    state = state_of(gaussian, SHAPE)
    base, off = (restorer(x, T, ctx, state=state, step=None, attn=hook)
                 for hook in (None, lambda call: call.v if call.site.name.startswith("mid") else None))
    guided = Guided(restorer, gaussian, [PAG()])(x, T, ctx, state=state, step=None)
    torch.testing.assert_close(guided.x0, base.x0 + 3 * (base.x0 - off.x0), atol=1e-4, rtol=1e-4)
    assert run(Guided(restorer, gaussian, [PAG(), CFG(2.0)]), gaussian, x, ctx).isfinite().all()


class IPAdapter(nn.Module):
    """Attention to a second token stream by own, zero-initialized projections for each site."""

    def __init__(self, net, token_dim):
        super().__init__()
        self.kv = nn.ModuleDict({site.name.replace(".", "_"): nn.Linear(token_dim, 2 * site.channels)
                                 for site in net.sites if site.kind == "self"})
        for layer in self.kv.values():
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def __call__(self, call):
        tokens = call.ctx.tokens["image"]
        kv = self.kv[call.site.name.replace(".", "_")](tokens)
        k, v = kv.unflatten(2, (2, call.site.heads, -1)).permute(2, 0, 3, 1, 4)
        return call.rest() + attend(call.q, k, v)


def test_image_prompt_adapter(net, x):
    adapter, ctx = IPAdapter(net, 5), Context(tokens={"image": normal(B, 4, 5)})
    assert torch.equal(net(x, T, ctx, adapter), net(x, T, ctx))
    randomized(adapter).requires_grad_(True)
    net(x, T, ctx, adapter).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in adapter.parameters() if p.ndim == 2)
    assert all(p.grad is None for p in net.parameters())


def test_prompt_to_prompt_rows_see_each_other(net, gaussian, x):
    """Every row mixes its own values with the attention weights of row 0."""

    class Shared:
        def __init__(self, restorer):
            self.restorer = restorer

        def __call__(self, x_t, t, ctx, *, state, step, attn=None):
            return self.restorer(x_t, t, ctx, state=state, step=step, attn=chain(self.share, attn))

        @staticmethod
        def share(call):
            return replace(call, q=call.q[:1].expand_as(call.q), k=call.k[:1].expand_as(call.k)).rest()

    sharp = copy.deepcopy(net)
    for name, parameter in sharp.named_parameters():
        if "qkv.weight" in name:
            parameter *= 5
    restorer, ctx = NetworkRestorer(sharp, gaussian, V()), context([1, 2, 3])
    plain, shared = run(restorer, gaussian, x, ctx), run(Shared(restorer), gaussian, x, ctx)
    torch.testing.assert_close(shared[0], plain[0], atol=1e-5, rtol=1e-5)
    assert (shared[1:] - plain[1:]).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    twins, ctx = x[:1].expand(SHAPE), context([1, 1, 1])
    torch.testing.assert_close(run(Shared(restorer), gaussian, twins, ctx), run(restorer, gaussian, twins, ctx),
                               atol=1e-5, rtol=1e-5)


# The three parts of the network


class Controlled(nn.Module):
    """ControlNet: a trainable copy of encoder and middle sees a hint and adds to the features through zero layers."""

    def __init__(self, base):
        super().__init__()
        self.base, self.encoder, self.middle = base, copy.deepcopy(base.encoder), copy.deepcopy(base.middle)
        self.zeros = nn.ModuleList(nn.Conv2d(c, c, 1) for c in (*base.skip_channels, base.mid_channels))
        for layer in self.zeros:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x, t, ctx=None, attn=None):
        features = self.base.middle(self.base.encode(x, t, ctx, attn), attn)
        seen = self.middle(self.encoder(x + ctx.extra["hint"], t, ctx))
        *skips, h = (zero(f) for zero, f in zip(self.zeros, (*seen.skips, seen.h)))
        added = tuple(a + b for a, b in zip(features.skips, skips))
        return self.base.decode(replace(features, h=features.h + h, skips=added), attn)


def test_control_net(net, gaussian, x):
    def hinted(value):
        ctx = context([1, 2, 3])
        extra = {"hint": torch.full(SHAPE, value)}
        return ctx.replace(extra=extra, null=ctx.null.replace(extra=extra))

    controlled = Controlled(net)
    assert torch.equal(controlled(x, T, hinted(0.5)), net(x, T, hinted(0.5)))
    randomized(controlled.zeros)
    assert not torch.equal(controlled(x, T, hinted(0.5)), controlled(x, T, hinted(-0.5)))
    a, b = (run(Guided(NetworkRestorer(controlled, gaussian, V()), gaussian, [CFG(2.0)]), gaussian, x, hinted(v))
            for v in (0.5, -0.5))
    assert (a - b).abs().max() > 1e-3


def test_asyrp_image_and_state_from_two_decodes(net, gaussian, x):
    """The move takes both as they are: ``x_s = D(x0, s, z)``, though D(x0, t, z) is no longer x_t."""

    def asyrp(x_t, t, ctx, *, state, step, attn=None):
        features = net.middle(net.encode(x_t, t, ctx, attn), attn)
        plain = V().x0(net.decode(features, attn), x_t, t, gaussian)
        moved = features.h + normal(*features.h.shape, seed=9)
        edited = V().x0(net.decode(replace(features, h=moved), attn), x_t, t, gaussian)
        return Estimate(edited, gaussian.infer(x_t, plain, t, state))

    frames = samplers.build("ddim", num_steps=3).steps(asyrp, gaussian, x, state_of(gaussian, SHAPE), Context(),
                                                       Streams(0, (0, 1, 2)))
    for frame in frames:
        estimate, (t, s) = frame.estimate, (torch.full((B,), u) for u in (frame.step.t, frame.step.s))
        assert torch.equal(frame.x_s, gaussian.forward(estimate.x0, s, estimate.state))
        assert (gaussian.forward(estimate.x0, t, estimate.state) - frame.x_t).abs().max() > 1e-4


def test_features_are_reused_and_the_frozen_partner_stays(net, x):
    features = net.middle(net.encode(x, T))
    first, second = net.decode(features), net.decode(features)
    assert torch.equal(first, second)
    assert torch.equal(first, net(x, T))
    student = copy.deepcopy(net).requires_grad_(True)
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    loss = (student(x, T) - 2 * first.detach()).square().mean()
    loss.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not torch.equal(student(x, T), first)


def test_a_classifier_on_the_bottleneck_has_a_gradient(net, x):
    leaf = x.clone().requires_grad_()
    pooled = net.middle(net.encode(leaf, T)).h.mean(dim=(2, 3))
    (gradient,) = torch.autograd.grad(pooled.sum(), leaf)
    assert gradient.flatten(1).abs().sum(1).min() > 0


def test_layers_can_be_exchanged(net, x):
    """Quantisation: every convolution and linear layer goes through a wrapper that was put in its place."""

    class Rounded(nn.Module):
        def __init__(self, layer, bits):
            super().__init__()
            self.layer = copy.deepcopy(layer)
            scale = layer.weight.abs().max() / 2 ** (bits - 1)
            self.layer.weight.data = (layer.weight / scale).round() * scale

        def forward(self, *args):
            return self.layer(*args)

    def quantised(bits):
        changed = copy.deepcopy(net)
        for name, module in list(changed.named_modules()):
            if isinstance(module, nn.Conv2d | nn.Linear):
                parent, _, key = name.rpartition(".")
                setattr(changed.get_submodule(parent), key, Rounded(module, bits))
        return changed

    errors = [(quantised(bits)(x, T) - net(x, T)).abs().max().item() for bits in (4, 8, 22)]
    assert errors[0] > 4 * errors[1] > 40 * errors[2]


# Callbacks


def test_inpainting_puts_the_known_pixels_back(gaussian, x):
    known, mask = normal(*SHAPE, seed=8).tanh(), torch.zeros(SHAPE)
    mask[..., :4] = 1

    class Inpaint(Callback):
        def after(self, frame):
            s = frame.x_s.new_full((B,), frame.step.s)
            frame.x_s = mask * gaussian.forward(known, s, frame.state) + (1 - mask) * frame.x_s

    got = run(Arbitrary(gaussian), gaussian, x, callbacks=[Inpaint()])
    assert torch.equal(got[..., :4], known[..., :4])
    assert torch.equal(got[..., 4:], run(Arbitrary(gaussian), gaussian, x)[..., 4:])


def test_sdedit_starts_in_the_middle(gaussian):
    """From D(x0, 0.4): times below 0.4 alone, and a perfect restorer comes back to the image."""
    x0, state = normal(*SHAPE, seed=8).tanh(), state_of(gaussian, SHAPE)
    x = gaussian.forward(x0, torch.full((B,), 0.4), state)
    frames = list(samplers.build("ddim", num_steps=8).steps(Perfect(x0, gaussian), gaussian, x, state, Context(),
                                                            Streams(0, (0, 1, 2)), start=0.4))
    assert frames[0].step.t == 0.4
    torch.testing.assert_close(frames[-1].x_s, x0, atol=1e-5, rtol=0)


def test_psld_gradient_of_a_loss_on_the_estimate(gaussian, x):
    """The gradient is that of the closed form, and following it brings the sample to the measurement."""
    oracle, measured = AnalyticGaussian(0.0, 0.25, gaussian), torch.full(SHAPE, 0.8)

    class Guide(Callback):
        needs_grad = True

        def after(self, frame):
            assert frame.x_t.is_leaf
            residual = frame.estimate.x0 - measured
            (gradient,) = torch.autograd.grad(residual.square().sum(), frame.x_t)
            alpha, sigma = gaussian.coefficients(frame.x_t.new_full((B,), frame.step.t), frame.x_t)
            slope = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
            torch.testing.assert_close(gradient, 2 * residual.detach() * slope, atol=1e-5, rtol=1e-4)
            frame.x_s = frame.x_s - 0.2 * gradient

    free, led = run(oracle, gaussian, x, steps=20), run(oracle, gaussian, x, steps=20, callbacks=[Guide()])
    assert not led.requires_grad
    assert (led - measured).abs().mean() < 0.3 * (free - measured).abs().mean()


def test_a_run_with_gradients_keeps_one_steps_graph_alone(gaussian, x):
    """Neither the image nor the state of the next step remembers this one; ``before`` may replace the leaf."""
    seen = []

    class Both(Callback):
        needs_grad = True

        def before(self, frame):
            seen.append(any(frame.state[name].requires_grad for name in frame.state) or frame.x_t.requires_grad)
            frame.x_t = 0.5 * frame.x_t

        def after(self, frame):
            torch.autograd.grad(frame.estimate.x0.sum(), frame.x_t)

    with torch.no_grad():
        run(Arbitrary(gaussian), gaussian, x, callbacks=[Both()])
    assert seen == [False] * 4


def test_delayed_conditioning(net, gaussian, x):
    """FastComposer: the condition is exchanged after half of the steps."""
    late = context([9, 9, 9])

    class Delay(Callback):
        def before(self, frame):
            frame.ctx = frame.ctx if frame.step.i < 2 else late

    restorer = NetworkRestorer(net, gaussian, V())
    early = context([1, 1, 1])
    results = [run(restorer, gaussian, x, early), run(restorer, gaussian, x, late),
               run(restorer, gaussian, x, early, callbacks=[Delay()])]
    assert not torch.equal(results[2], results[0])
    assert not torch.equal(results[2], results[1])


# Steps outside the loop


def test_ddim_inversion_comes_back(gaussian):
    """Up by hand (s > t) with the estimate at t, down with the sampler's: the error halves as the steps double."""
    oracle, x0 = AnalyticGaussian(0.2, 0.3, gaussian), normal(*SHAPE, seed=8).tanh()

    def walk(x, times):
        for t, s in itertools.pairwise(times):
            here, there = (torch.full((B,), u) for u in (t, s))
            estimate = oracle(x, here, Context(), state=State(z=torch.zeros_like(x)), step=None)
            x = gaussian.forward(estimate.x0, there, gaussian.infer(x, estimate.x0, here, estimate.state))
        return x

    start, errors = gaussian.forward(x0, torch.full((B,), 0.02), state_of(gaussian, SHAPE)), []
    for n in (20, 40, 80):
        up = [0.02 + 0.6 * i / n for i in range(n + 1)]
        errors.append((walk(walk(start, up), up[::-1]) - start).abs().max().item())
    assert 1.7 < errors[0] / errors[1] < 2.3
    assert 1.7 < errors[1] / errors[2] < 2.3


@pytest.mark.parametrize(("name", "degradation"), [("ddim", "gaussian"), ("cold2", "blur")])
def test_two_half_steps_are_a_whole_one(name, degradation, x):
    """With the estimate held fixed, at every common time: what progressive distillation rests on."""
    d = degradations.build(degradation)
    answer, grid = normal(1, 1, 8, 8, seed=8), samplers.build(name).grid
    paths = []
    for n in (5, 10):
        sampler = samplers.build(name, num_steps=n, grid=grid)
        frames = sampler.steps(Constant(answer, d), d, x, state_of(d, SHAPE), Context(), Streams(0, (0, 1, 2)))
        paths.append({round(frame.step.s, 6): frame.x_s for frame in frames})
    common = paths[0].keys() & paths[1].keys()
    assert len(common) == 5
    for s in common:
        torch.testing.assert_close(paths[0][s], paths[1][s], atol=1e-5, rtol=1e-5)


def test_distillation_target_reproduces_two_steps(gaussian, x):
    """Salimans and Ho 2022, appendix G: the x0 for which one step t -> u lands where two steps did."""
    oracle = AnalyticGaussian(0.3, 0.2, gaussian)
    t, s, u = (torch.full((B,), value) for value in (0.8, 0.6, 0.4))
    state, two = State(z=torch.zeros(SHAPE)), x
    for here, there in ((t, s), (s, u)):
        estimate = oracle(two, here, Context(), state=state, step=None)
        two = Direct()(two, estimate.x0, here, there, estimate.state, gaussian)
    (a_t, s_t), (a_u, s_u) = (gaussian.coefficients(time, x) for time in (t, u))
    target = (two - s_u / s_t * x) / (a_u - s_u / s_t * a_t)
    one = Direct()(x, target, t, u, gaussian.infer(x, target, t, state), gaussian)
    torch.testing.assert_close(one, two, atol=2e-6, rtol=0)


# Other ranks


class MLP(nn.Module):
    """Obeys the network protocol for any rank: acts on the last axis."""

    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(width + 1, 16), nn.Linear(16, width)

    def forward(self, x, t, ctx=None, attn=None):
        time = expand_like(t, x).expand(*x.shape[:-1], 1)
        return self.b(torch.tanh(self.a(torch.cat([x, time], dim=-1))))


@pytest.mark.parametrize("shape", [(3, 6), (3, 4, 6)], ids=["embeddings", "trajectories"])
class TestOtherRanks:
    def test_a_network_of_vectors_is_sampled(self, gaussian, shape):
        restorer = Guided(NetworkRestorer(randomized(MLP(6)), gaussian, V()), gaussian, [])
        x = normal(*shape)
        for name in ("ddim", "ddpm", "cold2"):
            whole = run(restorer, gaussian, x, name=name)
            assert whole.shape == shape
            torch.testing.assert_close(run(restorer, gaussian, x[:1], name=name), whole[:1], atol=1e-5, rtol=1e-5)

    def test_the_exact_network_follows_the_flow(self, gaussian, shape):
        oracle, x = AnalyticGaussian(0.4, 0.25, gaussian), normal(*shape)

        def exact(x, t, ctx=None, attn=None):
            return oracle(x, t, ctx, state=State(z=x), step=None).x0

        got = run(NetworkRestorer(exact, gaussian, X0()), gaussian, x, steps=200)
        expected = oracle.flow(x, torch.ones(len(x)), torch.zeros(len(x)))
        torch.testing.assert_close(got, expected, atol=0.02, rtol=0)


# Someone's own parts


class Dim(Degradation):
    """The light goes out, pixel by pixel at a speed of its own."""

    levels = 10

    def draw(self, shape, rng):
        return State(speed=rng.uniform("speed", shape))

    def degrade(self, x0, t, state):
        return x0 * (1 - expand_like(t, x0) * (0.5 + 0.5 * state["speed"]))


class Midway(Move):
    """Half of what Algorithm 1 does, half of Algorithm 2."""

    def __call__(self, x_t, x0_hat, t, s, state, degradation, step=None):
        moves = [move(x_t, x0_hat, t, s, state, degradation) for move in (Direct(), Residual())]
        return (moves[0] + moves[1]) / 2


class Half(Sampler):
    def __init__(self, num_steps=None):
        super().__init__(UniformGrid(), Keep(), Midway(), num_steps)


class Towards(Term):
    """Pulls the estimate towards a grey value, without any evaluation."""

    def __init__(self, grey, weight):
        self.grey, self.weight = grey, weight

    def delta(self, base, outs, view):
        return Estimate(self.weight * (self.grey - base.x0), 0 * base.state)


@pytest.mark.parametrize("sampler", ["cold1", "cold2", Half(5)], ids=["cold1", "cold2", "own"])
def test_own_degradation_with_every_sampler(sampler):
    d, x0 = Dim(), normal(*SHAPE, seed=8).tanh()
    state = state_of(d, SHAPE)
    x = d.forward(x0, torch.ones(B), state)
    torch.testing.assert_close(run(Perfect(x0, d), d, x, name=sampler, steps=None), x0, atol=1e-5, rtol=0)


@pytest.mark.parametrize("degradation", ["gaussian", "blur", "dim"])
def test_own_sampler_and_own_guidance_with_every_degradation(degradation, x):
    """Between the two algorithms; pulled all the way, Algorithm 1 ends on the grey value."""
    d = Dim() if degradation == "dim" else degradations.build(degradation)
    ends = [run(Arbitrary(d), d, x, name=name, steps=1) for name in ("cold1", "cold2")]
    torch.testing.assert_close(run(Arbitrary(d), d, x, name=Half(1)), (ends[0] + ends[1]) / 2, atol=1e-5, rtol=1e-5)
    pulled = run(Guided(Arbitrary(d), d, [Towards(0.5, 1.0)]), d, x, name="cold1", steps=5)
    torch.testing.assert_close(pulled, torch.full(SHAPE, 0.5), atol=1e-5, rtol=0)
