"""Guidance: what it costs, what it adds, and what it leaves alone."""

from dataclasses import dataclass

import pytest
import torch
from guided import Spy
from networks import context, network
from oracles import AnalyticGaussian, state_of
from torch import Tensor

import degradations
import samplers
import samplers.guidance
from configs import UserError
from degradations.affine import Affine
from degradations.base import Degradation, Estimate
from degradations.randomness import Streams
from degradations.shapes import expand_like
from diffusion.objectives.evaluator import NetworkRestorer
from diffusion.objectives.parameterization import X0, Eps, V
from models.context import Context
from samplers.guidance import base as guidance
from samplers.guidance.base import Branch, ConditionTransform, EstimateTransform, Guided, Term
from samplers.guidance.cfg import CFG
from samplers.guidance.clip import Clip
from samplers.guidance.pag import PAG

B = 3
SHAPE = (B, 1, 8, 8)
T = torch.tensor([0.3, 0.6, 1.0])


@pytest.fixture
def x():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def gaussian():
    return degradations.build("gaussian", schedule="linear")


@pytest.fixture(scope="module")
def restorer(gaussian):
    return NetworkRestorer(network(), gaussian, V())


@pytest.fixture
def ctx():
    return context([1, 4, 9])


def call(restorer, x, ctx, degradation, t=T, **arguments):
    return restorer(x, t, ctx, state=state_of(degradation, x.shape), step=None, **arguments)


def close(a: Estimate, b: Estimate, atol: float = 1e-5):
    torch.testing.assert_close(a.x0, b.x0, atol=atol, rtol=1e-4)
    assert set(a.state) == set(b.state)
    for name in a.state:
        torch.testing.assert_close(a.state[name], b.state[name], atol=atol, rtol=1e-4)


def equal(a: Estimate, b: Estimate):
    assert torch.equal(a.x0, b.x0)
    assert all(torch.equal(a.state[name], b.state[name]) for name in a.state)


@dataclass
class Gaussians:
    """The posterior mean for data ``N(mu, nu I)`` with mu the row's condition."""

    nu: float
    degradation: Affine

    def __call__(self, x_t, t, ctx, *, state, step, attn=None):
        restorer = AnalyticGaussian(expand_like(ctx.emb[:, 0], x_t), self.nu, self.degradation)
        return restorer(x_t, t, ctx, state=state, step=step)


@dataclass
class Flat:
    """Answers with an image of one colour, the row's condition."""

    degradation: Degradation

    def __call__(self, x_t, t, ctx, *, state, step, attn=None):
        return Estimate(expand_like(ctx.emb[:, 0], x_t).expand_as(x_t), state)


def means(given: float, null: float, n: int = B) -> Context:
    return Context(emb=torch.full((n, 1), given), null=Context(emb=torch.full((n, 1), null)))


class TestCost:
    def test_scale_one_is_the_base_bit_for_bit_in_one_evaluation(self, x, ctx, gaussian, restorer):
        spy = Spy(restorer)
        equal(call(Guided(spy, gaussian, [CFG(1.0)]), x, ctx, gaussian), call(restorer, x, ctx, gaussian))
        assert spy.rows == [B]

    def test_any_other_scale_costs_one_more_row_per_sample(self, x, ctx, gaussian, restorer):
        spy = Spy(restorer)
        call(Guided(spy, gaussian, [CFG(2.0)]), x, ctx, gaussian)
        assert spy.rows == [2 * B]

    def test_a_large_batch_is_split_into_branches(self, ctx, gaussian, restorer, monkeypatch, x):
        monkeypatch.setattr(guidance, "ROWS", {"cpu": 2 * B})
        spy = Spy(restorer)
        call(Guided(spy, gaussian, [CFG(2.0), PAG(1.0)]), x, ctx, gaussian)
        assert spy.rows == [2 * B, B]

    def test_neutral_terms_declare_nothing(self, x, ctx, gaussian, restorer):
        spy = Spy(restorer)
        equal(call(Guided(spy, gaussian, [CFG(1.0), PAG(0.0)]), x, ctx, gaussian), call(restorer, x, ctx, gaussian))
        assert spy.rows == [B]


