"""Flow matching is one more setting: the straight schedule and a target, with the samplers that are there."""

import pytest
import torch
from oracles import AnalyticGaussian, DataSet, state_of

import degradations
import samplers
from configs import UserError
from degradations.base import State
from degradations.randomness import Streams
from degradations.shapes import expand_like
from diffusion.objectives.evaluator import NetworkRestorer
from diffusion.objectives.parameterization import Flow
from models.context import Context

SHAPE = (3, 1, 8, 8)


@pytest.fixture
def straight():
    return degradations.build("gaussian", schedule="rectified")


def frames(sampler, restorer, d, x_T, seed=0, start=1.0):
    return list(sampler.steps(restorer, d, x_T, State(z=x_T), Context(), Streams(seed, tuple(range(len(x_T)))),
                              start=start))


def velocity(x, t, ctx, attn=None):
    """A network that answers with something of x and t."""
    return torch.sin(3 * x) * (0.5 + expand_like(t, x)) - x


@pytest.mark.parametrize("start", [1.0, 0.6])
def test_ddim_is_euler_on_the_ode(straight, start):
    """``x_s = x_t + (s - t) u(x_t, t)``, step by step."""
    restorer = NetworkRestorer(velocity, straight, Flow())
    for frame in frames(samplers.build("ddim", num_steps=7), restorer, straight, torch.randn(SHAPE), start=start):
        t, s = frame.step.t, frame.step.s
        u = velocity(frame.x_t, torch.full((3,), t), None)
        torch.testing.assert_close(frame.x_s, frame.x_t + (s - t) * u, atol=2e-6, rtol=1e-5)


def test_the_target_is_the_velocity_of_the_path(straight):
    x0, state = torch.randn(SHAPE, dtype=torch.float64), state_of(straight, SHAPE).map(torch.Tensor.double)
    t, h = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), 1e-6
    slope = (straight.forward(x0, t + h, state) - straight.forward(x0, t - h, state)) / (2 * h)
    torch.testing.assert_close(Flow().target(x0, t, state, straight), slope, atol=1e-8, rtol=1e-6)


def test_a_gaussian_is_reached_along_the_exact_flow(straight):
    """The error halves with every doubling of the steps, from pure noise to sigma = 0."""
    oracle, x_T = AnalyticGaussian(0.4, 0.25, straight), torch.randn(SHAPE)
    exact = oracle.flow(x_T, torch.ones(3), torch.zeros(3))
    torch.testing.assert_close(exact, 0.4 + 0.5 * x_T)
    errors = [(frames(samplers.build("ddim", num_steps=n), oracle, straight, x_T)[-1].x_s - exact).abs().max().item()
              for n in (50, 100, 200)]
    assert 1.7 < errors[0] / errors[1] < 2.4
    assert 1.7 < errors[1] / errors[2] < 2.4


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_samples_have_the_datas_mean_and_spread(straight, name):
    x_T = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    x = frames(samplers.build(name, num_steps=150), AnalyticGaussian(0.4, 0.25, straight), straight, x_T)[-1].x_s
    assert x.mean().item() == pytest.approx(0.4, abs=0.02)
    assert x.std().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("name", "grid"), [("ddim", "uniform"), ("ddim", "quadratic"), ("ddpm", "uniform")])
def test_the_exact_posterior_of_a_data_set_ends_on_its_images(straight, name, grid):
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    x = frames(samplers.build(name, num_steps=60, grid=grid), DataSet(images, straight), straight,
               torch.randn(SHAPE))[-1].x_s
    assert (torch.cdist(x.flatten(1), images.flatten(1)).min(1).values < 0.05).all()


def test_there_are_no_levels(straight):
    with pytest.raises(UserError, match="num_steps=50"):
        samplers.build("ddpm").times(straight)
    with pytest.raises(UserError, match="grid=uniform"):
        samplers.build("ddim", grid="levels").times(straight)
