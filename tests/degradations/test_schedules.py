"""Noise schedules against their definitions (invariant 13 of any variance-preserving chain)."""

import math

import pytest
import torch

import degradations
from configs import UserError
from degradations.base import State
from degradations.schedules import CosineSchedule, LinearSchedule, RectifiedSchedule, SigmoidSchedule, ZeroTerminalSNR

ALL = {"linear": LinearSchedule(), "cosine": CosineSchedule(), "sigmoid": SigmoidSchedule(),
       "zero_snr": ZeroTerminalSNR(LinearSchedule())}


@pytest.mark.parametrize("name", ALL)
def test_alpha_bar_falls_strictly_inside_zero_one(name):
    a = ALL[name].alpha_bar
    assert (a.diff() < 0).all()
    assert a[0] == 1
    assert a[-1] >= 0


@pytest.mark.parametrize("name", ALL)
def test_variance_is_preserved_between_levels_too(name):
    alpha, sigma = ALL[name](torch.linspace(0, 1, 777))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(777, dtype=torch.float64))
    assert (alpha.diff() < 0).all()


@pytest.mark.parametrize("name", ALL)
def test_levels_are_exact_in_float32(name):
    schedule = ALL[name]
    k = torch.arange(1001)
    alpha, _ = schedule((k.double() / 1000).float())
    assert torch.equal(alpha, schedule.alpha_bar.sqrt())


@pytest.mark.parametrize("name", ALL)
def test_between_two_levels_the_angle_is_a_line(name):
    k = torch.tensor([0.0, 1, 10, 500, 998], dtype=torch.float64)

    def angle(u):
        alpha, sigma = ALL[name](u / 1000)
        return torch.atan2(sigma, alpha)

    for share in (0.25, 0.5, 0.9):
        torch.testing.assert_close(angle(k + share), (1 - share) * angle(k) + share * angle(k + 1))


@pytest.mark.parametrize("name", [*ALL, "rectified"])
class TestTime:
    """The inverse of ``sigma / alpha``."""

    def test_there_and_back(self, name):
        schedule = (ALL | {"rectified": RectifiedSchedule()})[name]
        t = torch.tensor([0.00047, 0.00153, 0.1, 0.25, 0.4996, 0.99952, 0.7, 0.998], dtype=torch.float64)
        alpha, sigma = schedule(t)
        torch.testing.assert_close(schedule.time(sigma / alpha), t, atol=1e-12, rtol=1e-9)

    def test_the_ends(self, name):
        schedule = (ALL | {"rectified": RectifiedSchedule()})[name]
        ends = schedule.time(torch.tensor([0.0, math.inf], dtype=torch.float64))
        assert ends.tolist() == [0, 1]


def test_straight_is_a_line_to_pure_noise():
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    alpha, sigma = RectifiedSchedule()(t)
    assert alpha.tolist() == [1, 0.75, 0.5, 0]
    assert sigma.tolist() == [0, 0.25, 0.5, 1]
    assert RectifiedSchedule().levels is None
    gaussian = degradations.build("gaussian", schedule="rectified")
    x0, z = torch.randn(2, 4, 1, 4, 4)
    x_t = gaussian.forward(x0, t, State(z=z))
    assert torch.equal(x_t[0], x0[0])
    assert torch.equal(x_t[3], z[3])
    torch.testing.assert_close(x_t[1], 0.75 * x0[1] + 0.25 * z[1])
    inferred = gaussian.infer(x_t, torch.zeros_like(x0), t, State(z=z))["z"]
    assert torch.equal(inferred[[0, 3]], z[[0, 3]])