class TestAlgebra:
    def test_scale_zero_is_unconditional(self, x, ctx, gaussian, restorer):
        close(call(Guided(restorer, gaussian, [CFG(0.0)]), x, ctx, gaussian),
              call(restorer, x, ctx.null, gaussian))

    def test_two_terms_add_up(self, x, ctx, gaussian, restorer):
        base = call(restorer, x, ctx, gaussian)
        deltas = [call(Guided(restorer, gaussian, [term]), x, ctx, gaussian) - base for term in (CFG(2.0), CFG(-0.5))]
        close(call(Guided(restorer, gaussian, [CFG(2.0), CFG(-0.5)]), x, ctx, gaussian), base + deltas[0] + deltas[1])

    def test_kinds_of_terms_add_up(self, x, ctx, gaussian, restorer):
        base = call(restorer, x, ctx, gaussian)
        deltas = [call(Guided(restorer, gaussian, [term]), x, ctx, gaussian) - base for term in (CFG(3.0), PAG(2.0))]
        close(call(Guided(restorer, gaussian, [PAG(2.0), CFG(3.0)]), x, ctx, gaussian), base + deltas[0] + deltas[1])

    @pytest.mark.parametrize("scale", [0.0, 3.0, -2.0])
    def test_nothing_to_guide_along_is_unguided(self, x, ctx, gaussian, restorer, scale):
        """The null is the condition itself; PAG without layers."""
        same = ctx.replace(null=ctx.replace(null=None))
        base = call(restorer, x, ctx, gaussian)
        close(call(Guided(restorer, gaussian, [CFG(scale)]), x, same, gaussian), base)
        close(call(Guided(restorer, gaussian, [PAG(scale, sites=())]), x, ctx, gaussian), base)

    @pytest.mark.parametrize("parameterization", [X0(), Eps(), V()], ids=["x0", "eps", "v"])
    def test_guiding_the_estimate_is_guiding_the_networks_output(self, x, ctx, gaussian, parameterization):
        net, w = network(), 2.5

        def guided_net(x, t, ctx=None, attn=None):
            null = net(x, t, ctx.null)
            return null + w * (net(x, t, ctx) - null)

        t = torch.tensor([0.1, 0.3, 0.5])
        outside = Guided(NetworkRestorer(net, gaussian, parameterization), gaussian, [CFG(w)])
        close(call(outside, x, ctx, gaussian, t),
              call(NetworkRestorer(guided_net, gaussian, parameterization), x, ctx, gaussian, t), atol=5e-5)

    @pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
    def test_two_gaussians_are_one_with_another_mean(self, x, gaussian, w):
        """Means mu_c and mu_u, equal variance: guidance is the posterior mean at ``mu_u + w (mu_c - mu_u)``."""
        mu_c, mu_u, nu = 0.4, -0.3, 0.2
        guided = Guided(Gaussians(nu, gaussian), gaussian, [CFG(w)])
        exact = AnalyticGaussian(mu_u + w * (mu_c - mu_u), nu, gaussian)
        close(call(guided, x, means(mu_c, mu_u), gaussian), call(exact, x, means(0.0, 0.0), gaussian))
        run = [samplers.build("ddim", num_steps=20).sample(r, gaussian, x, state_of(gaussian, SHAPE), c,
                                                          Streams(0, (0, 1, 2)))
               for r, c in ((guided, means(mu_c, mu_u)), (exact, Context()))]
        torch.testing.assert_close(run[0], run[1], atol=1e-4, rtol=0)


