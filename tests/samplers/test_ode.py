"""Solvers of the probability flow: orders, exactness, and what they are the same as."""

import pytest
import torch
from oracles import AnalyticGaussian, Arbitrary, Constant, state_of

import degradations
import samplers
from configs import UserError
from degradations.randomness import Streams
from models.context import Context
from samplers.grids import UniformGrid
from samplers.ode import DPMSolver, Heun, Inversion

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


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "ddim"])
def test_a_constant_image_is_exact_at_every_step(name, d, x):
    """If x0_hat never changes, every x_s lies on the flow: ``alpha_s c + sigma_s (x_T - alpha_T c) / sigma_T``."""
    c = torch.full((1, 1, 1, 1), 0.3)
    z = d.infer(x, c.expand(SHAPE), torch.ones(3), state_of(d, SHAPE))
    frames = samplers.build(name, num_steps=6).steps(Constant(c, d), d, x, state_of(d, SHAPE), Context(),
                                                     Streams(0, (0, 1, 2)))
    for frame in frames:
        expected = d.forward(c.expand(SHAPE), torch.full((3,), frame.step.s), z)
        torch.testing.assert_close(frame.x_s, expected, atol=1e-5, rtol=0)


def errors(make, schedule, x, numbers, start=0.9):
    d = degradations.build("gaussian", schedule=schedule)
    oracle = AnalyticGaussian(0.4, 0.25, d)
    exact = oracle.flow(x, torch.full((3,), start), torch.zeros(3))
    return [(run(make(n), oracle, d, x, start=start) - exact).abs().max().item() for n in numbers]


@pytest.mark.parametrize(("make", "order"), [(lambda n: DPMSolver(UniformGrid(), n, 1), 1),
                                             (lambda n: DPMSolver(UniformGrid(), n, 2), 2),
                                             (lambda n: Heun(UniformGrid(), n), 2)], ids=["dpm1", "dpm2", "heun"])
def test_the_order(make, order, x):
    """Doubling the steps divides the error of the analytic flow by 2 or by 4."""
    first, second, third = errors(make, "rectified", x, (40, 80, 160))
    low, high = (1.7, 2.4) if order == 1 else (2.8, 5.5)
    assert low < first / second < high
    assert low < second / third < high


def test_second_order_is_nearer(x):
    (ddim,), (multistep,), (heun,) = (errors(make, "linear", x, (50,), 1.0) for make in (
        lambda n: samplers.build("ddim", num_steps=n), lambda n: DPMSolver(UniformGrid(), n),
        lambda n: Heun(UniformGrid(), n)))
    assert multistep < 0.1 * ddim
    assert heun < 0.5 * ddim


def test_evaluations(x):
    d, calls = degradations.build("gaussian"), []

    class Counting(Arbitrary):
        def __call__(self, x_t, t, ctx, *, state, step, attn=None):
            calls.append((step.i, t[0].item()))
            return super().__call__(x_t, t, ctx, state=state, step=step)

    for name, expected in (("euler", 5), ("dpmpp_2m", 5), ("heun", 9)):
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
    with pytest.raises(UserError, match=r"sampler\.order=2"):
        samplers.build("dpmpp_2m", order=3)
    with pytest.raises(UserError, match="Affine"):
        samplers.build("heun").check(degradations.build("blur"))
