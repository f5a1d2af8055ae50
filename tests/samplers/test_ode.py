"""Solvers of the probability flow: orders, exactness, and what they are the same as."""

from itertools import pairwise, product
from math import atan, inf, log2, sqrt, tan

import pytest
import torch
from oracles import AnalyticGaussian, Arbitrary, Constant, state_of

import degradations
import samplers
from configs import UserError
from degradations.affine import Affine
from degradations.gaussian import Gaussian
from degradations.randomness import Streams
from degradations.schedules import AdditiveSchedule, LinearSchedule, RectifiedSchedule
from models.context import Context
from samplers.grids import KarrasGrid, UniformGrid
from samplers.ode import DPMSolver, Heun, HeunX0, Inversion

SHAPE = (3, 1, 8, 8)


def run(sampler, restorer, d, x, **arguments):
    state, streams = state_of(d, SHAPE), Streams(0, (0, 1, 2))
    return sampler.sample(restorer, d, x, state, Context(), streams, **arguments)


@pytest.fixture
def x():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["linear", "cosine", "rectified", "zero_snr"])
def d(request):
    return degradations.build("gaussian", schedule=request.param)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_first_order_is_ddim(name, d, x):
    sampler = samplers.build(name, num_steps=12, **({"order": 1} if name == "dpmpp_2m" else {}))
    torch.testing.assert_close(run(sampler, Arbitrary(d), d, x),
                               run(samplers.build("ddim", num_steps=12), Arbitrary(d), d, x))


@pytest.mark.parametrize("name", ["euler", "heun", "heun_x0", "dpmpp_2m", "ddim"])
def test_a_constant_image_is_exact_at_every_step(name, d, x):
    """If x0_hat never changes, every x_s lies on the flow: ``alpha_s c + sigma_s (x_T - alpha_T c) / sigma_T``."""
    c = torch.full((1, 1, 1, 1), 0.3)
    z = d.infer(x, c.expand(SHAPE), torch.ones(3), state_of(d, SHAPE))
    frames = samplers.build(name, num_steps=6).steps(Constant(c, d), d, x, state_of(d, SHAPE), Context(),
                                                     Streams(0, (0, 1, 2)))
    alpha, sigma = d.schedule(torch.tensor([1, 5 / 6]))
    weight = alpha[1] * sigma[0] / alpha[0] / 2  # by which the trapezoid over rho magnifies what z is rounded by
    atol = 1e-5 + 5e-7 * weight.item() if name == "heun" and alpha[0] > 0 else 1e-5
    for frame in frames:
        expected = d.forward(c.expand(SHAPE), torch.full((3,), frame.step.s), z)
        torch.testing.assert_close(frame.x_s, expected, atol=atol, rtol=0)


def errors(make, schedule, x, numbers, start=1.0, variance=0.25):
    """Root mean square distances to the end of the exact flow."""
    d = degradations.build("gaussian", schedule=schedule)
    oracle = AnalyticGaussian(0.4, variance, d)
    exact = oracle.flow(x, torch.full((3,), start), torch.zeros(3))
    return [(run(make(n), oracle, d, x, start=start) - exact).square().mean().sqrt().item() for n in numbers]


def by_name(name, **settings):
    return lambda n: samplers.build(name, num_steps=n, **settings)


@pytest.mark.parametrize(("make", "order"), [(lambda n: DPMSolver(UniformGrid(), n, 1), 1),
                                             (lambda n: DPMSolver(UniformGrid(), n, 2), 2),
                                             (lambda n: Heun(UniformGrid(), n), 2),
                                             (lambda n: HeunX0(UniformGrid(), n), 2)],
                         ids=["dpm1", "dpm2", "heun", "heun_x0"])
def test_the_order(make, order, x):
    """Doubling the steps divides the error of the analytic flow by 2 or by 4."""
    first, second, third = errors(make, "rectified", x, (40, 80, 160), 0.9)
    low, high = (1.7, 2.4) if order == 1 else (2.8, 5.5)
    assert low < first / second < high
    assert low < second / third < high


