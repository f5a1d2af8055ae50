"""The best linear answer, against a posterior in closed form."""

import pytest
import torch

from configs import registry
from degradations.randomness import Streams
from diffusion.evaluation.wiener import Wiener

SHAPE = (1, 8, 8)


@pytest.mark.parametrize("task", ["inpaint_box", "inpaint_random", "super_resolution"])
def test_the_error_is_that_of_the_posterior(task):
    """Of Gaussian images the mean square error is the mean of the posterior's variances."""
    streams, n = Streams(0, tuple(range(400))), 400
    half = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 8
    covariance, mean = half @ half.T + 0.05 * torch.eye(64), 0.3
    factor = torch.linalg.cholesky(covariance)
    x0 = (mean + streams.normal("x", (n, 64)).double() @ factor.T).float().reshape(n, *SHAPE)
    problem = registry.build("task", task, noise=0.1)
    known = problem.draw(x0.shape, streams).measure(x0, streams)
    wiener = Wiener(torch.full((64,), mean, dtype=torch.float64), covariance)
    found = (wiener(known) - x0).double().square().mean()
    wanted = []
    for i in range(40):
        a = wiener._matrix(known.rows(slice(i, i + 1)))
        precision = torch.linalg.inv(covariance) + a.T @ a / 0.1**2
        wanted.append(torch.linalg.inv(precision).diag().mean())
    assert abs(found / torch.stack(wanted).mean() - 1) < 0.05


def test_fitted_to_images():
    images = torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.2
    whole, white = Wiener.fit(images), Wiener.fit(images, white=True)
    assert whole.mean.shape == (64,)
    torch.testing.assert_close(white.covariance.diag(), torch.full((64,), 0.25, dtype=torch.float64), atol=0.01, rtol=0)
    assert torch.equal(white.covariance, torch.diag(white.covariance.diag()))


@pytest.mark.parametrize(("task", "operators"), [("deblur_motion", 1), ("inpaint_box", 1), ("inpaint_random", 5)])
def test_one_operator_for_all_is_inverted_once(task, operators, monkeypatch):
    streams = Streams(0, tuple(range(5)))
    x0 = streams.normal("x", (5, *SHAPE))
    known = registry.build("task", task).draw(x0.shape, streams).measure(x0, streams)
    wiener, made = Wiener.fit(x0, white=True), []
    monkeypatch.setattr(Wiener, "_matrix", lambda self, one, whole=Wiener._matrix: made.append(0) or whole(self, one))
    answers = wiener(known)
    assert len(made) == operators
    alone = torch.cat([wiener(known.rows(slice(i, i + 1))) for i in range(5)])
    torch.testing.assert_close(answers, alone)
