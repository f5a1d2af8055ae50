"""Disks that are full or read-only: words, the old file stays, and nothing partial remains."""

import contextlib
import errno
import os
import resource
import shutil

import pytest
import torch
from helpers import DIGITS, done, train
from PIL import Image

from configs.errors import WriteError, describe_failure
from diffusion.data.sets.folder import Folder
from diffusion.runs import checkpoint
from diffusion.runs.files import append_whole, write_whole
from diffusion.training.callbacks.log import append, rewind
from scripts.prepare_data import prepare

RUN = [*DIGITS, "run.name=x", "max_steps=2", "callbacks.checkpoint.every=1", "callbacks.pictures.count=0"]

pytestmark = pytest.mark.faults


@contextlib.contextmanager
def files_of_at_most(size):
    """No file can grow beyond so many bytes: the system refuses the write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def list_partial(folder):
    return [path.name for path in folder.rglob("*") if path.name.endswith(".partial")]


@pytest.mark.parametrize("content", [b"x" * 5000, "x" * 5000, lambda file: file.write(b"x" * 5000)])
def test_a_file_is_written_whole_or_stays(tmp_path, content):
    path = tmp_path / "a"
    path.write_text("before")
    with files_of_at_most(2000), pytest.raises(WriteError, match=r"no space left for .*/a(: 5 kB needed, |\n)"):
        write_whole(path, content)
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    append_whole(tmp_path / "a", "one\n")
    with files_of_at_most(10), pytest.raises(WriteError, match="no space left"):
        append_whole(tmp_path / "a", "two and more\n")
    assert (tmp_path / "a").read_text() == "one\n"
    with files_of_at_most(10), pytest.raises(WriteError, match="no space left"):
        append_whole(tmp_path / "new", "two and more\n")
    assert not (tmp_path / "new").exists()


def test_rows_of_numbers(tmp_path):
    path = tmp_path / "metrics.csv"
    for step in range(1, 4):
        append(path, {"step": step, "loss": 0.5})
    before = path.read_text()
    with files_of_at_most(len(before) + 2), pytest.raises(WriteError):
        append(path, {"step": 1000, "loss": 0.5})
    assert path.read_text() == before
    with files_of_at_most(8), pytest.raises(WriteError):
        rewind(path, 2)
    assert path.read_text() == before


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "no space left"),
                                             (errno.EROFS, "Read-only"), (errno.EACCES, "Permission denied")])
def test_every_reason_has_words(code, words):
    error = describe_failure(OSError(code, os.strerror(code), "/nope/file"))
    assert error is not None
    assert words in error.got
    assert "/nope/file" in error.got
    assert describe_failure(OSError(errno.ENOENT, "x")) is None


class TestTraining:
    @pytest.mark.parametrize("size", [10, 1000, 20_000])
    def test_nothing_partial_remains_and_the_same_command_goes_on(self, tmp_path, size):
        command = [f"run.root={tmp_path / 'runs'}", *RUN]
        with files_of_at_most(size):
            said = done("train.py", *command, code=2)
        assert "no space left" in said
        assert list_partial(tmp_path) == []
        names = []  # of the last checkpoint, with its checksum: after the fault, and of a training without one
        for _ in range(2):
            done("train.py", *command)
            names.append(checkpoint.list_checkpoints(tmp_path / "runs" / "ddpm_digits" / "x" / "checkpoints")[2].name)
            shutil.rmtree(tmp_path / "runs")
        assert names[0] == names[1]

    def test_earlier_checkpoints_stay(self, tmp_path):
        run = train(tmp_path, *RUN)
        before = sorted(path.name for path in run.checkpoints.iterdir())
        with files_of_at_most(20_000), pytest.raises(WriteError, match=r"[\d]+ kB needed"):
            train(tmp_path, *RUN, "max_steps=4")
        assert sorted(path.name for path in run.checkpoints.iterdir()) == before


class TestOfARun:
    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory):
        return train(tmp_path_factory.mktemp("full"), *RUN)

    @pytest.mark.parametrize("size", [10, 200, 1500])
    def test_sampling(self, run, tmp_path, size):
        command = [f"run={run.folder}", f"out={tmp_path}", "samples=0-3", "sampler.num_steps=2"]
        with files_of_at_most(size):
            assert "no space left" in done("sample.py", *command, code=2)
        assert list_partial(tmp_path) == []
        done("sample.py", *command)
        assert len(list(tmp_path.glob("0*.png"))) == 4
        for path in tmp_path.glob("*.png"):
            Image.open(path).load()

    @pytest.mark.parametrize("size", [10, 1200])
    def test_evaluation(self, run, size):
        command = [f"run={run.folder}", "count=20", "metrics=quick", "judge=none", "extractor=random", "baseline=false",
                   "sampler.num_steps=2", f"seed={size}"]
        with files_of_at_most(size):
            assert "no space left" in done("evaluate.py", *command, code=2)
        assert list_partial(run.folder) == []
        done("evaluate.py", *command)
        assert run.evaluations

    def test_a_place_that_cannot_be_written(self, run, tmp_path):
        (tmp_path / "file").write_text("")
        said = done("sample.py", f"run={run.folder}", f"out={tmp_path / 'file' / 'x'}", "samples=0", code=2)
        assert "cannot write" in said
        said = done("train.py", *RUN, f"run.root={tmp_path / 'file'}", code=2)
        assert "cannot write" in said


def test_a_cache_without_room_costs_time_only(tmp_path, caplog):
    for i in range(4):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(tmp_path / f"{i}.png")
    with files_of_at_most(3000):
        data = Folder(tmp_path, 40, cache=tmp_path / "cache", labels=False)
        assert len(data.split("train")) == 3
    assert "cannot be kept" in caplog.text
    assert list_partial(tmp_path) == []
    assert torch.equal(data.split("train").images, Folder(tmp_path, 40, cache=False).split("train").images)


def test_an_archive_that_does_not_fit(tmp_path):
    Image.effect_noise((64, 64), 90).save(tmp_path / "a.png")
    with files_of_at_most(3000), pytest.raises(WriteError, match=r"no space left for .*out\.zip"):
        prepare(tmp_path, tmp_path / "out.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]
