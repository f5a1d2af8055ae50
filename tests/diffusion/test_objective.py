"""The objective written out: which error, at which times, and who loses its condition."""

import pytest
import torch
from networks import encoder

import degradations
from configs import UserError
from degradations.randomness import BatchStream
from diffusion.objective import Objective
from diffusion.parameterization import X0, Eps
from diffusion.times import Levels, Times, Uniform
from diffusion.weighting import Constant, Weighting

N = 2000
LABELS = torch.arange(3)


class Fixed(Times):
    def __call__(self, n, degradation, rng):
        return torch.tensor([0.2, 0.5, 0.9])


class Inverse(Weighting):
    def __call__(self, t, degradation):
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

    loss = Objective(Eps(), Fixed(), Inverse(), error, drop=0.0)(network, encoder(), d, x0, {"label": LABELS},
                                                                 stream(3))
    expected = (0.3 * x_t - state["z"]).abs().pow(power).flatten(1).mean(1) / t
    torch.testing.assert_close(loss, expected)
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
    Objective(X0(), Uniform(), Constant(), drop=drop)(network, encoder(), d, x0, condition, stream(N))
    given, null = encoder()(condition).emb, encoder().null(N).emb
    lost = (seen["emb"] - null).abs().amax(1) < 1e-6
    kept = (seen["emb"] - given).abs().amax(1) < 1e-6
    assert torch.equal(lost, ~kept)
    assert lost.double().mean().item() == pytest.approx(drop, abs=0.05)
    if 0 < drop < 1:
        assert abs(seen["time"][lost].mean() - seen["time"][kept].mean()) < 0.06, "dropped whatever the time"


def test_uniform_times_fill_the_interval():
    t = Uniform()(N, degradations.build("blur"), stream(N))
    assert 0 < t.min() < 0.01
    assert 0.99 < t.max() <= 1
    assert t.mean().item() == pytest.approx(0.5, abs=0.03)
    assert len(t.unique()) > 0.99 * N


def test_levels_are_those_of_the_degradation_but_the_clean_one():
    blur = degradations.build("blur", levels=5)
    values, counts = Levels()(N, blur, stream(N)).unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]))
    assert (counts / N - 0.2).abs().max() < 0.05
    blur.levels = None
    with pytest.raises(UserError, match="times=uniform"):
        Levels()(N, blur, stream(N))
