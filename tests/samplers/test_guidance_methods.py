"""Each method of guidance against its formula, its neighbours, and its limits."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from math import inf, pi
from pathlib import Path

import pytest
import torch
from guided import LABELS, SHAPE, B, Linear, Spy, ask, close, conditioned, equal, guided, restorer_of, step_at
from helpers import ROOT
from oracles import AnalyticGaussian, state_of

import degradations
import samplers
import samplers.guidance
from configs import UserError, registry
from degradations.base import Estimate
from degradations.randomness import Streams
from degradations.shapes import flatten_rows
from models.attention import AttentionCall, AttentionSite, attend
from models.context import Context
from samplers.guidance import schedules
from samplers.guidance.apg import APG
from samplers.guidance.auto import Autoguidance
from samplers.guidance.base import BASE, GuidanceInput, Guided
from samplers.guidance.cads import CADS
from samplers.guidance.cfg import CFG
from samplers.guidance.cfg_zero import CFGZero
from samplers.guidance.classifier import ClassifierGuidance
from samplers.guidance.pag import (
    PAG,
    DroppedAttention,
    IdentityAttention,
    MaskedAttention,
    NoisyAttention,
    SoftAttention,
    UniformAttention,
)
from samplers.guidance.rescale import Rescale
from samplers.guidance.sag import SAG
from samplers.guidance.seg import SEG, Smoothed
from samplers.guidance.sites import matching, weights
from samplers.guidance.spaces import SPACES, from_space, to_space
from samplers.guidance.thresholding import DynamicThreshold


@pytest.fixture(scope="module")
def gaussian():
    return degradations.build("gaussian", schedule="linear")


@pytest.fixture(scope="module")
def blur():
    return degradations.build("blur", levels=10)


@pytest.fixture(scope="module")
def restorer(gaussian):
    return restorer_of(gaussian)


@pytest.fixture
def x():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def ctx():
    return conditioned()


def view_of(x, t, degradation, step=None, ctx=None) -> GuidanceInput:
    times = torch.full((len(x),), t)
    return GuidanceInput(restorer_of(degradation), degradation, x, times, ctx or conditioned(),
                         state_of(degradation, x.shape), step)


class TestScales:
    """k from a number, a schedule, one number per sample."""

    def strength(self, term, t=0.5, indices=(0, 1, 2)):
        step = step_at(t, indices=indices)
        return term.strength(view_of(torch.zeros(SHAPE), t, degradations.build("gaussian"), step))

    @pytest.mark.parametrize("name", registry.available("guidance/schedule"))
    def test_the_mean_over_a_run_is_the_strength(self, name):
        schedule, n = registry.build("guidance/schedule", name), 1000
        mean = sum(schedule(2.0, (n - i) / n) for i in range(n)) / n
        expected = {"interval": 1.2, "power_cosine": 1.0, "clamp_linear": 2.125, "dynamic": 3 * 0.75 - 1,
                    "clamp_cosine": 5 / 3 + 3**0.5 / pi}
        assert mean == pytest.approx(expected.get(name, 2.0), abs=0.01)

    def test_shapes(self):
        ends = {"Constant": (1, 1, 1), "Linear": (0, 1, 2), "InverseLinear": (2, 1, 0), "Cosine": (0, 1, 2),
                "Sine": (2, 1, 0), "Lambda": (0, 2, 0), "V": (2, 0, 2), "PowerCosine": (0, 0.5, 1)}
        for name, values in ends.items():
            schedule = getattr(schedules, f"{name}Scale")()
            assert [schedule(1.0, t) for t in (1.0, 0.5, 0.0)] == pytest.approx(values, abs=1e-9)

    def test_clamp_is_of_the_strength(self):
        term = CFG(3.0, schedules.ClampedScale(schedules.LinearScale(), floor=1.5))
        assert self.strength(term, 1.0) == 1.5
        assert self.strength(term, 0.25) == pytest.approx(3.0)

    def test_interval_is_open_below_and_closed_above(self):
        term = PAG(3.0, schedule=schedules.IntervalScale(0.3, 0.6))
        assert [self.strength(term, t) for t in (0.3, 0.30000001, 0.6, 0.61)] == [0, 3, 3, 0]
        nested = schedules.IntervalScale(0, 1, schedules.LinearScale())
        assert self.strength(CFG(4.0, nested), 0.5) == pytest.approx(3.0)

    def test_dynamic_cfg_begins_unconditional(self, x, ctx, gaussian, restorer):
        term = CFG(4.0, schedules.DynamicScale(0.6, 0.9))
        assert (self.strength(term, 0.95), self.strength(term, 0.5)) == (-1, 3)
        close(ask(guided([term], gaussian, restorer), x, ctx, gaussian, 0.95),
              ask(restorer, x, ctx.null, gaussian, 0.95))

    def test_one_scale_per_sample_goes_by_the_samples_index(self, x, ctx, gaussian, restorer):
        term = CFG([1.0, 2.0, 5.0])
        assert self.strength(term, indices=(4, 2, 0)).tolist() == [1, 4, 0]
        assert self.strength(CFG(torch.tensor([1.0, 2.0])), indices=(0, 2, 4)) == 0.0
        out = ask(guided([term], gaussian, restorer), x, ctx, gaussian, 0.5)
        for row, w in enumerate(term.scales):
            alone = ask(guided([CFG(w)], gaussian, restorer), x, ctx, gaussian, 0.5)
            close(out.rows(slice(row, row + 1)), alone.rows(slice(row, row + 1)))

    @pytest.mark.parametrize("scale", [True, [], [1.0, True]])
    def test_what_is_no_scale(self, scale):
        with pytest.raises(UserError, match=r"scale=2\.0"):
            CFG(scale)

    def test_a_schedule_needs_a_step(self, x, ctx, gaussian, restorer):
        with pytest.raises(ValueError, match="step"):
            guided([CFG(2.0, schedules.LinearScale())], gaussian, restorer)(
                x, torch.full((B,), 0.5), ctx, state=state_of(gaussian, SHAPE), step=None)


class TestEvaluations:
    """Rows of the network per sample and step, as the edge table has them."""

    def rows(self, parts, x, ctx, degradation, restorer, t=0.5):
        spy = Spy(restorer)
        out = ask(guided(parts, degradation, spy), x, ctx, degradation, t)
        return sum(spy.rows) // B, out

    @pytest.mark.parametrize(("w", "s", "count"), [(1, 0, 1), (3, 0, 2), (1, 2, 2), (3, 2, 3), (0, 0, 2)])
    def test_edge_table(self, w, s, count, x, ctx, gaussian, restorer):
        assert self.rows([CFG(w), PAG(s)], x, ctx, gaussian, restorer)[0] == count

    @pytest.mark.parametrize("s", [0, 2])
    def test_unconditional(self, s, x, gaussian, restorer):
        assert self.rows([CFG(1), PAG(s)], x, Context(), gaussian, restorer)[0] == 1 + (s > 0)
        with pytest.raises(UserError, match="unconditional"):
            self.rows([CFG(2), PAG(s)], x, Context(), gaussian, restorer)

    def test_outside_of_an_interval(self, x, ctx, gaussian, restorer):
        for term in (CFG(3.0, schedules.IntervalScale(0.2, 0.4)), PAG(3.0, schedule=schedules.IntervalScale(0.2, 0.4)),
                     SAG(1.0, schedule=schedules.IntervalScale(0.2, 0.4))):
            assert self.rows([term], x, ctx, gaussian, restorer, t=0.3)[0] == 2
            count, out = self.rows([term], x, ctx, gaussian, restorer, t=0.5)
            assert count == 1
            equal(out, ask(restorer, x, ctx, gaussian, 0.5))

    def test_over_a_run(self, x, ctx, gaussian, restorer):
        spy = Spy(restorer)
        terms = [CFG(3.0, schedules.IntervalScale(0.2, 0.6)), PAG(1.0, schedule=schedules.LinearScale())]
        sampler = samplers.build("ddim", num_steps=10)
        sampler.sample(guided(terms, gaussian, spy), gaussian, x, state_of(gaussian, SHAPE), ctx, Streams(0, (0, 1, 2)))
        # CFG at t = .6, .5, .4, .3; PAG everywhere but at t = 1, where the schedule is 0.
        assert sum(spy.rows) // B == 10 + 4 + 9

    @pytest.mark.parametrize(("name", "churn"), [("heun", 0.0), ("heun", 1.0), ("heun_x0", 0.0)])
    def test_a_heun_step_is_guided_as_its_beginning(self, name, churn, x, ctx, gaussian, restorer):
        spy = Spy(restorer)
        term = CFG(3.0, schedules.IntervalScale(0.45, 0.8))
        sampler = samplers.build(name, num_steps=4, S_churn=churn)
        sampler.sample(guided([term], gaussian, spy), gaussian, x, state_of(gaussian, SHAPE), ctx,
                       Streams(0, (0, 1, 2)))
        assert [rows // B for rows in spy.rows] == [1, 1, 2, 2, 2, 2, 1]

    def test_no_sites_no_evaluation(self, x, ctx, gaussian, restorer):
        for term in (PAG(3.0, sites=[]), SEG(3.0, sites=[]), SEG(3.0, sigma=0.0)):
            count, out = self.rows([term], x, ctx, gaussian, restorer)
            assert count == 1
            equal(out, ask(restorer, x, ctx, gaussian, 0.5))


SITES = [AttentionSite(name, "cross" if name.endswith("cross") else "self", 2, 8, 4) for name in (
    "down.1.0.self", "down.1.0.cross", "down.1.1.self", "down.10.0.self", "mid.0.self", "up.1.0.self", "up.1.1.self")]


@pytest.mark.parametrize(("patterns", "expected"), [
    (["mid"], ["mid.0.self"]), (["down.1.0.self"], ["down.1.0.self"]), (["u0", "m0"], ["mid.0.self", "up.1.0.self"]),
    (["down.1.*"], ["down.1.0.self", "down.1.1.self"]), (["d*"], ["down.1.0.self", "down.1.1.self", "down.10.0.self"]),
    (["up"], ["up.1.0.self", "up.1.1.self"]), (["d2"], ["down.10.0.self"]), ([], [])])
def test_sites_by_name_glob_and_alias(patterns, expected):
    assert list(matching(SITES, patterns)) == expected


@pytest.mark.parametrize("pattern", ["middle", "down.1", "d3", "down.1.0.cross", "x*"])
def test_sites_that_are_not_there(pattern):
    with pytest.raises(UserError, match=r"sites=\["):
        matching(SITES, ["mid", pattern])
    with pytest.raises(UserError, match="guidance=none"):
        matching([], ["mid"])


def call_of(n=4, heads=2, d=3, b=B, seed=0) -> AttentionCall:
    g = torch.Generator().manual_seed(seed)
    q, k, v = (2 * torch.randn(b, heads, n * n, d, generator=g) for _ in range(3))
    return AttentionCall(SITES[4], q, k, v, None, (n, n), Context())


class TestPAG:
    def test_the_estimate(self, x, ctx, gaussian, restorer):
        base = ask(restorer, x, ctx, gaussian, 0.5)
        worse = ask(restorer, x, ctx, gaussian, 0.5, attn=lambda c: c.v if c.site.name == "mid.0.self" else None)
        close(ask(guided([PAG(2.5)], gaussian, restorer), x, ctx, gaussian, 0.5), base + 2.5 * (base - worse))

    def test_queries_and_keys_do_not_matter_and_are_not_asked_for(self):
        call = call_of()
        other = replace(call, q=torch.full_like(call.q, torch.nan), k=torch.full_like(call.k, torch.nan))
        assert torch.equal(IdentityAttention()(call, None), IdentityAttention()(other, None))
        order = torch.randperm(16)
        permuted = replace(call, v=call.v[:, :, order])
        assert torch.equal(IdentityAttention()(permuted, None), call.v[:, :, order])

    def test_the_map_that_is_thrown_away_is_not_computed(self, x, ctx, gaussian, restorer, monkeypatch):
        """Of three branches at the site, two attend; everywhere else all three do, in one call."""
        import models.attention

        seen = []

        def counting(q, k, v, mask=None):
            seen.append(len(q))
            return attend(q, k, v, mask)

        monkeypatch.setattr(models.attention, "attend", counting)
        monkeypatch.setattr("samplers.guidance.base.ROWS", {"cpu": 100})
        ask(guided([CFG(2.0), PAG(1.0)], gaussian, restorer), x, ctx, gaussian, 0.5)
        assert len(restorer.sites) == 4
        assert sorted(seen) == [B, B, 3 * B, 3 * B, 3 * B]

    def test_soft_reaches_from_nothing_to_all(self, x, ctx, gaussian, restorer):
        soft = [ask(guided([PAG(3.0, perturbation=SoftAttention(a))], gaussian, restorer), x, ctx, gaussian, 0.5)
                for a in (0.0, 1.0, [1.0, 1.0], [1.0, 0.0])]
        close(soft[0], ask(restorer, x, ctx, gaussian, 0.5), atol=1e-4)
        whole = ask(guided([PAG(3.0)], gaussian, restorer), x, ctx, gaussian, 0.5)
        close(soft[1], whole, atol=1e-4)
        close(soft[2], whole, atol=1e-4)
        assert (soft[3].x0 - whole.x0).abs().max() > 1e-4
        with pytest.raises(UserError, match="2 heads"):
            SoftAttention([0.1, 0.2, 0.3])(call_of(), None)

    @pytest.mark.parametrize("name", registry.available("guidance/perturbation"))
    def test_every_perturbation_is_of_the_sample(self, name, x):
        perturbation, call = registry.build("guidance/perturbation", name), call_of()
        out = perturbation(call, step_at(0.5))
        assert out.shape == call.q.shape
        assert out.isfinite().all()
        assert (out - call.rest()).abs().max() > 1e-3
        alone = perturbation(call[1:2], step_at(0.5, indices=(1,)))
        torch.testing.assert_close(alone, out[1:2])
        torch.testing.assert_close(perturbation(call, step_at(0.5)), out, atol=0, rtol=0)

    def test_limits_of_the_perturbations(self):
        call, step = call_of(), step_at(0.5)
        torch.testing.assert_close(weights(call) @ call.v, call.rest())
        torch.testing.assert_close(MaskedAttention(1.0)(call, step), call.v)
        for nothing in (MaskedAttention(0.0), DroppedAttention(0.0), NoisyAttention(0.0)):
            torch.testing.assert_close(nothing(call, step), call.rest())
        assert DroppedAttention(1.0)(call, step).abs().max() == 0
        torch.testing.assert_close(UniformAttention()(call, step), replace(call, q=0 * call.q).rest())

    def test_one_token_has_nothing_to_lose(self):
        call = call_of(n=1)
        for perturbation in (IdentityAttention(), SoftAttention(0.5), UniformAttention(), MaskedAttention(0.5)):
            torch.testing.assert_close(perturbation(call, step_at(0.5)), call.rest())

    def test_a_site_that_the_network_lacks(self, x, ctx, gaussian, restorer):
        with pytest.raises(UserError, match=r"mid\.0\.self"):
            ask(guided([PAG(2.0, sites=["mid.7.self"])], gaussian, restorer), x, ctx, gaussian, 0.5)


class TestSEG:
    def test_infinite_blur_gives_all_pixels_the_same_answer(self):
        out = Smoothed(("mid.0.self",), inf)(call_of())
        torch.testing.assert_close(out, out[:, :, :1].expand_as(out))
        assert (out[:, :, 0] - call_of().v.mean(dim=2)).abs().max() > 1e-3, "which is not the mean of the values"

    def test_little_blur_changes_nothing(self):
        call = call_of(n=8)
        torch.testing.assert_close(Smoothed(("mid.0.self",), 0.05)(call), call.rest())
        assert (Smoothed(("mid.0.self",), 2.0)(call) - call.rest()).abs().max() > 1e-2

    def test_much_blur_is_nearly_infinite(self):
        queries = replace(call_of(n=5), q=torch.randn(B, 2, 25, 3))
        little, much, infinite = (Smoothed(("mid.0.self",), sigma)(queries) for sigma in (0.3, 50.0, inf))
        far, near = little - infinite, much - infinite
        assert near.abs().mean() < 0.5 * far.abs().mean()


class TestSAG:
    def test_nothing_attended_nothing_added(self, x, ctx, gaussian, restorer, monkeypatch):
        monkeypatch.setattr(SAG, "mask", staticmethod(lambda attention, image: torch.zeros_like(image)))
        close(ask(guided([SAG(2.0)], gaussian, restorer), x, ctx, gaussian, 0.5),
              ask(restorer, x, ctx, gaussian, 0.5), atol=1e-4)

    def test_the_papers_noise_is_the_same_difference(self, x, ctx, gaussian, restorer):
        """``x_t + D(m, t, z) - D(x0, t, z) = alpha m + sigma z``, and the difference is that of z."""
        seen = []

        class Look(Spy):
            def __call__(self, x_t, t, ctx, *, state, step, attn=None):
                seen.append(super().__call__(x_t, t, ctx, state=state, step=step, attn=attn))
                return seen[-1]

        out = ask(guided([SAG(0.75)], gaussian, Look(restorer)), x, ctx, gaussian, 0.5)
        base, worse = seen
        torch.testing.assert_close(out.state["z"], base.state["z"] + 0.75 * (base.state["z"] - worse.state["z"]),
                                   atol=1e-5, rtol=1e-4)

    def test_it_looks_at_the_base_alone_and_leaves_the_memory_clean(self, x, ctx, gaussian, restorer):
        memory = {}
        out = ask(guided([SAG(0.75), CFG(2.0), PAG(1.0)], gaussian, restorer), x, ctx, gaussian, 0.5,
                  step=step_at(0.5, memory=memory))
        apart = ask(restorer, x, ctx, gaussian, 0.5)
        apart = apart + sum((ask(guided([term], gaussian, restorer), x, ctx, gaussian, 0.5) - apart
                             for term in (CFG(2.0), PAG(1.0))), start=ask(
                                 guided([SAG(0.75)], gaussian, restorer), x, ctx, gaussian, 0.5) - apart)
        close(out, apart, atol=1e-4)
        assert set(memory) == {BASE}


class TestAutoguidance:
    def test_the_estimate(self, x, ctx, gaussian, restorer):
        weak = restorer_of(gaussian, seed=7)
        base, worse = (ask(r, x, ctx, gaussian, 0.5) for r in (restorer, weak))
        close(ask(guided([Autoguidance(weak, 2.2)], gaussian, restorer), x, ctx, gaussian, 0.5),
              worse + 2.2 * (base - worse))
        close(ask(guided([Autoguidance(restorer, 3.0)], gaussian, restorer), x, ctx, gaussian, 0.5), base)

    def test_another_model_as_the_null(self, x, ctx, gaussian, restorer):
        other = Spy(restorer_of(gaussian, seed=7))
        out = ask(guided([CFG(3.0, unconditional=other)], gaussian, restorer), x, ctx, gaussian, 0.5)
        base, null = ask(restorer, x, ctx, gaussian, 0.5), ask(other.restorer, x, ctx.null, gaussian, 0.5)
        close(out, null + 3 * (base - null))
        assert not other.contexts[0].raw, "the other model is told nothing"


class TestClassifier:
    def test_z_follows_the_gradient_and_the_image_explains_it(self, x, ctx, gaussian, restorer):
        """For a linear classifier, ``grad log p(y) = w_y - sum_k p_k w_k``."""
        linear, g = Linear(), 1.7
        base = ask(restorer, x, ctx, gaussian, 0.5)
        with torch.no_grad():
            out = ask(guided([ClassifierGuidance(linear, g)], gaussian, restorer), x, ctx, gaussian, 0.5)
        p = (flatten_rows(x) @ linear.weight.T).softmax(dim=1)
        gradient = (linear.weight[LABELS] - p @ linear.weight).reshape(SHAPE)
        sigma = gaussian.coefficients(torch.full((B,), 0.5), x)[1]
        torch.testing.assert_close(out.state["z"], base.state["z"] - g * sigma * gradient, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(gaussian.forward(out.x0, torch.full((B,), 0.5), out.state), x, atol=1e-4, rtol=0)

    def test_an_unconditional_analytic_model_becomes_the_posterior(self, gaussian):
        """Data N(mu, nu) and a classifier with ``p(y | x_t)`` proportional to N(x_t; 0.7, 1): the scores add up."""
        mu, nu, t = 0.2, 0.3, 0.5
        x = torch.randn(SHAPE)

        class Bell(Linear):
            def logits(self, x_t, t):
                log_p = -((flatten_rows(x_t) - 0.7) ** 2).sum(dim=1, keepdim=True) / 2
                return torch.cat([log_p, torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))], dim=1)

        ctx = Context(raw={"label": torch.zeros(B, dtype=torch.long)})
        oracle = AnalyticGaussian(mu, nu, gaussian)
        out = ask(guided([ClassifierGuidance(Bell())], gaussian, oracle), x, ctx, gaussian, t)
        alpha, sigma = gaussian.coefficients(torch.full((B,), t), x)
        score = -(x - alpha * mu) / (alpha**2 * nu + sigma**2) - (x - 0.7)
        torch.testing.assert_close(out.state["z"], -sigma * score, atol=1e-3, rtol=1e-3)

    def test_a_class_is_needed(self, x, gaussian, restorer):
        with pytest.raises(UserError, match="label=3"):
            ask(guided([ClassifierGuidance(Linear())], gaussian, restorer), x, Context(), gaussian, 0.5)

    def test_pure_noise_is_left_alone(self, x, ctx):
        line = degradations.build("gaussian", schedule="rectified")
        restorer = restorer_of(line)
        out = ask(guided([ClassifierGuidance(Linear(), 5.0)], line, restorer), x, ctx, line, 1.0)
        equal(out, ask(restorer, x, ctx, line, 1.0))


def emb_of(cads, ctx, t, **arguments):
    return cads(ctx, step_at(t, **arguments)).emb


class TestCADS:
    def test_intact_below_tau1_bit_for_bit(self, ctx):
        assert CADS()(ctx, step_at(0.6)) is ctx
        assert not torch.equal(emb_of(CADS(), ctx, 0.61), ctx.emb)

    def test_gamma_falls_from_one_to_zero(self):
        cads = CADS(tau1=0.4, tau2=0.8)
        gammas = [cads.gamma(t) for t in (0.0, 0.4, 0.5, 0.7, 0.8, 1.0)]
        assert gammas == pytest.approx([1, 1, 0.75, 0.25, 0, 0])
        assert CADS(tau1=0.4, tau2=0.8, power=2.0).gamma(0.7) == pytest.approx(0.0625)

    def test_mean_and_spread_of_every_sample_stay(self, ctx):
        out = emb_of(CADS(scale=0.5), ctx, 0.85)
        for moment in (lambda y: y.mean(dim=1), lambda y: y.std(dim=1)):
            torch.testing.assert_close(moment(out), moment(ctx.emb), atol=1e-5, rtol=1e-5)
        assert (out - ctx.emb).abs().max() > 0.05

    def test_without_noise(self, ctx):
        torch.testing.assert_close(emb_of(CADS(scale=0.0), ctx, 0.7), ctx.emb, atol=1e-6, rtol=1e-5)
        gamma = CADS().gamma(0.7)
        torch.testing.assert_close(emb_of(CADS(scale=0.0, psi=0.0), ctx, 0.7), gamma**0.5 * ctx.emb)
        mean = emb_of(CADS(scale=0.0), ctx, 1.0)
        torch.testing.assert_close(mean, ctx.emb.mean(dim=1, keepdim=True).expand_as(mean))

    def test_at_the_end_it_is_noise_alone(self, ctx):
        other = conditioned([0, 0, 0])
        cads = CADS(scale=0.3, psi=0.0)
        assert torch.equal(emb_of(cads, ctx, 1.0), emb_of(cads, other, 1.0))
        noise = Streams(0, (0, 1, 2)).at(0).normal("cads/emb/0", (B, 32))
        torch.testing.assert_close(emb_of(cads, ctx, 1.0), 0.3 * noise)

    def test_noise_is_of_sample_and_step(self, ctx):
        one, two = emb_of(CADS(), ctx, 0.8, i=1), emb_of(CADS(), ctx, 0.8, i=2)
        assert not torch.equal(one, two)
        assert torch.equal(emb_of(CADS(), ctx, 0.8, i=1), one)
        torch.testing.assert_close(emb_of(CADS(), ctx[1:2], 0.8, i=1, indices=(1,)), one[1:2])

    def test_the_null_stays_clean_and_pag_sees_the_same_noise(self, x, ctx, gaussian, restorer, monkeypatch):
        monkeypatch.setattr("samplers.guidance.base.ROWS", {"cpu": 1})
        seen = []
        for parts in ([CADS(), CFG(2.0)], [CADS(), CFG(2.0), PAG(1.0)]):
            spy = Spy(restorer)
            ask(guided(parts, gaussian, spy), x, ctx, gaussian, 0.8)
            seen.append(spy.contexts)
            assert torch.equal(spy.contexts[1].emb, ctx.null.emb)
        assert torch.equal(seen[0][0].emb, seen[1][0].emb)
        assert torch.equal(seen[1][2].emb, seen[1][0].emb)
        assert not torch.equal(seen[0][0].emb, ctx.emb)

    def test_tokens_and_images(self):
        ctx = Context(tokens={"main": torch.randn(B, 4, 5), "image": torch.randn(B, 4, 5)}, spatial=torch.randn(SHAPE))
        out = CADS(scale=0.3)(ctx, step_at(0.8))
        for before, after in ((ctx.tokens["main"], out.tokens["main"]), (ctx.tokens["image"], out.tokens["image"]),
                              (ctx.spatial, out.spatial)):
            torch.testing.assert_close(flatten_rows(after).std(dim=1), flatten_rows(before).std(dim=1))
            assert (after - before).abs().max() > 0.01
        noise = [out.tokens[k] - ctx.tokens[k] for k in ctx.tokens]
        assert (noise[0] - noise[1]).abs().max() > 0.01

    @pytest.mark.parametrize("wrong", [{"tau1": 0.9, "tau2": 0.6}, {"psi": 2.0}])
    def test_mistakes(self, wrong):
        with pytest.raises(UserError):
            CADS(**wrong)


class TestFinishes:
    @pytest.mark.parametrize("space", SPACES)
    def test_spaces_come_back(self, space, x, ctx, gaussian, restorer):
        view, estimate = view_of(x, 0.5, gaussian), ask(restorer, x, ctx, gaussian, 0.5)
        close(from_space(to_space(estimate, space, view), space, view, estimate), estimate, atol=1e-4)

    def test_a_cold_model_has_only_images(self, x, ctx, blur):
        with pytest.raises(UserError, match="space=x0"):
            ask(guided([CFG(3.0), Rescale(space="v")], blur), x, ctx, blur, 0.5)

    @pytest.mark.parametrize("space", SPACES)
    def test_rescaled_to_the_spread_of_the_base(self, space, x, ctx, gaussian, restorer):
        view, base = view_of(x, 0.5, gaussian), ask(restorer, x, ctx, gaussian, 0.5)
        whole = ask(guided([CFG(6.0), Rescale(1.0, space)], gaussian, restorer), x, ctx, gaussian, 0.5)
        torch.testing.assert_close(*(flatten_rows(to_space(estimate, space, view)).std(dim=1)
                                     for estimate in (whole, base)), atol=1e-4, rtol=1e-4)
        plain = ask(guided([CFG(6.0)], gaussian, restorer), x, ctx, gaussian, 0.5)
        equal(ask(guided([CFG(6.0), Rescale(0.0, space)], gaussian, restorer), x, ctx, gaussian, 0.5), plain)
        half = ask(guided([CFG(6.0), Rescale(0.5, space)], gaussian, restorer), x, ctx, gaussian, 0.5)
        expected = (to_space(plain, space, view) + to_space(whole, space, view)) / 2
        torch.testing.assert_close(to_space(half, space, view), expected, atol=1e-4, rtol=1e-4)

    def test_rescaling_depends_on_the_space_adding_does_not(self, x, ctx, gaussian, restorer):
        a, b = (ask(guided([CFG(6.0), Rescale(1.0, space)], gaussian, restorer), x, ctx, gaussian, 0.5).x0
                for space in ("x0", "v"))
        assert (a - b).abs().max() > 1e-3

    def test_a_black_image_is_no_division_by_zero(self, blur):
        nothing = Estimate(torch.zeros(SHAPE), state_of(blur, SHAPE))
        view = view_of(torch.zeros(SHAPE), 0.5, blur)
        assert Rescale()(nothing, nothing, view).x0.abs().max() == 0

    def test_threshold(self, x, gaussian):
        view, finish = view_of(x, 0.5, gaussian), DynamicThreshold(0.9)
        inside = Estimate(x.clamp(-1, 1), state_of(gaussian, SHAPE))
        assert torch.equal(finish(inside, inside, view).x0, inside.x0)
        wide = Estimate(4 * x, state_of(gaussian, SHAPE))
        out, q = finish(wide, wide, view).x0, torch.quantile(flatten_rows(4 * x).abs(), 0.9, dim=1)
        torch.testing.assert_close(out, (4 * x / q[:, None, None, None]).clamp(-1, 1))
        assert torch.equal(DynamicThreshold(0.9, max_value=1.0)(wide, wide, view).x0, (4 * x).clamp(-1, 1))


class TestAPG:
    def test_without_its_parts_it_is_cfg(self, x, ctx, gaussian, restorer):
        apg = APG(3.0, eta=1.0, norm=None, momentum=0.0)
        close(ask(guided([apg], gaussian, restorer), x, ctx, gaussian, 0.5),
              ask(guided([CFG(3.0)], gaussian, restorer), x, ctx, gaussian, 0.5), atol=1e-4)

    def test_what_is_added_is_across_the_estimate_and_bounded(self, x, ctx, gaussian, restorer):
        base = ask(restorer, x, ctx, gaussian, 0.5)
        out = ask(guided([APG(3.0, norm=0.02, momentum=0.0)], gaussian, restorer), x, ctx, gaussian, 0.5)
        added = flatten_rows(out.x0 - base.x0)
        torch.testing.assert_close((added * flatten_rows(base.x0)).sum(dim=1), torch.zeros(B), atol=1e-3, rtol=0)
        assert (added.norm(dim=1) <= 2 * 0.02 + 1e-4).all()
        far = ask(guided([APG(3.0, norm=None, momentum=0.0)], gaussian, restorer), x, ctx, gaussian, 0.5)
        assert flatten_rows(far.x0 - base.x0).norm(dim=1).min() > 2 * 0.02

    def test_momentum_is_of_steps_not_of_evaluations(self):
        apg, memory = APG(momentum=-0.5), {}
        d = torch.ones(SHAPE)

        def at(i):
            view = view_of(d, 0.5, degradations.build("gaussian"), step_at(0.5, i=i, memory=memory))
            return apg.remembered(d, view)[0, 0, 0, 0].item()

        assert [at(0), at(0), at(1), at(1), at(2)] == [1, 1, 0.5, 0.5, 0.75]


def test_cfg_zero_scales_the_null_to_the_estimate(x, ctx, gaussian, restorer):
    view = view_of(x, 0.5, gaussian)
    base, null = ask(restorer, x, ctx, gaussian, 0.5), ask(restorer, x, ctx.null, gaussian, 0.5)
    u, v = (flatten_rows(to_space(e, "flow", view)) for e in (null, base))
    a = (v * u).sum(dim=1, keepdim=True) / u.square().sum(dim=1, keepdim=True)
    out = ask(guided([CFGZero(3.0)], gaussian, restorer), x, ctx, gaussian, 0.5, step=step_at(0.5, i=1))
    torch.testing.assert_close(flatten_rows(to_space(out, "flow", view)), a * u + 3 * (v - a * u), atol=1e-3, rtol=1e-3)
    first = ask(guided([CFGZero(3.0)], gaussian, restorer), x, ctx, gaussian, 0.5)
    torch.testing.assert_close(to_space(first, "flow", view), torch.zeros(SHAPE), atol=1e-5, rtol=0)


def test_cold_models_are_guided_in_the_image(x, ctx, blur):
    """CFG, PAG and autoguidance move x0; the state is what was given."""
    restorer = restorer_of(blur)
    base, null = ask(restorer, x, ctx, blur, 0.5), ask(restorer, x, ctx.null, blur, 0.5)
    worse = ask(restorer, x, ctx, blur, 0.5, attn=lambda c: c.v if c.site.name == "mid.0.self" else None)
    out = ask(guided([CFG(3.0), PAG(2.0)], blur, restorer), x, ctx, blur, 0.5)
    expected = base.x0 + 2 * (base.x0 - null.x0) + 2 * (base.x0 - worse.x0)
    torch.testing.assert_close(out.x0, expected, atol=1e-4, rtol=1e-4)
    gradient = ask(guided([ClassifierGuidance(Linear(), 2.0)], blur, restorer), x, ctx, blur, 0.5).x0 - base.x0
    assert gradient.abs().min() >= 0
    assert gradient.abs().max() > 1e-3


def test_parts_may_be_nested(x, ctx, gaussian, restorer):
    """A guided restorer is a restorer: it may be guided, and knows its sites."""
    inner = Guided(restorer, gaussian, [CFG(2.0)])
    out = ask(Guided(inner, gaussian, [PAG(1.0)]), x, ctx, gaussian, 0.5)
    assert inner.sites == restorer.sites
    worse = ask(inner, x, ctx, gaussian, 0.5, attn=lambda c: c.v if c.site.name == "mid.0.self" else None)
    base = ask(inner, x, ctx, gaussian, 0.5)
    close(out, base + 1.0 * (base - worse))


def test_one_compiled_graph_per_plan_of_branches():
    """Steps, scales, seeds and runs share a graph; another set of branches, hooks or rows has its own."""
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, here / "compiled.py"], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), str(ROOT)])})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "base": 1, "cfg": 1, "cfg + pag": 1, "other scales and seed": 0, "per sample, on a schedule": 0, "pag": 1,
        "cads": 0, "other sites": 1}
