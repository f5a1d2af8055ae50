"""What killed processes leave of files goes when the next one writes in the folder; what is being written stays."""

import fcntl
import os
import signal
import time

import pytest
from PIL import Image

from diffusion.data.sets.folder import Folder
from diffusion.runs import checkpoint
from diffusion.runs.files import make_folder, write_whole
from diffusion.runs.run import Run
from scripts.prepare_data import prepare

DEAD = ".{}.0123456789abcdef.partial"


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_process_that_is_at_work_and_then_killed(tmp_path):
    child = os.fork()
    if not child:
        try:
            write_whole(tmp_path / "a", lambda file: signal.pause())
        finally:
            os._exit(0)
    try:
        while not list_names(tmp_path):
            time.sleep(0.01)
        time.sleep(0.1)  # from the name to the lock
        make_folder(tmp_path)
        [name] = list_names(tmp_path)
        assert name.startswith(".a.")
        write_whole(tmp_path / "a", "by another")
        assert list_names(tmp_path) == [name, "a"]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    make_folder(tmp_path)
    assert list_names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "by another"


def test_a_file_that_is_being_written_stays(tmp_path):
    def write(file):
        file.write(b"con")
        make_folder(tmp_path)
        file.write(b"tent")

    write_whole(tmp_path / "a", write)
    assert (tmp_path / "a").read_text() == "content"
    assert list_names(tmp_path) == ["a"]


def test_another_process_removes_it_before_it_is_locked(tmp_path, monkeypatch):
    lock, names = fcntl.flock, []

    def late(file, operation):
        if operation == fcntl.LOCK_EX and len(names) < 2:
            names.append(file.name)
            make_folder(tmp_path)
            assert not os.path.exists(file.name)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    write_whole(tmp_path / "a", "content")
    assert len(names) == 2
    assert (tmp_path / "a").read_text() == "content"


def test_without_locks_files_are_written_and_nothing_is_removed(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError("no locks here")

    (tmp_path / DEAD.format("a")).write_text("")
    monkeypatch.setattr(fcntl, "flock", refuse)
    write_whole(tmp_path / "a", lambda file: (make_folder(tmp_path), file.write(b"content")))
    assert (tmp_path / "a").read_text() == "content"
    assert list_names(tmp_path) == [DEAD.format("a"), "a"]


def test_files_of_others_stay(tmp_path):
    for name in (".a.partial", "a.0123456789abcdef.partial", ".a.0123456789abcde.partial", ".a.0123456789abcdef"):
        (tmp_path / name).write_text("")
    before = list_names(tmp_path)
    make_folder(tmp_path)
    assert list_names(tmp_path) == before


@pytest.mark.parametrize("command", [
    lambda source, out: prepare(source, out / "file"),
    lambda source, out: Folder(source, 8, cache=out, labels=False).split("train"),
    lambda source, out: checkpoint.save(out, 1, {}),
    lambda source, out: Run(out).record({})], ids=["archive", "cache", "checkpoint", "run"])
def test_every_writer_removes_them(command, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for i in range(2):
        Image.effect_noise((8, 8), 50 + i).save(source / f"{i}.png")
    out.mkdir()
    (out / DEAD.format("file")).write_text("half of it")
    command(source, out)
    assert list_names(out)
    assert not list(out.glob(".*.partial"))