@pytest.mark.parametrize("grid", ["karras", "lambda"])
@pytest.mark.parametrize(("name", "schedule"), [*product(["heun", "heun_x0", "dpmpp_2m"], ["rectified", "linear"]),
                                                ("heun_x0", "cosine"), ("dpmpp_2m", "cosine")])
def test_second_order_over_the_whole_run(name, schedule, grid, x):
    """From t = 1 to 0, on the grids of the noise level: the error at N, 2 N and 4 N steps falls with the exponent 2."""
    first, second, third = errors(by_name(name, grid=grid), schedule, x, (20, 40, 80))
    assert 1.8 < log2(first / second) < 2.5
    assert 1.8 < log2(second / third) < 2.5


def test_equal_steps_in_t_cost_the_order(x):
    for name in ("heun", "heun_x0", "dpmpp_2m"):
        first, second = errors(by_name(name), "rectified", x, (20, 40))
        assert log2(first / second) < 1.8


@pytest.mark.parametrize("name", ["heun", "heun_x0", "dpmpp_2m"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_fine_detail_needs_the_grids_of_the_noise_level(name, schedule, x):
    """Of the deviations of data of std 0.1, what is lost in 20 steps."""
    even, karras, lamb = (errors(by_name(name, grid=grid), schedule, x, (20,), variance=0.01)[0] / 0.1
                          for grid in ("uniform", "karras", "lambda"))
    assert even > 0.15
    assert karras < 0.08
    assert lamb < 0.05


def test_second_order_is_nearer(x):
    ddim, multistep, heun, image = (errors(by_name(name), "linear", x, (50,))[0]
                                    for name in ("ddim", "dpmpp_2m", "heun", "heun_x0"))
    assert multistep < 0.1 * ddim
    assert image < 0.5 * ddim
    assert heun < 0.6 * image


@pytest.mark.parametrize(("schedule", "better", "factor"), [
    ("linear", "heun", 1.4), ("zero_snr", "heun", 1.4), ("rectified", "heun", 5), ("cosine", "heun_x0", 10),
    ("sigmoid", "heun_x0", 5)])
def test_which_trapezoid_is_nearer(schedule, better, factor, x):
    """That over sigma / alpha, unless the schedule ends in nearly pure noise: what docs/guidance.md says."""
    (worse,) = {"heun", "heun_x0"} - {better}
    near, far = (errors(by_name(name), schedule, x, (10, 20, 40)) for name in (better, worse))
    assert all(factor * a < b for a, b in zip(near, far))


def edm(denoise, sigmas, y, noise, churn, low, high, spread, nearest):
    """Algorithm 2 of Karras et al. 2022 line by line, with their sigma, in float64; ``nearest`` is ``round_sigma``."""
    n = len(sigmas) - 1
    for i, (now, after) in enumerate(pairwise(sigmas)):
        gamma = min(churn / n, sqrt(2) - 1) if low <= now <= high else 0
        up = max(now, nearest(now + gamma * now))
        y = y + (up**2 - now**2) ** 0.5 * spread * noise(i)
        slope = (y - denoise(y, up)) / up
        begin, y = y, y + (after - up) * slope
        if after != 0:
            y = begin + (after - up) * (slope + (y - denoise(y, after)) / after) / 2
    return y


@pytest.mark.parametrize(("schedule", "start"), [(RectifiedSchedule(), 0.98), (AdditiveSchedule(80.0), 1.0),
                                                 (LinearSchedule(), 1.0), (LinearSchedule(), 0.7)],
                         ids=["rectified", "additive", "linear", "linear-later"])
@pytest.mark.parametrize(("churn", "low", "high", "spread"), [(0.0, 0.0, None, 1.0), (3.0, 0.0, None, 1.0),
                                                              (40.0, 0.1, 20.0, 1.01)])
def test_heun_is_the_papers(schedule, start, churn, low, high, spread, x):
    d = Gaussian(schedule)
    sampler = Heun(KarrasGrid(sigma_max=200.0), 20, S_churn=churn, S_min=low, S_max=high, S_noise=spread)
    t = torch.tensor(sampler.times(d, start), dtype=torch.float64)
    sigmas = (d.schedule(t)[1] / d.schedule(t)[0]).tolist()

    levels = d.schedule(torch.arange(1001, dtype=torch.float64) / 1000)
    angles = torch.atan2(levels[1], levels[0])  # even between two levels

    def nearest(sigma):
        """On the nearest level, if there are levels; t = 1 is the end."""
        if d.levels is None:
            return min(sigma, tan(angles[-1]))
        above = min(int(torch.searchsorted(angles, atan(sigma))), 1000)
        share = (atan(sigma) - angles[above - 1]) / (angles[above] - angles[above - 1])
        return tan(angles[above if share > 0.5 else above - 1])

    streams = Streams(0, (0, 1, 2))
    expected = edm(lambda y, sigma: (0.25 * y + 0.4 * sigma**2) / (0.25 + sigma**2), sigmas,
                   x.double() / d.schedule(t[:1])[0], lambda i: streams.at(i).normal("churn", SHAPE).double(),
                   churn, low, inf if high is None else high, spread, nearest)
    oracle = AnalyticGaussian(0.4, 0.25, d)
    torch.testing.assert_close(run(sampler, oracle, d, x, start=start).double(), expected, atol=2e-4, rtol=0)
    if churn:
        without = run(Heun(sampler.grid, 20), oracle, d, x, start=start)
        assert (expected - without).abs().max() > 0.1


@pytest.mark.parametrize(("name", "churn"), [("heun", 30.0), ("heun_x0", 10.0)])
@pytest.mark.parametrize("schedule", ["rectified", "linear"])
def test_churn_keeps_the_law(name, churn, schedule):
    """With the exact posterior mean, the samples have the mean and the variance of the data, and more variance for
    noise of std above 1: 20,480 independent values, whose std is known to 0.5 percent."""
    d, streams = degradations.build("gaussian", schedule=schedule), Streams(1, tuple(range(5)))
    state = d.draw((5, 1, 64, 64), streams)

    def sample(**settings):
        sampler = samplers.build(name, num_steps=60, grid="lambda", **settings)
        return sampler.sample(AnalyticGaussian(0.4, 0.25, d), d, state["z"], state, Context(), streams)

    still, churned, louder = sample(), sample(S_churn=churn), sample(S_churn=churn, S_noise=1.1)
    assert abs(churned.mean() - 0.4) < 0.02
    assert abs(churned.std() - 0.5) < 0.0125
    assert louder.std() > 1.03 * churned.std()
    together = torch.corrcoef(torch.stack([still.flatten(), churned.flatten()]))[0, 1]
    assert together < 0.3, "most of the noise is new"


@pytest.mark.parametrize("name", ["heun", "heun_x0"])
def test_no_churn_is_bitwise_none(name, d, x):
    plain = run(samplers.build(name, num_steps=8), Arbitrary(d), d, x)
    for none in ({"S_churn": 0.0, "S_noise": 1.01}, {"S_churn": 5.0, "S_max": 1e-4}, {"S_churn": 5.0, "S_min": 1e5}):
        assert torch.equal(run(samplers.build(name, num_steps=8, **none), Arbitrary(d), d, x), plain)
    churned = run(samplers.build(name, num_steps=8, S_churn=4.0), Arbitrary(d), d, x)
    assert churned.isfinite().all()
    assert not torch.equal(churned, plain)


def test_churn_is_keyed_by_sample(d, x):
    sampler = samplers.build("heun_x0", num_steps=6, S_churn=4.0)
    whole = run(sampler, Arbitrary(d), d, x)
    alone = sampler.sample(Arbitrary(d), d, x[2:], state_of(d, SHAPE).rows(slice(2, 3)), Context(), Streams(0, (2,)))
    torch.testing.assert_close(alone, whole[2:], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["rectified", "zero_snr"])
def test_the_step_from_pure_noise_is_eulers(schedule, x):
    d = degradations.build("gaussian", schedule=schedule)
    first = {name: next(samplers.build(name, num_steps=5).steps(
        Arbitrary(d), d, x, state_of(d, SHAPE), Context(), Streams(0, (0, 1, 2)))).x_s
        for name in ("euler", "heun", "heun_x0")}
    torch.testing.assert_close(first["heun"], first["euler"], atol=0, rtol=0)
    assert (first["heun_x0"] - first["euler"]).abs().max() > 1e-4


def test_evaluations(x):
    d, calls = degradations.build("gaussian"), []

    class Counting(Arbitrary):
        def __call__(self, x_t, t, ctx, *, state, step, attn=None):
            calls.append((step.i, t[0].item()))
            return super().__call__(x_t, t, ctx, state=state, step=step)

    for name, expected in (("euler", 5), ("dpmpp_2m", 5), ("heun_x0", 9), ("heun", 9)):
        calls.clear()
        run(samplers.build(name, num_steps=5), Counting(d), d, x)
        assert len(calls) == expected
    assert [i for i, _ in calls] == [0, 0, 1, 1, 2, 2, 3, 3, 4], "both evaluations belong to the step"


def test_what_multistep_remembers_is_of_one_run(x):
    d = degradations.build("gaussian")
    sampler = samplers.build("dpmpp_2m", num_steps=5)
    first = run(sampler, Arbitrary(d), d, x)
    run(sampler, Arbitrary(d), d, x + 1)
    assert torch.equal(run(sampler, Arbitrary(d), d, x), first)


@pytest.mark.parametrize("schedule", ["linear", "rectified"])
def test_inversion_and_back(schedule, x):
    """The error of the way up and down halves as the steps double."""
    d = degradations.build("gaussian", schedule=schedule)
    oracle, x0 = AnalyticGaussian(0.2, 0.3, d), x.tanh()
    distance = []
    for n in (50, 100, 200):
        up = run(Inversion(UniformGrid(), n), oracle, d, x0, start=0.9)
        down = run(samplers.build("ddim", num_steps=n), oracle, d, up, start=0.9)
        distance.append((down - x0).abs().max().item())
    assert 1.7 < distance[0] / distance[1] < 2.3
    assert 1.7 < distance[1] / distance[2] < 2.3
    exact = oracle.flow(x0, torch.zeros(3), torch.full((3,), 0.9))
    assert (up - exact).abs().max() < 0.1


def test_inversion_visits_rising_times(x):
    d = degradations.build("gaussian")
    frames = Inversion(UniformGrid(), 4).steps(Arbitrary(d), d, x, state_of(d, SHAPE), Context(), Streams(0, (0, 1, 2)))
    assert [(f.step.t, f.step.s) for f in frames] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)]


def test_mistakes():
    for wrong, words in (({"S_churn": -1.0}, "S_churn=-1"), ({"S_noise": -1.0}, "S_noise=-1"),
                         ({"S_min": 2.0, "S_max": 1.0}, r"sampler\.S_max=null")):
        with pytest.raises(UserError, match=words):
            samplers.build("heun", **wrong)
    assert samplers.build("heun").requires is Affine
    assert samplers.build("heun", S_churn=1.0).requires is Gaussian
    with pytest.raises(UserError, match=r"sampler\.order=2"):
        samplers.build("dpmpp_2m", order=3)
    with pytest.raises(UserError, match="Affine"):
        samplers.build("heun").check(degradations.build("blur"))
