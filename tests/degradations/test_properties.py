"""What holds for every degradation in the registry, found there and not listed here."""

import pytest
import torch
from oracles import state_of

import degradations
from configs import UserError
from degradations.affine import Affine
from degradations.compose import Compose
from degradations.randomness import BatchStream, Streams
from diffusion.spaces.pixel import Pixel

NAMES = degradations.available()
SHAPES = [(3, 1, 16, 16), (3, 3, 16, 24), (3, 4, 8, 8)]


def times(*values):
    return torch.tensor(values)


@pytest.fixture(params=NAMES)
def degradation(request):
    return degradations.build(request.param)


def fits(degradation, shape):
    try:
        degradation.check(shape[1:])
    except UserError:
        return False
    return True


@pytest.fixture
def shape(degradation, request):
    """The shape of the test's parameter, or else the first one that the operator takes."""
    wanted = [request.param] if hasattr(request, "param") else SHAPES
    fitting = [shape for shape in wanted if fits(degradation, shape)]
    return fitting[0] if fitting else pytest.skip("refused")


def test_registry_is_not_empty():
    assert {"gaussian", "blur", "motion_blur", "inpaint", "inpaint_box", "inpaint_pixels", "downsample", "snow",
            "desaturate", "animorph", "compose"} <= set(NAMES)


@pytest.mark.parametrize("shape", SHAPES, indirect=True)
def test_clean_at_zero_bit_for_bit(degradation, shape):
    x0 = torch.randn(shape) * 3
    x_t = degradation.forward(x0, times(0, 0.95, 0), state_of(degradation, shape))
    assert torch.equal(x_t[[0, 2]], x0[[0, 2]])
    assert not torch.equal(x_t[1], x0[1])


@pytest.mark.parametrize("shape", SHAPES, indirect=True)
def test_rows_do_not_mix(degradation, shape):
    x0, t = torch.randn(shape), times(0.3, 0.65, 1.0)
    state = state_of(degradation, shape)
    order = torch.tensor([2, 0, 1])
    together = degradation.forward(x0, t, state)
    torch.testing.assert_close(degradation.forward(x0[order], t[order], state.rows(order)), together[order])
    for i in range(3):
        one = slice(i, i + 1)
        torch.testing.assert_close(degradation.forward(x0[one], t[one], state.rows(one)), together[one])


def test_deterministic_given_state(degradation, shape):
    x0, t, state = torch.randn(shape), times(0.2, 0.6, 0.9), state_of(degradation, shape)
    assert torch.equal(degradation.forward(x0, t, state), degradation.forward(x0, t, state))


def test_state_follows_the_sample_not_the_batch(degradation):
    shape = (4, 1, 16, 16)
    whole = degradation.draw(shape, Streams(5, (0, 1, 2, 3)))
    part = degradation.draw((2, 1, 16, 16), Streams(5, (3, 1)))
    for name in whole:
        assert torch.equal(part[name], whole[name][[3, 1]])


def test_training_state_does_not_depend_on_the_split(degradation):
    whole = degradation.draw((4, 1, 8, 8), BatchStream(1, 7, slice(0, 4), 4))
    part = degradation.draw((2, 1, 8, 8), BatchStream(1, 7, slice(2, 4), 4))
    other = degradation.draw((2, 1, 8, 8), BatchStream(1, 8, slice(2, 4), 4))
    for name in whole:
        assert torch.equal(part[name], whole[name][2:])
    drawn = [name for name in whole if not torch.equal(whole[name], whole[name].roll(1, 0))]  # not one for all images
    assert not drawn or any(not torch.equal(part[name], other[name]) for name in drawn)


@pytest.mark.parametrize("shape", SHAPES, indirect=True)
def test_difference_is_the_difference(degradation, shape):
    x0, state = torch.randn(shape), state_of(degradation, shape)
    t, s = times(0.5, 0.35, 1.0), times(0.45, 0.0, 0.15)
    plain = degradation.forward(x0.double(), s, state) - degradation.forward(x0.double(), t, state)
    torch.testing.assert_close(degradation.difference(x0, t, s, state), plain.float(), atol=3e-6, rtol=1e-5)


