"""What the output means: round trips and identities of the loss (invariant 12)."""

import pytest
import torch
from oracles import state_of

import degradations
from configs import UserError
from degradations.shapes import expand_like, flatten_rows
from diffusion.objectives.parameterization import X0, Eps, Flow, V

SHAPE = (4, 1, 6, 6)
ALL = {"x0": X0(), "eps": Eps(), "v": V(), "flow": Flow()}


@pytest.fixture(params=["linear", "rectified"])
def sample(request):
    d = degradations.build("gaussian", schedule=request.param)
    x0, t = torch.randn(SHAPE, dtype=torch.float64), torch.tensor([0.1, 0.4, 0.7, 0.95])
    state = state_of(d, SHAPE).map(torch.Tensor.double)
    return d, x0, t, state, d.forward(x0, t, state)


@pytest.mark.parametrize("name", ALL)
def test_the_target_stands_for_the_image(name, sample):
    d, x0, t, state, x_t = sample
    p = ALL[name]
    torch.testing.assert_close(p.x0(p.target(x0, t, state, d), x_t, t, d), x0, atol=1e-10, rtol=0)


def losses(p, sample):
    """Squared errors of an answer and of the image that it stands for."""
    d, x0, t, state, x_t = sample
    out = p.target(x0, t, state, d) + 0.1 * torch.randn(SHAPE, dtype=torch.float64)
    errors = out - p.target(x0, t, state, d), p.x0(out, x_t, t, d) - x0
    return tuple(flatten_rows(error**2).mean(1) for error in errors)


@pytest.mark.parametrize("name", ALL)
def test_scale_is_the_size_of_the_error_of_x0(name, sample):
    d, t = sample[0], sample[2]
    loss, loss_x0 = losses(ALL[name], sample)
    torch.testing.assert_close(ALL[name].scale(*d.schedule(t)) ** 2 * loss, loss_x0, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "factor"), [("eps", lambda snr: snr), ("v", lambda snr: snr + 1)])
@pytest.mark.parametrize("sample", ["linear"], indirect=True)
def test_errors_are_the_error_of_x0_times_a_function_of_snr(name, factor, sample):
    """``L_eps = SNR L_x0`` and ``L_v = (SNR + 1) L_x0`` for the same network output."""
    loss, loss_x0 = losses(ALL[name], sample)
    torch.testing.assert_close(loss, factor(sample[0].schedule.snr(sample[2])) * loss_x0, rtol=1e-9, atol=0)


def test_guidance_commutes_with_the_parameterization(sample):
    d, _x0, t, _state, x_t = sample
    a, b = torch.randn(2, *SHAPE, dtype=torch.float64)
    for p in ALL.values():
        mixed = p.x0(b + 3 * (a - b), x_t, t, d)
        torch.testing.assert_close(mixed, p.x0(b, x_t, t, d) + 3 * (p.x0(a, x_t, t, d) - p.x0(b, x_t, t, d)))


@pytest.mark.parametrize("schedule", ["zero_snr", "rectified"])
def test_v_and_flow_are_defined_at_pure_noise(schedule):
    d = degradations.build("gaussian", schedule=schedule)
    x0, state, one = torch.randn(SHAPE), state_of(d, SHAPE), torch.ones(4)
    for p, expected in ((V(), -x0), (Flow(), state["z"] - x0)):
        p.check(d)
        target = p.target(x0, one, state, d)
        torch.testing.assert_close(target, expected)
        torch.testing.assert_close(p.x0(target, state["z"], one, d), x0)
    with pytest.raises(UserError, match="parameterization=v"):
        Eps().check(d)


def test_cold_operators_have_x0_only():
    blur = degradations.build("blur")
    X0().check(blur)
    for p in (Eps(), V(), Flow()):
        with pytest.raises(UserError, match="parameterization=x0"):
            p.check(blur)


def test_score_is_the_gradient_of_the_log_density():
    """For Gaussian data the score of the marginal is known."""
    d = degradations.build("gaussian", schedule="linear")
    mu, nu, t = 0.3, 0.5, torch.tensor([0.2, 0.8])
    x_t = torch.randn(2, 1, 4, 4, requires_grad=True)
    alpha, sigma = d.coefficients(t, x_t)
    variance = alpha**2 * nu + sigma**2
    density = -((x_t - alpha * mu) ** 2 / (2 * variance)).sum()
    (expected,) = torch.autograd.grad(density, x_t)
    x0_hat = mu + alpha * nu * (x_t - alpha * mu) / variance
    torch.testing.assert_close(d.score(x0_hat, x_t, t), expected, atol=1e-4, rtol=1e-3)
    assert expand_like(t, x_t).shape == (2, 1, 1, 1)
