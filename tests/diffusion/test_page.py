"""The page of a training."""

import logging
import re

import pytest
from helpers import COLD, DIGITS, train

from diffusion.training.callbacks import page
from diffusion.training.callbacks.page import find_pictures, write_duration

pytestmark = pytest.mark.commands


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs"), *DIGITS, "max_steps=4", experiment="<b>bold")


def test_it_shows_the_progress_the_curves_the_pictures_and_the_settings(run):
    text = (run.folder / "index.html").read_text()
    assert "done: step 4 of 4" in text
    assert 'http-equiv="refresh"' not in text, "a training that is over is not waited for"
    assert all(f"<h2>{name}</h2>" in text for name in ("samples", "estimates"))
    assert text.count("<svg") >= 1
    assert "sampler.num_steps=50" in text


def test_it_loads_nothing_and_names_are_only_text(run):
    text = (run.folder / "index.html").read_text()
    assert set(re.findall(r'(?:src|href)="([^"]{5})', text)) == {"data:"}
    assert "<b>bold" not in text
    assert "&lt;b&gt;bold" in text


def test_a_resumed_run_goes_on_with_its_page(tmp_path):
    train(tmp_path, *COLD, "run.name=a", "max_steps=2")
    run = train(tmp_path, *COLD, "run.name=a", "max_steps=5", "callbacks.pictures.count=0")
    assert "done: step 5 of 5" in (run.folder / "index.html").read_text()


def test_a_page_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(page, "save_page", fail)
    with caplog.at_level(logging.WARNING, "diffusion"):
        run = train(tmp_path, *COLD, "run.name=a", "callbacks.pictures.count=0")
    assert list(run.steps)[-1] == 3
    assert not (run.folder / "index.html").exists()
    assert sum("No space left" in record.message for record in caplog.records) == 1


def test_it_is_written_so_seldom_that_it_takes_no_more_than_its_share(monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    class Trainer:
        is_global_zero = True

    class Training:
        step, max_steps = 0, 10**6

    clock, shown, training = Clock(), page.Page(every=5), Training()
    monkeypatch.setattr(page, "time", clock)
    spent = []

    def write(*_):
        spent.append(0.5)
        clock.now += 0.5

    monkeypatch.setattr(shown, "_write", write)
    shown.start(Trainer(), training)
    while clock.now < 1000:
        clock.now += 0.1
        training.step += 1
        shown.step(Trainer(), training)
    assert len(spent) >= 9
    assert sum(spent) <= page.SHARE * clock.now + 0.5


def test_the_latest_picture_of_each_name_is_found(tmp_path):
    for name in ("samples-00000100.png", "samples-00000200.png", "estimates-00000100.png", "other.png"):
        (tmp_path / name).write_bytes(name.encode())
    assert [(name, step) for name, step, _ in find_pictures(tmp_path)] == [("estimates", 100), ("samples", 200)]


def test_durations_are_written_as_clocks_do():
    assert [write_duration(seconds) for seconds in (0.4, 61, 3723)] == ["0:00", "1:01", "1:02:03"]
