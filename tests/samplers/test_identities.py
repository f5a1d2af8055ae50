"""Samplers against closed forms, against each other, and against the papers' formulas written out."""

import itertools
import math

import pytest
import torch
from oracles import AnalyticGaussian, Arbitrary, Constant, DataSet, Perfect, state_of

import degradations
import samplers
from configs import UserError
from degradations.affine import Affine
from degradations.base import Degradation, Estimate, State
from degradations.desaturate import Desaturate
from degradations.gaussian import Gaussian
from degradations.randomness import Streams
from degradations.schedules import AdditiveSchedule
from models.context import Context
from samplers.base import Sampler
from samplers.grids import KarrasGrid, LambdaGrid, LeadingGrid, LevelGrid, UniformGrid
from samplers.moves import Belief, Direct, Infer, Keep, Residual
from samplers.protocol import Callback

NAMES = samplers.available()
PAIRS = [(s, d) for s in NAMES for d in degradations.available()
         if isinstance(degradations.build(d), samplers.build(s).requires)]
SHAPE = (3, 1, 8, 8)


def shape_for(degradation):
    """A shape that the operator takes."""
    return (3, 3, 8, 8) if isinstance(degradation, Desaturate) else SHAPE


def some(sampler, degradation, num_steps):
    """A sampler of so many steps, or of all levels if there are fewer."""
    return samplers.build(sampler, num_steps=min(num_steps, degradation.levels or num_steps))


def run(sampler, restorer, degradation, x_T=None, state=None, seed=0, **arguments):
    shape = shape_for(degradation)
    state = state or state_of(degradation, shape, seed)
    x_T = torch.randn(shape) if x_T is None else x_T
    streams = Streams(seed, tuple(range(len(x_T))))
    return sampler.sample(restorer, degradation, x_T, state, Context(), streams, **arguments)


