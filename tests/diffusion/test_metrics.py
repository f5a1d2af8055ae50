"""Distances against closed forms; the judge knows digits and is fitted once."""

import netrc
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from configs import build
from diffusion.callbacks import loggers
from diffusion.data.pixels import to_float
from diffusion.metrics import judge
from diffusion.metrics.distances import frechet, rmse_per_image, rmse_pooled


def features(n, mean, root, seed=0):
    """n vectors whose mean and covariance are exactly ``mean`` and ``root root^T``."""
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.mT)), x.mT, upper=False).mT
    return (x @ torch.as_tensor(root, dtype=torch.float64).mT + torch.as_tensor(mean, dtype=torch.float64)).float()


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestFrechet:
    def test_of_a_set_and_itself_is_nothing(self):
        x = random(50, 8, seed=1).float()
        assert frechet(x, x) == pytest.approx(0, abs=1e-6)
        assert frechet(x, x.flip(0)) == pytest.approx(0, abs=1e-6)
        few = x[:5]
        assert frechet(few, few) == pytest.approx(0, abs=1e-5), "fewer vectors than dimensions"

    def test_of_diagonal_gaussians_has_a_closed_form(self):
        """``|mu_a - mu_b|^2 + sum (s_a - s_b)^2``."""
        a = features(60, [0.0, 1.0, 2.0], torch.diag(torch.tensor([1.0, 2.0, 0.5])), seed=1)
        b = features(40, [1.0, -1.0, 2.0], torch.diag(torch.tensor([3.0, 2.0, 1.0])), seed=2)
        assert frechet(a, b) == pytest.approx(1 + 4 + 4 + 0 + 0.25, rel=1e-5)

    def test_of_any_gaussians_is_that_of_scipy(self):
        roots = random(2, 4, 4, seed=3)
        a, b = features(60, [0.0] * 4, roots[0], seed=1), features(50, [0.3] * 4, roots[1], seed=2)
        c, d = ((root @ root.mT).numpy() for root in roots)
        expected = 4 * 0.09 + np.trace(c + d - 2 * scipy.linalg.sqrtm(c @ d).real)
        assert frechet(a, b) == pytest.approx(expected, rel=1e-4)

    def test_does_not_depend_on_order_or_rotation(self):
        a, b = random(40, 6, seed=4).float(), (2 * random(30, 6, seed=5) + 0.5).float()
        rotation = torch.linalg.qr(random(6, 6, seed=6)).Q.float()
        assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-5)
        assert frechet(a @ rotation, b @ rotation) == pytest.approx(frechet(a, b), rel=1e-4)


def test_the_two_definitions_of_rmse():
    """One image is off by 1 of the range 2, the other by nothing: ``sqrt((0.25 + 0) / 2)`` and ``(0.5 + 0) / 2``."""
    a, b = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    b[0] = 1
    assert rmse_pooled(a, b) == pytest.approx(0.125**0.5)
    assert rmse_per_image(a, b) == pytest.approx(0.25)
    assert rmse_pooled(b, b) == rmse_per_image(b, b) == 0


class TestJudge:
    @pytest.fixture(scope="class")
    def data(self):
        return build("data", "digits")

    @pytest.fixture(scope="class")
    def critic(self, data):
        return judge.fitted(data)

    def test_it_knows_the_digits(self, data, critic):
        held_out = data.split("test")
        images = to_float(held_out.images)
        assert critic.accuracy >= 0.97
        assert critic.agreement(images, held_out.labels) == critic.accuracy
        assert critic.agreement(images, (held_out.labels + 1) % 10) < 0.03
        assert torch.equal(critic.features(3 * images), critic.features((3 * images).clamp(-1, 1)))

    def test_it_is_fitted_once_for_each_set_of_images(self, data, critic, monkeypatch, tmp_path):
        class Fitted(Exception):
            pass

        def fit(*_):
            raise Fitted

        monkeypatch.setattr(judge, "fit", fit)
        images = to_float(data.split("test").images)
        again = judge.fitted(data)
        assert again.accuracy == critic.accuracy
        assert torch.equal(again.features(images), critic.features(images))
        with pytest.raises(Fitted):
            judge.fitted(build("data", "digits", size=8))
        with pytest.raises(Fitted):
            judge.fitted(data, tmp_path)

    def test_a_damaged_file_is_replaced(self, data, critic, monkeypatch, tmp_path):
        monkeypatch.setattr(judge, "fit", lambda *_: critic)
        judge.fitted(data, tmp_path)
        [path] = tmp_path.iterdir()
        for damage in (b"", b"no weights", path.read_bytes()[:1000]):
            path.write_bytes(damage)
            assert judge.fitted(data, tmp_path) is critic
        assert judge.fitted(data, tmp_path) is not critic, "whole again, and read"


class TestLoggedIn:
    """Whether there is an account for the tracker, from the environment and the home folder alone."""

    @pytest.fixture(autouse=True)
    def nobody(self, monkeypatch, tmp_path):
        for name in ("WANDB_MODE", "WANDB_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(Path, "home", lambda: tmp_path)

    @pytest.mark.parametrize(("lines", "answer"), [
        (None, False), ("", False), ("machine example.org login me password x\n", False), ("nonsense here", False),
        ("machine api.wandb.ai login user password x\n", True)])
    def test_by_netrc(self, tmp_path, lines, answer):
        if lines is not None:
            (tmp_path / ".netrc").write_text(lines)
            (tmp_path / ".netrc").chmod(0o600)
        assert loggers.logged_in() is answer

    def test_by_key(self, monkeypatch):
        monkeypatch.setenv("WANDB_API_KEY", "x")
        assert loggers.logged_in()
        for mode, answer in (("online", True), ("offline", False), ("disabled", False)):
            monkeypatch.setenv("WANDB_MODE", mode)
            assert loggers.logged_in() is answer

    def test_an_unreadable_file_is_no_account(self, monkeypatch):
        def refuse(_):
            raise PermissionError

        monkeypatch.setattr(netrc, "netrc", refuse)
        assert not loggers.logged_in()