def test_posterior_of_the_straight_line_is_bayes_rule():
    """From the densities of ``x_s | x0`` and ``x_t | x_s``, also where ``x_t`` says nothing and where ``x_s`` is x0."""
    gaussian = degradations.build("gaussian", schedule="rectified")
    t, s = torch.tensor([1.0, 0.8, 0.3]), torch.tensor([0.6, 0.1, 0.0])
    a, b, v = gaussian.posterior(t, s)
    for i, (u, w) in enumerate([(1.0, 0.6), (0.8, 0.1), (0.3, 0.0)]):
        ratio = (1 - u) / (1 - w)
        beta = u**2 - ratio**2 * w**2
        precision = ratio**2 / beta + (1 / w**2 if w else math.inf)
        expected = ((1 - w) / w**2 / precision if w else 1.0, ratio / beta / precision, 1 / precision)
        assert (a[i].item(), b[i].item(), v[i].item()) == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_linear_ends_where_the_paper_does():
    assert LinearSchedule().alpha_bar[-1].item() == pytest.approx(4.04e-5, rel=1e-2)
    quarter = LinearSchedule(levels=250).alpha_bar[-1].item()
    assert quarter == pytest.approx(4.04e-5, rel=0.25), "betas scale with 1000 / T"


def test_cosine_is_its_formula_up_to_the_clip():
    f = [math.cos((u / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for u in range(1001)]
    expected = torch.tensor([v / f[0] for v in f], dtype=torch.float64)
    torch.testing.assert_close(CosineSchedule().alpha_bar[:-1], expected[:-1], atol=1e-9, rtol=0)
    assert CosineSchedule().alpha_bar[-1].item() == pytest.approx(2.4e-9, rel=0.05)


def test_sigmoid_is_jabris_formula():
    def s(v):
        return 1 / (1 + math.exp(-v))

    expected = [(s(3) - s(u / 1000 * 6 - 3)) / (s(3) - s(-3)) for u in range(1001)]
    torch.testing.assert_close(SigmoidSchedule().alpha_bar[:-1], torch.tensor(expected, dtype=torch.float64)[:-1],
                               atol=1e-9, rtol=0)


def test_zero_terminal_snr():
    base, fixed = LinearSchedule(), ZeroTerminalSNR(LinearSchedule())
    assert fixed.alpha_bar[-1] == 0
    assert fixed.alpha_bar[1].item() == pytest.approx(base.alpha_bar[1].item(), rel=1e-12)
    assert fixed.snr(torch.ones(1)).item() == 0


def test_posterior_is_ddpms():
    """Against the formulas of Ho et al. 2020, equation 7, with the betas of the chain."""
    gaussian = degradations.build("gaussian", schedule="linear")
    a_bar = gaussian.schedule.alpha_bar
    for k in (2, 10, 500, 1000):
        beta = 1 - a_bar[k] / a_bar[k - 1]
        a, b, v = gaussian.posterior(torch.tensor([k / 1000]), torch.tensor([(k - 1) / 1000]))
        assert a.item() == pytest.approx((a_bar[k - 1].sqrt() * beta / (1 - a_bar[k])).item(), rel=1e-9)
        assert b.item() == pytest.approx(((1 - beta).sqrt() * (1 - a_bar[k - 1]) / (1 - a_bar[k])).item(), rel=1e-9)
        assert v.item() == pytest.approx(((1 - a_bar[k - 1]) / (1 - a_bar[k]) * beta).item(), rel=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_small_differences_do_not_cancel(name):
    gaussian = degradations.build("gaussian", schedule=name)
    x0, state = torch.randn(3, 1, 4, 4), State(z=torch.zeros(3, 1, 4, 4))
    t, s = (torch.tensor([k, k + 9, k + 500]) / 1000 for k in (2, 1))
    exact = gaussian.difference(x0.double(), t, s, state)
    assert ((gaussian.difference(x0, t, s, state) - exact) / exact).abs().max() < 1e-5
    assert exact[0].abs().max() < 1e-2


def test_a_linear_schedule_of_too_few_levels_is_refused():
    with pytest.raises(UserError, match="levels"):
        LinearSchedule(levels=20)