@pytest.mark.parametrize(("sampler", "degradation"), PAIRS)
class TestEveryPair:
    def test_perfect_restorer_returns_the_image(self, sampler, degradation):
        d = degradations.build(degradation)
        x0, state = torch.rand(shape_for(d)) * 2 - 1, state_of(d, shape_for(d))
        x_T = d.forward(x0, torch.ones(3), state)
        for stride in (1, 2, 7):  # Algorithm 2 is exact at any stride
            s = some(sampler, d, -(-10 // stride))
            torch.testing.assert_close(run(s, Perfect(x0, d), d, x_T, state), x0, atol=2e-6, rtol=0)

    def test_a_sample_does_not_depend_on_its_batch(self, sampler, degradation):
        d = degradations.build(degradation)
        s, state, x_T = some(sampler, d, 5), state_of(d, shape_for(d)), torch.randn(shape_for(d))
        whole = run(s, Arbitrary(d), d, x_T, state)
        alone = s.sample(Arbitrary(d), d, x_T[2:], state.rows(slice(2, 3)), Context(), Streams(0, (2,)))
        torch.testing.assert_close(alone, whole[2:], atol=1e-6, rtol=1e-5)

    def test_same_seed_same_result_other_runs_between(self, sampler, degradation):
        d = degradations.build(degradation)
        s, x_T = some(sampler, d, 4), torch.randn(shape_for(d))
        first = run(s, Arbitrary(d), d, x_T)
        run(s, Arbitrary(d), d, seed=3)
        assert torch.equal(run(s, Arbitrary(d), d, x_T), first)

    def test_grid_falls_to_zero(self, sampler, degradation):
        d = degradations.build(degradation)
        steps = min(7, d.levels or 7)
        times = some(sampler, d, steps).times(d)
        assert times[-1] == 0
        assert len(times) == steps + 1
        assert all(a > b for a, b in itertools.pairwise(times))


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("name", degradations.available())
def test_algorithm_2_telescopes_for_a_constant_restorer(name, steps):
    """``x_0 = x_T - D(c, 1) + c`` for any operator, at every level or at a stride."""
    d = degradations.build(name)
    shape = shape_for(d)
    c, x_T, state = torch.rand(1, *shape[1:]), torch.randn(shape), state_of(d, shape)
    steps = steps or (None if (d.levels or 0) < 100 else 50)
    expected = x_T - d.forward(c.expand(shape), torch.ones(3), state) + c
    got = run(samplers.build("cold2", num_steps=steps), Constant(c, d), d, x_T, state)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


def test_algorithm_1_returns_the_last_estimate():
    d = degradations.build("blur")
    c = torch.rand(1, 1, 8, 8)
    assert torch.equal(run(samplers.build("cold1"), Constant(c, d), d), c.expand(SHAPE))


@pytest.mark.parametrize("name", degradations.available())
def test_algorithm_2_degrades_at_most_twice_a_step(name, monkeypatch):
    d = degradations.build(name)
    calls, degrade = [], type(d).degrade
    monkeypatch.setattr(type(d), "degrade", lambda *args: calls.append(args) or degrade(*args))
    x_T, state = torch.randn(shape_for(d)), state_of(d, shape_for(d))
    run(samplers.build("cold2", num_steps=3), Arbitrary(d), d, x_T, state)
    assert len(calls) <= 2 * 3


@pytest.mark.parametrize("steps", [20, 6])
def test_algorithm_2_never_changes_the_mean_of_a_circular_blur(steps):
    d = degradations.build("blur")
    x_T = torch.randn(3, 3, 16, 16)
    x_0 = run(samplers.build("cold2", num_steps=steps), Arbitrary(d), d, x_T)
    torch.testing.assert_close(x_0.mean((2, 3)), x_T.mean((2, 3)), atol=1e-6, rtol=0)
    assert (x_0 - x_T).abs().max() > 0.1


def test_algorithm_2_is_exact_where_d_is_linear_in_t():
    """``D(x, s) = x + s e``: the iterates are ``D(x0, s)`` whatever the restorer says (section 3.3 of the paper)."""

    class Drift(Degradation):
        levels = 10

        def draw(self, shape, rng):
            return State(e=rng.normal("e", shape))

        def degrade(self, x0, t, state):
            return x0 + t[:, None, None, None] * state["e"]

    d = Drift()
    x0, state = torch.rand(SHAPE), state_of(d, SHAPE)
    x_T = d.forward(x0, torch.ones(3), state)
    sampler = samplers.build("cold2")
    streams = Streams(0, (0, 1, 2))
    for frame in sampler.steps(Arbitrary(d), d, x_T, state, Context(), streams):
        expected = d.forward(x0, torch.full((3,), frame.step.s), state)
        torch.testing.assert_close(frame.x_s, expected, atol=1e-5, rtol=0)


def test_direct_and_residual_agree_with_an_inferred_state():
    d = degradations.build("gaussian")
    x_T = torch.randn(SHAPE)
    ddim = run(samplers.build("ddim", num_steps=20), Arbitrary(d), d, x_T)
    for move in (Direct(), Residual()):
        sampler = Sampler(UniformGrid(), Infer(), move, 20)
        torch.testing.assert_close(run(sampler, Arbitrary(d), d, x_T), ddim, atol=1e-4, rtol=1e-4)


def test_algorithm_2_with_kept_noise_is_another_sampler():
    d = degradations.build("gaussian")
    x_T, state = torch.randn(SHAPE), state_of(d, SHAPE)
    kept = run(Sampler(UniformGrid(), Keep(), Residual(), 10), Arbitrary(d), d, x_T, state)
    assert (kept - run(samplers.build("ddim", num_steps=10), Arbitrary(d), d, x_T, state)).abs().max() > 0.1


def textbook_ddim(x, restorer, d, times, eta, seed):
    """Song et al. 2020, equations 12 and 16, in alpha-bar notation and float64."""
    streams = Streams(seed, tuple(range(len(x))))
    x = x.double()
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        a_t, a_s = (d.schedule(torch.tensor([u], dtype=torch.float64))[0] ** 2 for u in (t, s))
        x0 = restorer(x.float(), torch.full((len(x),), t), None, state=State(z=x.float()), step=None).x0.double()
        eps = (x - a_t.sqrt() * x0) / (1 - a_t).sqrt()
        std = eta * ((1 - a_s) / (1 - a_t)).sqrt() * (1 - a_t / a_s).sqrt()
        noise = streams.at(i).normal("refresh", x.shape).double()
        x = a_s.sqrt() * x0 + (1 - a_s - std**2).clamp(min=0).sqrt() * eps + std * noise
    return x.float()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddim_is_the_papers(eta, schedule):
    d = degradations.build("gaussian", schedule=schedule)
    sampler = samplers.build("ddim", num_steps=25, eta=eta)
    x_T, restorer = torch.randn(SHAPE), AnalyticGaussian(0.3, 0.2, d)
    expected = textbook_ddim(x_T, restorer, d, sampler.times(d), eta, 0)
    torch.testing.assert_close(run(sampler, restorer, d, x_T), expected, atol=2e-4, rtol=0)


def textbook_ddpm(x, restorer, d, times, variance, seed):
    """Ho et al. 2020, equation 7 with the betas of the visited times."""
    streams = Streams(seed, tuple(range(len(x))))
    x = x.double()
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        a_t, a_s = (d.schedule(torch.tensor([u], dtype=torch.float64))[0] ** 2 for u in (t, s))
        beta = 1 - a_t / a_s
        x0 = restorer(x.float(), torch.full((len(x),), t), None, state=State(z=x.float()), step=None).x0.double()
        mean = a_s.sqrt() * beta / (1 - a_t) * x0 + (1 - beta).sqrt() * (1 - a_s) / (1 - a_t) * x
        small = (1 - a_s) / (1 - a_t) * beta
        std = (beta if variance == "large" else small).sqrt() if s > 0 else 0.0
        x = mean + std * streams.at(i).normal("refresh", x.shape).double()
    return x.float()


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_is_the_papers(variance):
    d = degradations.build("gaussian", schedule="linear")
    sampler = samplers.build("ddpm", num_steps=40, variance=variance)
    x_T, restorer = torch.randn(SHAPE), AnalyticGaussian(-0.2, 0.5, d)
    expected = textbook_ddpm(x_T, restorer, d, sampler.times(d), variance, 0)
    torch.testing.assert_close(run(sampler, restorer, d, x_T), expected, atol=3e-4, rtol=0)


def test_ddim_with_eta_one_is_ddpm():
    d = degradations.build("gaussian")
    x_T, restorer = torch.randn(SHAPE), AnalyticGaussian(0.1, 0.3, d)
    a, b = samplers.build("ddim", num_steps=15, eta=1.0), samplers.build("ddpm", num_steps=15)
    torch.testing.assert_close(run(a, restorer, d, x_T), run(b, restorer, d, x_T))


def test_ddim_follows_the_probability_flow():
    """The error against the exact flow halves with every doubling of the steps."""
    d = degradations.build("gaussian", schedule="linear")
    oracle = AnalyticGaussian(0.4, 0.25, d)
    x_T = torch.randn(SHAPE)
    exact = oracle.flow(x_T, torch.ones(3), torch.zeros(3))
    errors = [(run(samplers.build("ddim", num_steps=n), oracle, d, x_T) - exact).abs().max().item()
              for n in (50, 100, 200)]
    assert 1.7 < errors[0] / errors[1] < 2.4
    assert 1.7 < errors[1] / errors[2] < 2.4


def test_ancestral_samples_have_the_datas_mean_and_spread():
    d = degradations.build("gaussian", schedule="linear")
    x_T = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    oracle, streams = AnalyticGaussian(0.4, 0.25, d), Streams(0, tuple(range(64)))
    for sampler in (samplers.build("ddpm", num_steps=200), samplers.build("ddim", num_steps=200)):
        x = sampler.sample(oracle, d, x_T, State(z=x_T), Context(), streams)
        assert x.mean().item() == pytest.approx(0.4, abs=0.02)
        assert x.std().item() == pytest.approx(0.5, abs=0.02)


def test_exact_posterior_of_a_data_set_ends_on_its_images():
    d = degradations.build("gaussian")
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    x = run(samplers.build("ddim", num_steps=100), DataSet(images, d), d)
    distance = torch.cdist(x.flatten(1), images.flatten(1)).min(1).values
    assert (distance < 0.05).all()


class NoStreams(Streams):
    """Random numbers that must not be asked for."""

    def _rows(self, *_):
        raise AssertionError("a draw")


def test_deterministic_samplers_draw_nothing():
    d = degradations.build("gaussian")
    inputs = (Arbitrary(d), d, torch.randn(SHAPE), state_of(d, SHAPE), Context(), NoStreams(0, (0, 1, 2)))
    samplers.build("ddim", num_steps=5).sample(*inputs)
    with pytest.raises(AssertionError, match="a draw"):
        samplers.build("ddpm", num_steps=5).sample(*inputs)


class Flow(AnalyticGaussian):
    """The exact consistency function: where the probability flow ends from here."""

    def __call__(self, x_t, t, ctx, *, state, step, attn=None):
        x0 = self.flow(x_t, t, torch.zeros_like(t))
        return Estimate(x0, self.degradation.infer(x_t, x0, t, state))


class TestRenewal:
    @pytest.mark.parametrize("num_steps", [1, 2, 4])
    def test_a_consistency_function_keeps_the_datas_spread(self, num_steps):
        """In any number of steps, where DDIM widens the samples: its state is not independent of such an estimate."""
        d = degradations.build("gaussian", schedule="cosine")
        x_T = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        oracle, streams = Flow(0.4, 0.25, d), Streams(0, tuple(range(64)))
        x, other = (samplers.build(name, num_steps=num_steps).sample(oracle, d, x_T, State(z=x_T), Context(), streams)
                    for name in ("renew", "ddim"))
        assert x.mean().item() == pytest.approx(0.4, abs=0.02)
        assert x.std().item() == pytest.approx(0.5, abs=0.02)
        if num_steps > 1:
            assert other.std().item() > 0.55

    @pytest.mark.parametrize("name", degradations.available())
    def test_each_image_is_degraded_by_a_state_of_its_own(self, name):
        d = degradations.build(name)
        restorer, streams, shape = Arbitrary(d), Streams(5, (0, 1, 2)), shape_for(d)
        sampler, state = some("renew", d, 3), state_of(d, shape)
        frames = list(sampler.steps(restorer, d, torch.randn(shape), state, Context(), streams))
        for i, frame in enumerate(frames[:-1]):
            drawn = d.draw(shape, streams.at(i))
            s = torch.full((3,), frame.step.s)
            torch.testing.assert_close(frame.x_s, d.forward(frame.estimate.x0, s, drawn), rtol=0, atol=0)
        torch.testing.assert_close(frames[-1].x_s, frames[-1].estimate.x0, rtol=0, atol=1e-6)

    def test_the_last_step_draws_nothing(self):
        d = degradations.build("gaussian")
        inputs = (Arbitrary(d), d, torch.randn(SHAPE), state_of(d, SHAPE), Context(), NoStreams(0, (0, 1, 2)))
        samplers.build("renew", num_steps=1).sample(*inputs)
        with pytest.raises(AssertionError, match="a draw"):
            samplers.build("renew", num_steps=2).sample(*inputs)


class TestTemperature:
    @pytest.mark.parametrize(("name", "settings"), [("ddpm", {}), ("ddpm", {"variance": "large"}),
                                                    ("ddim", {"eta": 0.7})])
    def test_it_scales_the_noise_of_a_step_alone(self, name, settings):
        d = degradations.build("gaussian")
        x_T, state = torch.randn(SHAPE), state_of(d, SHAPE)

        def first(temperature):
            sampler = samplers.build(name, num_steps=5, temperature=temperature, **settings)
            frames = sampler.steps(Arbitrary(d), d, x_T, state, Context(), Streams(0, (0, 1, 2)))
            return next(frames).x_s

        cold, half, one = first(0.0), first(0.5), first(1.0)
        assert (one - cold).abs().mean() > 0.05
        torch.testing.assert_close(half - cold, (one - cold) / 2, atol=1e-6, rtol=1e-4)

    def test_colder_samples_are_nearer_to_the_mean(self):
        d = degradations.build("gaussian", schedule="linear")
        x_T = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        spreads = [samplers.build("ddpm", num_steps=50, temperature=temperature).sample(
            AnalyticGaussian(0.4, 0.25, d), d, x_T, State(z=x_T), Context(), Streams(0, tuple(range(64)))).std().item()
            for temperature in (1.0, 0.5, 0.0)]
        assert spreads[0] > 1.3 * spreads[1] > 1.3 * spreads[2]

    @pytest.mark.parametrize("temperature", [-1.0, math.inf, math.nan])
    def test_what_is_no_temperature_is_refused(self, temperature):
        with pytest.raises(UserError, match="temperature"):
            samplers.build("ddpm", temperature=temperature)


def test_wrong_pair_names_the_samplers_that_fit():
    blur = degradations.build("blur")
    with pytest.raises(UserError, match="sampler=cold1 or sampler=cold2"):
        run(samplers.build("ddim"), Arbitrary(blur), blur)
    mix = Affine(degradations.build("gaussian").schedule)
    with pytest.raises(UserError, match="Gaussian"):
        samplers.build("ddpm").check(mix)
    samplers.build("ddim").check(mix)


def test_eta_needs_gaussian_noise():
    assert samplers.build("ddim").requires is Affine
    assert samplers.build("ddim", eta=0.5).requires is Gaussian


def with_levels(levels):
    d = Degradation()
    d.levels = levels
    return d


class TestGrids:
    def test_trailing_is_the_papers(self):
        """``round(T - i T / N) - 1`` as indices from 0 (Lin et al. 2023, table 2)."""
        for n in (3, 7, 50, 1000):
            expected = [round(1000 - i * 1000 / n) for i in range(n)]
            assert [round(t * 1000) for t in UniformGrid()(n, with_levels(1000))[:-1]] == expected

    def test_leading_starts_below_the_end(self):
        assert [round(t * 1000) for t in LeadingGrid()(50, with_levels(1000))[:2]] == [981, 961]

    def test_levels_takes_all(self):
        assert LevelGrid()(None, with_levels(4)) == [1.0, 0.75, 0.5, 0.25, 0.0]
        assert LevelGrid()(None, with_levels(20), start=0.5)[0] == 0.5
        assert len(LevelGrid()(None, with_levels(20), start=0.5)) == 11

    def test_too_many_steps(self):
        with pytest.raises(UserError, match=r"num_steps=20"):
            LevelGrid()(50, with_levels(20))
        with pytest.raises(UserError, match="levels"):
            LevelGrid()(5, with_levels(None))
        with pytest.raises(UserError, match="start"):
            UniformGrid()(5, with_levels(20), start=0.0)

    @pytest.mark.parametrize("n", [1, 2, 13, 99, 100])
    @pytest.mark.parametrize("grid", ["uniform", "quadratic", "leading", "levels"])
    def test_every_grid_has_distinct_levels(self, grid, n):
        times = samplers.build("cold2", grid=grid, num_steps=n).times(degradations.build("blur", levels=100))
        assert len(times) == n + 1
        assert all(a > b for a, b in itertools.pairwise(times))
        assert all(abs(t * 100 - round(t * 100)) < 1e-9 for t in times)

    @pytest.mark.parametrize("n", [1, 2, 13, 99, 100])
    @pytest.mark.parametrize("grid", ["karras", "lambda"])
    @pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
    def test_grids_of_the_noise_level_keep_to_distinct_levels(self, grid, n, schedule):
        d = degradations.build("gaussian", schedule=schedule, **{"schedule.levels": 100})
        for start in (1.0, 0.5):
            times = samplers.build("ddim", grid=grid, num_steps=min(n, round(100 * start))).times(d, start)
            assert len(times) == min(n, round(100 * start)) + 1
            assert times[0] == start
            assert times[-1] == 0
            assert all(a > b for a, b in itertools.pairwise(times))
            assert all(abs(t * 100 - round(t * 100)) < 1e-9 for t in times)

    def test_karras_is_the_papers(self):
        """Equation 5 of 2206.00364 where sigma / alpha is the paper's sigma, ``80 t``."""
        d, n = Gaussian(AdditiveSchedule(80.0)), 18
        sigmas = [(80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(n)]
        assert [80 * t for t in KarrasGrid()(n, d)] == pytest.approx([*sigmas, 0], rel=1e-9)

    def test_lambda_has_equal_steps(self):
        d = degradations.build("gaussian", schedule="rectified")
        times = LambdaGrid(sigma_min=0.01)(12, d, 0.9)[:-1]
        steps = [math.log(t / (1 - t)) for t in times]
        assert [a - b for a, b in itertools.pairwise(steps)] == pytest.approx([math.log(9 / 0.01) / 11] * 11)

    @pytest.mark.parametrize("grid", [KarrasGrid, LambdaGrid])
    def test_from_pure_noise_the_first_step_goes_to_sigma_max(self, grid):
        """Sigma / alpha has no greatest value there; on the straight schedule it is ``t / (1 - t)``."""
        d = degradations.build("gaussian", schedule="rectified")
        first, second, *_, last, end = grid(sigma_min=0.01, sigma_max=50.0)(10, d)
        assert (first, end) == (1, 0)
        assert (second / (1 - second), last / (1 - last)) == pytest.approx((50, 0.01))
        assert grid()(1, d) == [1, 0]

    def test_what_a_grid_of_the_noise_level_refuses(self):
        straight, blur = degradations.build("gaussian", schedule="rectified"), degradations.build("blur")
        with pytest.raises(UserError, match=r"(?s)KarrasGrid with the degradation Blur.*Affine.*grid=uniform"):
            samplers.build("cold2", grid="karras").times(blur)
        with pytest.raises(UserError, match="num_steps"):
            LambdaGrid()(None, straight)
        with pytest.raises(UserError, match="more noise than the end"):
            LambdaGrid()(5, straight, 0.001)
        with pytest.raises(UserError, match="sigma_min < sigma_max"):
            KarrasGrid(sigma_min=1.0, sigma_max=0.5)
        with pytest.raises(UserError, match=r"power=7\.0"):
            KarrasGrid(power=0.0)


class TestCallbacks:
    def test_before_and_after_may_replace(self):
        class Spy(Callback):
            def __init__(self):
                self.seen = []

            def before(self, frame):
                self.seen.append(frame.step.t)
                frame.x_t = frame.x_t * 0

            def after(self, frame):
                frame.x_s = frame.x_s + 1

        d, spy = degradations.build("blur", levels=4), Spy()
        x = run(samplers.build("cold1"), Constant(torch.zeros(1, 1, 8, 8), d), d, callbacks=[spy])
        assert spy.seen == [1.0, 0.75, 0.5, 0.25]
        assert torch.equal(x, torch.ones(SHAPE))

    def test_gradients_on_request_only(self):
        class Gradient(Callback):
            needs_grad = True

            def after(self, frame):
                (grad,) = torch.autograd.grad(frame.estimate.x0.square().sum(), frame.x_t)
                assert grad.abs().sum() > 0

        d = degradations.build("gaussian")
        x = run(samplers.build("ddim", num_steps=3), Arbitrary(d), d, callbacks=[Gradient()])
        assert not x.requires_grad

    def test_memory_is_new_for_each_run(self):
        class Counting(Arbitrary):
            def __call__(self, x_t, t, ctx, *, state, step, attn=None):
                step.memory["calls"] = step.memory.get("calls", 0) + 1
                assert step.memory["calls"] == step.i + 1
                return super().__call__(x_t, t, ctx, state=state, step=step)

        d = degradations.build("gaussian")
        for _ in range(2):
            run(samplers.build("ddim", num_steps=3), Counting(d), d)

    def test_state_and_condition_are_handed_on(self):
        """What a belief makes of the state, and a condition that was exchanged once, last until the end."""

        class Count(Belief):
            def __call__(self, estimate, given, step, degradation):
                return State(n=given["n"] + 1)

        class Exchange(Callback):
            def before(self, frame):
                if frame.step.i == 1:
                    frame.ctx = late

        d, late = degradations.build("blur", levels=4), Context(emb=torch.ones(3, 2))
        steps = Sampler(LevelGrid(), Count(), Direct()).steps(
            Arbitrary(d), d, torch.randn(SHAPE), State(n=torch.zeros(3)), Context(), Streams(0, (0, 1, 2)),
            callbacks=[Exchange()])
        frames = [(frame.state["n"][0].item(), frame.ctx is late) for frame in steps]
        assert frames == [(1, False), (2, True), (3, True), (4, True)]
