"""Weights against the papers' formulas, each on the error on which its paper defines it."""

import pytest
import torch

import degradations
from configs import UserError, compose, construct
from diffusion.objectives.parameterization import X0, Eps, Flow, V
from diffusion.objectives.restoration import Objective
from diffusion.objectives.times import UniformTimes
from diffusion.objectives.weighting import P2, ConstantWeighting, MinSNR, SigmoidWeighting, TruncatedSNR

T = torch.tensor([0.05, 0.2, 0.6, 0.9], dtype=torch.float64)
ALL = {"min_snr": MinSNR(), "truncated_snr": TruncatedSNR(), "p2": P2(), "sigmoid": SigmoidWeighting(-1.0)}
PARAMETERIZATIONS = {"x0": X0(), "eps": Eps(), "v": V(), "flow": Flow()}


def gaussian(schedule="linear"):
    return degradations.build("gaussian", schedule=schedule)


@pytest.mark.parametrize(("weighting", "parameterization", "formula"), [
    (MinSNR(), X0(), lambda snr: snr.clamp(max=5)),
    (MinSNR(), Eps(), lambda snr: snr.clamp(max=5) / snr),
    (MinSNR(2.0), V(), lambda snr: snr.clamp(max=2) / (snr + 1)),
    (TruncatedSNR(), X0(), lambda snr: snr.clamp(min=1)),
    (TruncatedSNR(), Eps(), lambda snr: (1 / snr).clamp(min=1)),
    (P2(), Eps(), lambda snr: 1 / (1 + snr)),
    (P2(2.0, 0.5), Eps(), lambda snr: (2 + snr) ** -0.5),
    (P2(1.0, 1.0), V(), lambda snr: snr / (1 + snr) ** 2),
    (SigmoidWeighting(-1.0), Eps(), lambda snr: 1 / (1 + snr * torch.e)),
    (SigmoidWeighting(), X0(), lambda snr: snr / (1 + snr))])
def test_is_the_papers(weighting, parameterization, formula):
    """With alpha^2 + sigma^2 = 1, where the papers are at home."""
    d = gaussian()
    assert d.schedule.snr(T)[0] > 5 > d.schedule.snr(T)[1] > 1 > d.schedule.snr(T)[2]
    torch.testing.assert_close(weighting(T, d, parameterization), formula(d.schedule.snr(T)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", ["cosine", "rectified"])
@pytest.mark.parametrize("parameterization", ["eps", "v", "flow"])
@pytest.mark.parametrize("weighting", ALL)
def test_one_loss_for_every_parameterization(weighting, parameterization, schedule):
    """The same images guessed, however the network says it: the weighted losses are equal."""
    d, w, p = gaussian(schedule), ALL[weighting], PARAMETERIZATIONS[parameterization]
    x_t, a, b = torch.randn(3, 4, 5, dtype=torch.float64)
    error_x0 = (p.x0(a, x_t, T, d) - p.x0(b, x_t, T, d)).square().mean(1)
    error = (a - b).square().mean(1)
    torch.testing.assert_close(w(T, d, p) * error, w(T, d, X0()) * error_x0, rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "zero_snr", "rectified"])
@pytest.mark.parametrize("weighting", ALL)
def test_finite_everywhere(weighting, schedule):
    """At pure noise, next to the clean image, and where a table rounds to it."""
    t = torch.tensor([2**-24, 1e-7, 1e-4, 1.0])
    for p in PARAMETERIZATIONS.values():
        values = ALL[weighting](t, gaussian(schedule), p)
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert (values >= 0).all()


@pytest.mark.parametrize(("weighting", "parameterization", "clean", "noise"), [
    (MinSNR(), V(), 0.0, 0.0), (TruncatedSNR(), V(), 1.0, 1.0), (P2(0.5), V(), 0.0, 0.0), (P2(0.5), Eps(), 0.0, 2.0),
    (MinSNR(), Eps(), 0.0, 1.0), (SigmoidWeighting(), Eps(), 0.0, 1.0), (TruncatedSNR(), Flow(), 1.0, 1.0)])
@pytest.mark.parametrize("schedule", ["zero_snr", "rectified"])
def test_the_limits_at_the_ends(weighting, parameterization, clean, noise, schedule):
    values = weighting(torch.tensor([2**-24, 1.0]), gaussian(schedule), parameterization)
    assert values.tolist() == pytest.approx([clean, noise], abs=1e-5)


@pytest.mark.parametrize("weighting", ALL)
def test_a_degradation_without_noise_is_refused(weighting):
    objective = Objective(X0(), UniformTimes(), ALL[weighting])
    with pytest.raises(UserError, match="objective/weighting=constant"):
        objective.check(degradations.build("blur"))
    objective.check(gaussian())
    Objective(X0(), UniformTimes(), ConstantWeighting()).check(degradations.build("blur"))


@pytest.mark.parametrize(("make", "key"), [(lambda: MinSNR(0.0), "gamma"), (lambda: P2(0.0), "k=")])
def test_senseless_numbers_are_refused(make, key):
    with pytest.raises(UserError, match=key):
        make()


def test_the_objective_takes_the_parameterization_into_account():
    objective = construct(compose("train", ["objective/weighting=min_snr", "objective/parameterization=eps"]).objective)
    torch.testing.assert_close(objective.weighting(T, gaussian(), objective.parameterization),
                               5 / gaussian().schedule.snr(T).clamp(min=5))