class TestBatching:
    @pytest.mark.parametrize("parts", [[CFG(3.0)], [CFG(3.0), PAG(2.0)], [PAG(2.0), CFG(0.5), PAG(1.0, sites=["up"])]],
                             ids=["cfg", "cfg+pag", "three"])
    def test_one_batch_is_separate_passes(self, x, ctx, gaussian, restorer, monkeypatch, parts):
        results = []
        for rows in (1, 100):
            monkeypatch.setattr(guidance, "ROWS", {"cpu": rows})
            spy = Spy(restorer)
            results.append(call(Guided(spy, gaussian, parts), x, ctx, gaussian))
            assert spy.rows == ([B] * (1 + len(parts)) if rows == 1 else [B * (1 + len(parts))])
        close(*results)

    def test_terms_with_the_same_branch_share_it(self, x, ctx, gaussian, restorer):
        spy = Spy(restorer)
        shared = call(Guided(spy, gaussian, [CFG(3.0), CFG(0.5)]), x, ctx, gaussian)
        assert spy.rows == [2 * B]
        close(shared, call(Guided(restorer, gaussian, [CFG(2.5)]), x, ctx, gaussian))

    def test_a_hook_touches_its_own_branch_alone(self, x, ctx, gaussian, restorer):
        """PAG by hand: the base, and a pass in which the middle's attention answers with its values."""
        base = call(restorer, x, ctx, gaussian)
        perturbed = call(restorer, x, ctx, gaussian, attn=lambda c: c.v if c.site.name == "mid.0.self" else None)
        assert (base.x0 - perturbed.x0).abs().max() > 1e-3
        close(call(Guided(restorer, gaussian, [PAG(2.0)]), x, ctx, gaussian), base + 2.0 * (base - perturbed))

    def test_a_hook_from_outside_acts_in_every_branch_below_its_own(self, x, ctx, gaussian, restorer):
        def outer(call):
            return 0.5 * call.v

        base = call(restorer, x, ctx, gaussian, attn=outer)
        perturbed = call(restorer, x, ctx, gaussian,
                         attn=lambda c: c.v if c.site.name == "mid.0.self" else 0.5 * c.v)
        assert (base.x0 - perturbed.x0).abs().max() > 1e-3
        close(call(Guided(restorer, gaussian, [PAG(2.0)]), x, ctx, gaussian, attn=outer),
              base + 2.0 * (base - perturbed))

    def test_a_sample_does_not_depend_on_its_batch(self, x, ctx, gaussian, restorer):
        guided, sampler = Guided(restorer, gaussian, [CFG(3.0), PAG(1.0), Clip()]), samplers.build("ddim", num_steps=3)
        state = state_of(gaussian, SHAPE)
        whole = sampler.sample(guided, gaussian, x, state, ctx, Streams(0, (0, 1, 2)))
        alone = sampler.sample(guided, gaussian, x[2:], state.rows(slice(2, 3)), ctx[2:], Streams(0, (2,)))
        torch.testing.assert_close(alone, whole[2:], atol=1e-5, rtol=0)

    def test_a_term_may_bring_another_restorer(self, x, ctx, gaussian, restorer):
        """Autoguidance: a weaker network, evaluated apart from the base."""
        weak = Spy(NetworkRestorer(network(seed=7), gaussian, V()))

        class Auto(Term):
            def branches(self, view):
                return [Branch(view.ctx, restorer=weak)]

            def delta(self, base, outs, view):
                return 1.5 * (base - outs[0])

        main = Spy(restorer)
        base, other = call(restorer, x, ctx, gaussian), call(weak.restorer, x, ctx, gaussian)
        close(call(Guided(main, gaussian, [Auto(), CFG(1.0)]), x, ctx, gaussian), base + 1.5 * (base - other))
        assert (main.rows, weak.rows) == ([B], [B])


