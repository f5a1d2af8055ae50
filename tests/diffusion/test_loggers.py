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


def test_tensorboard_gets_pictures_and_a_logger_without_pictures_is_left_alone(tmp_path):
    from lightning.pytorch.loggers import CSVLogger
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("L", (4, 3), 128).save(tmp_path / "a.png")
    board = loggers.tensorboard(save_dir=str(tmp_path), name="", version="board")
    loggers.log_picture(board, "samples", tmp_path / "a.png", 7)
    loggers.log_picture(CSVLogger(str(tmp_path)), "samples", tmp_path / "a.png", 7)
    board.experiment.flush()
    [event] = EventAccumulator(str(tmp_path / "board")).Reload().Images("pictures/samples")
    assert (event.step, event.width, event.height) == (7, 4, 3)
