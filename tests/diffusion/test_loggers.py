"""Whether there is an account for the tracker, from the environment and the home folder alone."""

import netrc
from pathlib import Path

import pytest

from diffusion.training.callbacks import loggers


@pytest.fixture(autouse=True)
def _nobody(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)


@pytest.mark.parametrize(("lines", "answer"), [
    (None, False), ("", False), ("machine example.org login me password x\n", False), ("nonsense here", False),
    ("machine api.wandb.ai login user password x\n", True)])
def test_by_netrc(tmp_path, lines, answer):
    if lines is not None:
        (tmp_path / ".netrc").write_text(lines)
        (tmp_path / ".netrc").chmod(0o600)
    assert loggers.logged_in() is answer


def test_by_key(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert loggers.logged_in()
    for mode, answer in (("online", True), ("offline", False), ("disabled", False)):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert loggers.logged_in() is answer


def test_an_unreadable_file_is_no_account(monkeypatch):
    def refuse(_):
        raise PermissionError

    monkeypatch.setattr(netrc, "netrc", refuse)
    assert not loggers.logged_in()
