"""The objective written out: which error, at which times, and who loses its condition."""

import pytest
import torch
from networks import encoder

import degradations
from configs import UserError
from degradations.randomness import BatchStream
from diffusion.objectives.parameterization import X0, Eps
from diffusion.objectives.restoration import Objective
from diffusion.objectives.times import AntitheticTimes, LevelTimes, LogNormalTimes, TimeDistribution, UniformTimes
from diffusion.objectives.weighting import ConstantWeighting, Weighting

N = 2000
LABELS = torch.arange(3)


class Fixed(TimeDistribution):
    def __call__(self, n, degradation, rng):
        return torch.tensor([0.2, 0.5, 0.9])


class Inverse(Weighting):
    def __call__(self, t, degradation, parameterization):
        return 1 / t


def stream(n):
    return BatchStream(1, 0, slice(0, n), n)


@pytest.mark.parametrize(("error", "power"), [("l1", 1), ("l2", 2)])
def test_the_loss_is_the_weighted_error_of_each_image(error, power):
    d, x0, t = degradations.build("gaussian"), torch.randn(3, 1, 4, 4), torch.tensor([0.2, 0.5, 0.9])
    state = d.draw(x0.shape, stream(3))
    x_t = d.forward(x0, t, state)
    seen = []

    def network(x, time, ctx, attn=None):
        seen.append((x, time, ctx))
        return 0.3 * x

    objective = Objective(Eps(), Fixed(), Inverse(), error, drop=0.0)
    losses = objective(objective.use(network, d, "32"), encoder(), d, x0, {"label": LABELS}, stream(3))
    expected = (0.3 * x_t - state["z"]).abs().pow(power).flatten(1).mean(1) / t
    torch.testing.assert_close(losses.values, expected)
    assert torch.equal(losses.t, t)
    [(x, time, ctx)] = seen
    assert torch.equal(x, x_t)
    assert torch.equal(time, t)
    torch.testing.assert_close(ctx.emb, encoder()({"label": LABELS}).emb)


@pytest.mark.parametrize("drop", [0.0, 0.3, 1.0])
def test_a_share_of_the_conditions_is_dropped_at_any_time(drop):
    seen = {}

    def network(x, time, ctx, attn=None):
        seen.update(time=time, emb=ctx.emb)
        return x

    condition = {"label": torch.arange(N) % 10}
    d, x0 = degradations.build("gaussian"), torch.zeros(N, 1, 2, 2)
    objective = Objective(X0(), UniformTimes(), ConstantWeighting(), drop=drop)
    objective(objective.use(network, d, "32"), encoder(), d, x0, condition, stream(N))
    given, null = encoder()(condition).emb, encoder().null(N).emb
    lost = (seen["emb"] - null).abs().amax(1) < 1e-6
    kept = (seen["emb"] - given).abs().amax(1) < 1e-6
    assert torch.equal(lost, ~kept)
    assert lost.double().mean().item() == pytest.approx(drop, abs=0.05)
    if 0 < drop < 1:
        assert abs(seen["time"][lost].mean() - seen["time"][kept].mean()) < 0.06, "dropped whatever the time"


def test_uniform_times_fill_the_interval():
    t = UniformTimes()(N, degradations.build("blur"), stream(N))
    assert 0 < t.min() < 0.01
    assert 0.99 < t.max() <= 1
    assert t.mean().item() == pytest.approx(0.5, abs=0.03)
    assert len(t.unique()) > 0.99 * N


def test_levels_are_those_of_the_degradation_but_the_clean_one():
    blur = degradations.build("blur", levels=5)
    values, counts = LevelTimes()(N, blur, stream(N)).unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]))
    assert (counts / N - 0.2).abs().max() < 0.05
    blur.levels = None
    with pytest.raises(UserError, match="times=uniform"):
        LevelTimes().check(blur)


class TestAntithetic:
    def test_evenly_over_the_interval(self):
        t = AntitheticTimes()(N, degradations.build("gaussian", schedule="rectified"), stream(N))
        assert 0 < t.min() <= t.max() <= 1
        torch.testing.assert_close(t.sort().values.diff(), torch.full((N - 1,), 1 / N), atol=1e-6, rtol=0)

    def test_evenly_over_the_levels(self):
        times = AntitheticTimes()(40, degradations.build("blur", levels=20), stream(40))
        values, counts = times.unique(return_counts=True)
        torch.testing.assert_close(values, torch.arange(1, 21) / 20)
        assert (counts == 2).all()

    @pytest.mark.parametrize("pieces", [2, 8])
    def test_ranks_and_parts_share_one_draw(self, pieces):
        d, n = degradations.build("gaussian"), 16 // pieces
        whole = AntitheticTimes()(16, d, BatchStream(1, 7, slice(0, 16), 16))
        cut = [AntitheticTimes()(n, d, BatchStream(1, 7, slice(i, i + n), 16)) for i in range(0, 16, n)]
        assert torch.equal(torch.cat(cut), whole)


class TestLogNormal:
    @pytest.mark.parametrize("schedule", ["linear", "rectified"])
    def test_the_logarithm_of_the_noise_is_normal(self, schedule):
        d = degradations.build("gaussian", schedule=schedule)
        t = LogNormalTimes(-1.2, 1.2)(N, d, stream(N))
        alpha, sigma = d.schedule(t)
        u = torch.special.ndtr(((sigma / alpha).log() + 1.2) / 1.2)
        assert 0 < t.min() <= t.max() <= 1
        assert (u.sort().values - torch.arange(N) / N).abs().max() < 0.04, "Kolmogorov-Smirnov"

    def test_on_the_straight_line_it_is_logit_normal(self):
        t = LogNormalTimes(0.0, 1.0)(N, degradations.build("gaussian", schedule="rectified"), stream(N))
        u = torch.special.ndtr(torch.logit(t))
        assert (u.sort().values - torch.arange(N) / N).abs().max() < 0.04

    def test_the_ends_stay_inside(self):
        for schedule in ("linear", "rectified"):
            d = degradations.build("gaussian", schedule=schedule)
            assert (LogNormalTimes(300.0, 0.1)(9, d, stream(9)) == 1).all()
            low = LogNormalTimes(-300.0, 0.1)(9, d, stream(9))
            assert ((low > 0) & (low < 1e-6)).all()

    def test_it_needs_noise(self):
        with pytest.raises(UserError, match="times=uniform"):
            LogNormalTimes().check(degradations.build("blur"))
