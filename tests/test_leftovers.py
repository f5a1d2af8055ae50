"""What killed processes leave of files goes when the next one writes in the folder; what is being written stays."""

import os
import signal
import time

import pytest
from PIL import Image

from diffusion.data.sets.folder import Folder
from diffusion.runs import checkpoint
from diffusion.runs.files import OLD, make_folder, name_partial, read_clock, write_whole
from diffusion.runs.run import Run
from scripts.prepare_data import prepare

DEAD = ".{}.0123456789abcdef.partial"
"""Of another machine, by its first six digits."""


def age(path, seconds):
    """Let nobody have touched a file for so long, by the clock of its file system."""
    now = read_clock(path.parent)
    os.utime(path, (now - seconds, now - seconds))


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


@pytest.mark.parametrize(("seconds", "left"), [(0, True), (OLD - 60, True), (OLD + 60, False)])
def test_of_another_machine_only_old_ones_go(tmp_path, monkeypatch, seconds, left):
    """By the clock of the file system, whatever this machine's says."""
    file = tmp_path / DEAD.format("a")
    file.write_text("half of it")
    age(file, seconds)
    for wrong in (-3 * OLD, 3 * OLD):
        monkeypatch.setattr(time, "time", lambda wrong=wrong, clock=time.time: clock() + wrong)
        make_folder(tmp_path)
        assert list_names(tmp_path) == [file.name] * left


def test_of_this_machine_those_of_dead_processes_go(tmp_path):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    alive = name_partial(tmp_path / "a")
    alive.write_text("half of it")
    dead = alive.with_name(alive.name.replace(f"{os.getpid():06x}", f"{child:06x}"))
    assert dead != alive
    dead.write_text("half of it")
    make_folder(tmp_path)
    assert list_names(tmp_path) == [alive.name]


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
    age(out / DEAD.format("file"), 2 * OLD)
    command(source, out)
    assert list_names(out)
    assert not list(out.glob(".*.partial"))