def test_response_is_the_response(degradation, shape):
    x0, dx, state, t = torch.rand(shape), torch.randn(shape) / 10, state_of(degradation, shape), times(0.0, 0.35, 1.0)
    plain = degradation.forward(x0.double() + dx, t, state) - degradation.forward(x0.double(), t, state)
    torch.testing.assert_close(degradation.response(x0, dx, t, state), plain.float(), atol=1e-6, rtol=1e-5)


def test_affine_in_x0_is_true_of_those_that_say_so_and_of_no_others(degradation, shape):
    x, y, t, state = torch.randn(shape).double(), torch.randn(shape).double(), times(0.35, 0.8, 1.0), \
        state_of(degradation, shape)
    at_x, at_y = degradation.forward(x, t, state), degradation.forward(y, t, state)
    gaps = torch.stack([(degradation.forward(torch.lerp(y, x, a), t, state) - torch.lerp(at_y, at_x, a)).abs().max()
                        for a in (0.3, -1.0, 2.5)])
    assert (gaps.max() < 1e-12) == degradation.affine_in_x0
    assert degradation.affine_in_x0 or gaps.min() > 1e-2


def test_a_composition_is_affine_in_x0_if_all_stages_are():
    blur, snow = degradations.build("blur"), degradations.build("snow", levels=20)
    assert Compose({"a": blur, "b": degradations.build("inpaint_pixels")}).affine_in_x0
    assert not Compose({"a": blur, "b": snow}).affine_in_x0


def test_two_evaluations_are_enough_for_a_difference(degradation, shape, monkeypatch):
    calls, degrade = [], type(degradation).degrade
    monkeypatch.setattr(type(degradation), "degrade", lambda *args: calls.append(args) or degrade(*args))
    degradation.difference(torch.rand(shape), times(0.5, 0.35, 1.0), times(0.45, 0.0, 0.15),
                           state_of(degradation, shape))
    assert len(calls) <= 2


def test_gradient_flows(degradation, shape):
    x0 = torch.randn(shape, requires_grad=True)
    degradation.forward(x0, times(0.0, 0.3, 0.6), state_of(degradation, shape)).square().sum().backward()
    assert x0.grad is not None
    assert (x0.grad.flatten(1).abs().sum(1) > 0).all()


def test_low_precision_around_it_changes_nothing(degradation, shape):
    x0, t, state = torch.randn(shape), times(0.3, 0.6, 0.9), state_of(degradation, shape)
    plain = degradation.forward(x0, t, state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(degradation.forward(x0, t, state), plain)
        assert degradation.forward(x0.bfloat16(), t, state).dtype == torch.float32


def test_its_levels_survive_float32(degradation):
    if degradation.levels is None:
        pytest.skip("no levels")
    levels, shape = degradation.levels, next(s for s in ((1, 1, 8, 8), (1, 3, 8, 8)) if fits(degradation, s))
    x0, state = torch.randn(shape), state_of(degradation, shape)
    for k in range(1, levels + 1, max(1, levels // 25)):
        low = degradation.forward(x0, torch.tensor([k / levels], dtype=torch.float32), state)
        high = degradation.forward(x0, torch.tensor([k / levels], dtype=torch.float64), state)
        assert torch.equal(low, high)


def test_inferred_state_explains_the_image(degradation, shape):
    x0, t, state = torch.randn(shape), times(0.3, 0.6, 0.9), state_of(degradation, shape)
    x_t = degradation.forward(x0, t, state)
    inferred = degradation.infer(x_t, x0, t, state)
    torch.testing.assert_close(degradation.forward(x0, t, inferred), x_t, atol=1e-5, rtol=1e-5)
    if isinstance(degradation, Affine):
        torch.testing.assert_close(inferred["z"], state["z"], atol=1e-4, rtol=1e-4)


def test_a_clean_image_says_nothing_about_the_state(degradation, shape):
    """At ``t = 0`` the given state is kept, to the bit."""
    x0, state = torch.randn(shape), state_of(degradation, shape)
    inferred = degradation.infer(x0, torch.randn(shape), times(0.0, 0.5, 0.0), state)
    assert set(inferred) == set(state)
    for name in state:
        assert torch.equal(inferred[name][[0, 2]], state[name][[0, 2]])


def test_pixel_space_takes_all(degradation):
    Pixel().check(degradation)