class TestOtherParts:
    def test_a_transform_of_the_condition_leaves_the_null(self, x, ctx, gaussian, restorer, monkeypatch):
        class Shift(ConditionTransform):
            def __call__(self, ctx, step):
                return ctx.map(lambda emb: emb + 1, ("emb",))

        monkeypatch.setattr(guidance, "ROWS", {"cpu": 1})
        spy = Spy(restorer)
        call(Guided(spy, gaussian, [CFG(2.0), Shift()]), x, ctx, gaussian)
        given, null = spy.contexts
        assert torch.equal(given.emb, ctx.emb + 1)
        assert torch.equal(null.emb, ctx.null.emb)

    def test_terms_and_finishes_see_the_transformed_condition_and_the_given_image(self, x, ctx, gaussian, restorer):
        class Shift(ConditionTransform):
            def __call__(self, ctx, step):
                return ctx.map(lambda emb: emb + 1, ("emb",))

        class Look(Term):
            def delta(self, base, outs, view):
                seen.append(view)

        class Glance(EstimateTransform):
            def __call__(self, estimate, base, view):
                seen.append(view)
                return estimate

        seen = []
        call(Guided(restorer, gaussian, [Look(), Glance(), Shift()]), x, ctx, gaussian)
        assert len(seen) == 2
        for view in seen:
            assert torch.equal(view.ctx.emb, ctx.emb + 1)
            assert torch.equal(view.x_t, x)
            assert torch.equal(view.t, T)
            assert torch.equal(view.state["z"], state_of(gaussian, x.shape)["z"])

    def test_clip_keeps_the_image_in_range_and_explains_x_t(self, x, ctx, gaussian, restorer):
        free = call(Guided(restorer, gaussian, [CFG(8.0)]), x, ctx, gaussian)
        cut = call(Guided(restorer, gaussian, [CFG(8.0), Clip()]), x, ctx, gaussian)
        assert free.x0.abs().max() > 1
        assert torch.equal(cut.x0, free.x0.clamp(-1, 1))
        torch.testing.assert_close(gaussian.forward(cut.x0, T, cut.state), x, atol=1e-5, rtol=0)

    def test_finishes_act_last_and_see_the_base(self, x, ctx, gaussian, restorer):
        class Back(EstimateTransform):
            def __call__(self, estimate, base, view):
                assert not torch.equal(estimate.x0, base.x0)
                return base

        close(call(Guided(restorer, gaussian, [Back(), CFG(4.0)]), x, ctx, gaussian), call(restorer, x, ctx, gaussian))


def test_an_unconditional_model_is_told_to_go_without(x, gaussian, restorer):
    with pytest.raises(UserError, match="guidance=none"):
        call(Guided(restorer, gaussian, [CFG(2.0)]), x, Context(), gaussian)
    equal(call(Guided(restorer, gaussian, [CFG(1.0)]), x, Context(), gaussian), call(restorer, x, Context(), gaussian))


@pytest.mark.parametrize("sampler", ["cold1", "cold2"])
def test_cold_models_take_it_too(x, sampler):
    """A constant answer c: Algorithm 1 ends on it, Algorithm 2 on ``x_T - D(c, 1) + c``; guided, c is
    ``u + w (g - u)``."""
    blur, w = degradations.build("blur"), 3.0
    guided = Guided(Flat(blur), blur, [CFG(w)])
    state = state_of(blur, SHAPE)
    got = samplers.build(sampler).sample(guided, blur, x, state, means(0.5, 0.2), Streams(0, (0, 1, 2)))
    c = torch.full(SHAPE, 0.2 + w * 0.3)
    expected = c if sampler == "cold1" else x - blur.forward(c, torch.ones(B), state) + c
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_gradients_flow_through_every_branch(x, ctx, gaussian, restorer):
    """The gradient of a guided estimate is the same combination of the branches' gradients."""

    def gradient(restorer, ctx) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad((call(restorer, leaf, ctx, gaussian).x0 * x.cos()).sum(), leaf)[0]

    guided = Guided(restorer, gaussian, [CFG(3.0)])
    null = gradient(restorer, ctx.null)
    expected = null + 3.0 * (gradient(restorer, ctx) - null)
    torch.testing.assert_close(gradient(guided, ctx), expected, atol=1e-4, rtol=1e-4)
    assert gradient(Guided(restorer, gaussian, [CFG(3.0), Clip()]), ctx).abs().sum() > 0
