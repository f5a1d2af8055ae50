"""Editing by a shift of the bottleneck: the image changes, the state does not; until t_edit, then no more."""

import pytest
import torch
from guided import Spy, ask, conditioned, context, equal, step_at
from networks import network, randomized
from oracles import state_of

import degradations
from configs import UserError
from degradations.base import Estimate
from degradations.randomness import Streams
from diffusion.objectives.evaluator import NetworkRestorer
from diffusion.objectives.parameterization import Eps, V
from models.shifted import ShiftedNet, ask_shift
from samplers.ddim import DDIM
from samplers.guidance.asyrp import Asyrp
from samplers.guidance.base import Guided
from samplers.guidance.cfg import CFG

SHAPE = (3, 1, 8, 8)
GAUSSIAN = degradations.build("gaussian", schedule="linear")


@pytest.fixture
def x():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


def shifted(size: float = 1.0, parameterization=None) -> NetworkRestorer:
    """A network with a shift of some size, 0 as at the beginning."""
    net = ShiftedNet(network())
    randomized(net.shift, seed=1)
    for parameter in net.shift.leave.parameters():
        parameter *= size
    return NetworkRestorer(net, GAUSSIAN, parameterization or V())


def run(restorer, x, steps=10, sampler=None):
    streams = Streams(0, (0, 1, 2))
    return list((sampler or DDIM(steps)).steps(restorer, GAUSSIAN, x, state_of(GAUSSIAN, SHAPE), conditioned(),
                                               streams))


def test_without_a_shift_it_is_the_base(x):
    restorer, plain = shifted(0.0), NetworkRestorer(network(), GAUSSIAN, V())
    for part in (Asyrp(), Asyrp(-1.0, 0.0)):
        for mine, theirs in zip(run(Guided(restorer, GAUSSIAN, [part]), x), run(plain, x), strict=True):
            assert torch.equal(mine.x_s, theirs.x_s)


def test_the_image_is_that_of_the_shifted_network_and_the_state_that_of_the_base(x):
    restorer, ctx = shifted(), conditioned()
    base = ask(restorer, x, ctx, GAUSSIAN, 0.8)
    moved = ask(restorer, x, ask_shift(ctx, 0.7, x), GAUSSIAN, 0.8)
    out = ask(Guided(restorer, GAUSSIAN, [Asyrp(0.7)]), x, ctx, GAUSSIAN, 0.8)
    torch.testing.assert_close(out.x0, moved.x0, atol=1e-5, rtol=1e-5)
    assert (out.x0 - base.x0).abs().max() > 1e-3
    assert torch.equal(out.state["z"], base.state["z"])


def test_it_adds_to_other_guidance(x):
    restorer, ctx = shifted(), conditioned()
    both, cfg, alone, base = (ask(Guided(restorer, GAUSSIAN, parts), x, ctx, GAUSSIAN, 0.8) for parts in
                              ([CFG(3.0), Asyrp()], [CFG(3.0)], [Asyrp()], []))
    torch.testing.assert_close(both.x0, cfg.x0 + alone.x0 - base.x0, atol=1e-5, rtol=1e-5)
    assert torch.equal(both.state["z"], cfg.state["z"])


def test_the_same_shift_of_both_nearly_cancels(x):
    """With a network that predicts z, a shift d of it changes ``x_s = alpha_s x0 + sigma_s z`` by ``-alpha_s sigma_t /
    alpha_t d`` in x0 and by ``sigma_s d`` in the state."""
    restorer, ctx, t, s = shifted(1.0, Eps()), conditioned(), torch.full((3,), 0.6), torch.full((3,), 0.58)
    base, moved = (ask(restorer, x, each, GAUSSIAN, 0.6) for each in (ctx, ask_shift(ctx, 1.0, x)))
    edited = ask(Guided(restorer, GAUSSIAN, [Asyrp()]), x, ctx, GAUSSIAN, 0.6)
    plain, both, only = (GAUSSIAN.forward(each.x0, s, each.state) for each in (base, moved, edited))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (GAUSSIAN.coefficients(each, x) for each in (t, s))
    expected = 1 - sigma_s * alpha_t / (alpha_s * sigma_t)
    torch.testing.assert_close(both - plain, expected * (only - plain), atol=1e-3, rtol=1e-3)
    assert (both - plain).norm() < 0.2 * (only - plain).norm()


def test_strengths_go_one_way(x):
    restorer, ctx = shifted(0.1), conditioned()
    base, *outs = (ask(Guided(restorer, GAUSSIAN, [Asyrp(a)]), x, ctx, GAUSSIAN, 0.8).x0 for a in (0, -1, 0.5, 1))
    along = [((out - base) * (outs[-1] - base)).flatten(1).sum(1) for out in outs]
    assert (along[0] < 0).all()
    assert ((along[1] > 0) & (along[1] < along[2])).all()


def test_steps_after_the_edit_are_plain(x):
    restorer = shifted()
    spy = Spy(restorer)
    spy.network = restorer.network
    frames = run(Guided(spy, GAUSSIAN, [Asyrp(t_edit=0.5)]), x)
    assert [frame.step.t for frame in frames][5] == 0.5
    asked = ["shift" in ctx.extra for ctx in spy.contexts]
    assert asked == [False, True] * 6 + [False] * 4
    for frame in frames[6:]:
        with torch.no_grad():  # as in the run: bit for bit the same kernels
            alone = ask(restorer, frame.x_t, conditioned(), GAUSSIAN, frame.step.t, frame.step)
        equal(frame.estimate, alone)


def test_off_costs_nothing(x):
    restorer = shifted()
    spy = Spy(restorer)
    spy.network = restorer.network
    assert torch.equal(run(Guided(spy, GAUSSIAN, [Asyrp(0.0)]), x)[-1].x_s, run(restorer, x)[-1].x_s)
    assert spy.rows == [3] * 10


def test_another_network_is_refused(x):
    plain = NetworkRestorer(network(), GAUSSIAN, V())
    with pytest.raises(UserError, match="learned no shift"):
        ask(Guided(plain, GAUSSIAN, [Asyrp()]), x, context([1, 2, 3]), GAUSSIAN, 0.8)


@pytest.mark.parametrize("wrong", [{"strength": float("nan")}, {"t_edit": 1.5}])
def test_values_that_mean_nothing(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Asyrp(**wrong)


def test_new_noise_at_the_end_alone(x):
    """With ``below``, a step is DDIM's above it, and DDPM's from there on."""
    restorer = NetworkRestorer(network(), GAUSSIAN, V())
    boosted, still, noisy = (DDIM(10, eta, below=below) for eta, below in ((1.0, 0.3), (0.0, 1.0), (1.0, 1.0)))
    for frame in run(restorer, x, sampler=boosted):
        t, s = (torch.full((3,), time) for time in (frame.step.t, frame.step.s))
        other = noisy if frame.step.t <= 0.3 else still
        state = other.belief(frame.estimate, state_of(GAUSSIAN, SHAPE), frame.step, GAUSSIAN)
        assert torch.equal(frame.x_s, other.move(frame.x_t, frame.estimate.x0, t, s, state, GAUSSIAN, frame.step))
    estimate = Estimate(x, state_of(GAUSSIAN, SHAPE))
    assert not torch.equal(noisy.belief(estimate, estimate.state, step_at(0.3), GAUSSIAN)["z"], estimate.state["z"])
    with pytest.raises(UserError, match="below"):
        DDIM(10, 1.0, below=2.0)
