"""Measurements: adjoint, singular values and pseudo-inverse of every linear degradation that there is."""

from dataclasses import replace

import pytest
import torch
from oracles import Perfect

from configs import UserError, registry
from degradations.compose import Compose
from degradations.measurement import Measurement
from degradations.randomness import Streams
from diffusion.priors import MeasuredPrior
from models.context import Context

SHAPE = (3, 16, 16)
NAMES = [name for name in registry.available("degradation") if registry.node("degradation", name)]


def measurement(name: str, t0: float = 1.0, noise: float = 0.0, n: int = 3) -> Measurement:
    degradation = registry.build("degradation", name)
    if not (degradation.affine_in_x0 and degradation.pixels):
        pytest.skip(f"{name} is not linear in the pixels")
    return Measurement(degradation, t0, degradation.draw((n, *SHAPE), Streams(0, tuple(range(n)))), noise, SHAPE)


def random(name: str, shape, dtype=torch.float64):
    return Streams(1, tuple(range(shape[0]))).normal(name, shape).to(dtype)


@pytest.mark.parametrize("t0", [0.5, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_adjoint(name, t0):
    known = measurement(name, t0)
    x = random("x", (3, *SHAPE))
    y = known.apply(x)
    u = random("u", y.shape)
    left, right = (y * u).flatten(1).sum(1), (x * known.adjoint(u)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("t0", [0.5, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_decomposition(name, t0):
    known = measurement(name, t0)
    found = known.known_decomposition
    if found is None:
        pytest.skip(f"the singular values of {name} are not known")
    x = random("x", (3, *SHAPE), torch.float32)
    y = known.apply(x)
    torch.testing.assert_close(found.u(found.values * found.vt(x)), y, atol=2e-5, rtol=0)
    torch.testing.assert_close(found.v(found.vt(x)), x, atol=2e-5, rtol=0)
    u = random("u", y.shape, torch.float32)
    torch.testing.assert_close(found.v(found.values * found.ut(u)), known.adjoint(u), atol=2e-5, rtol=0)
    # A A^+ A = A, where A^+ leaves out what is hardly measured: at most CUT of the greatest value is lost.
    again = known.apply(known.invert(y))
    lost = found.u(torch.where(found.measured, 0, found.values) * found.vt(x))
    torch.testing.assert_close(again, y - lost, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_residual_of_the_truth_is_the_noise(name):
    known = measurement(name, noise=0.1)
    x0 = random("x0", (3, *SHAPE), torch.float32)
    rng = Streams(2, (0, 1, 2))
    known = known.measure(x0, rng)
    t = torch.ones(3)
    n = known.degradation.observe(rng.normal("measurement", x0.shape), t, known.state)
    torch.testing.assert_close(known.residual(x0), 0.1 * n, atol=1e-5, rtol=0)
    assert known.show().shape == x0.shape
    alone = known.rows(slice(1, 2))
    torch.testing.assert_close(alone.residual(x0[1:2]), known.residual(x0)[1:2], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["snow", "gaussian"])
def test_what_is_no_measurement_is_refused(name):
    degradation = registry.build("degradation", name)
    with pytest.raises(UserError, match=type(degradation).__name__):
        Measurement(degradation, 1.0, degradation.draw((1, *SHAPE), Streams(0, (0,))), 0.0, SHAPE)


@pytest.mark.parametrize(("t0", "noise"), [(0.0, 0.0), (1.5, 0.0), (1.0, -0.1), (1.0, float("nan"))])
def test_times_and_noises_that_mean_nothing_are_refused(t0, noise):
    with pytest.raises(UserError, match="task"):
        measurement("blur", t0, noise)


def begin(degradation, known, x0, prior=None):
    return (prior or MeasuredPrior()).begin(x0.shape, degradation, Streams(5, (0, 1, 2)), None, [1.0],
                                            Perfect(x0, degradation), Context(), known)


@pytest.mark.parametrize("name", NAMES)
def test_a_cold_model_begins_with_what_was_measured(name):
    """It is the degraded image with the measurement's own state, whatever is drawn otherwise."""
    known, x0 = measurement(name), random("x0", (3, *SHAPE), torch.float32)
    x_T, state, pivots = begin(known.degradation, known.measure(x0, Streams(2, (0, 1, 2))), x0)
    t = torch.ones(3)
    # Of a soft hole, what is hardly visible counts as not measured.
    torch.testing.assert_close(x_T, known.degradation.forward(x0, t, known.state), atol=5e-3, rtol=0)
    torch.testing.assert_close(known.degradation.forward(x0, t, state), x_T, atol=5e-3, rtol=0)
    assert not pivots


def test_a_cold_model_sees_the_colour_of_a_hole():
    known = measurement("inpaint_box")
    black = registry.build("degradation", "inpaint_box", value=-1.0)
    known = replace(known, degradation=black)
    x0 = random("x0", (3, *SHAPE), torch.float32)
    x_T, state, _ = begin(black, known.measure(x0, Streams(2, (0, 1, 2))), x0)
    torch.testing.assert_close(x_T, black.forward(x0, torch.ones(3), state), atol=1e-6, rtol=0)
    assert (x_T == -1).any()


def test_a_cold_model_of_several_degradations():
    """The hole is that of the measurement, the noise its own; a measurement of none of them is refused."""
    known = measurement("inpaint_pixels", noise=0.05)
    noise = registry.build("degradation", "gaussian", schedule="additive")
    several, x0 = Compose({"noise": noise, "hole": known.degradation}), random("x0", (3, *SHAPE), torch.float32)
    known = known.measure(x0, Streams(2, (0, 1, 2)))
    x_T, state, _ = begin(several, known, x0)
    assert torch.equal(state["hole.threshold"], known.state["threshold"])
    torch.testing.assert_close(x_T, known.show())
    assert state["noise.z"].std() > 0.5
    with pytest.raises(UserError, match="PixelInpaint") as error:
        begin(registry.build("degradation", "blur"), known, x0)
    assert "trained to undo PixelInpaint" in error.value.wanted


def test_another_blur_than_that_of_the_training_is_told(caplog):
    known = measurement("blur")
    x0 = random("x0", (3, *SHAPE), torch.float32)
    known = known.measure(x0, Streams(2, (0, 1, 2)))
    begin(registry.build("degradation", "blur"), known, x0)
    assert not caplog.messages
    other, prior = registry.build("degradation", "blur", levels=3), MeasuredPrior()
    for _ in range(2):
        begin(other, known, x0, prior)
    assert caplog.text.count("another Blur") == 1, "once, not for each batch"


def test_nothing_measured_is_nothing_to_begin_with():
    with pytest.raises(UserError, match="without a measurement"):
        begin(registry.build("degradation", "blur"), None, torch.zeros(3, *SHAPE))
