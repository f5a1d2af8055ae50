"""Disks that get full at a write, or are read-only: words, the files that were there stay, nothing partial remains, and
the same command ends well once there is room. The disk is in memory, in a namespace of its own."""

import multiprocessing
import re
import shutil
import subprocess
from fnmatch import fnmatch

import pytest
from faults import Fault
from processes import in_own_namespace, mount, run
from writers import WRITERS, by_kind, by_writer, list_different, list_torn, read_all

pytestmark = [pytest.mark.crash]
FORK = multiprocessing.get_context("fork")
OF_KNOWN_SIZE = (".pt", ".yaml", ".json", ".csv", ".md")
"""Files that are in memory before they are written."""


@pytest.fixture(scope="module", autouse=True)
def _permitted():
    wrong = in_own_namespace(str)
    if wrong:
        pytest.skip(f"this system lets nobody mount disks of his own: {wrong.splitlines()[-1]}")


def set_up_disk(writer, place, base):
    mount(place, "size=64m")
    for name in writer.needs:
        shutil.copytree(base / name, place / name)


def fill_at_a_write(writer, reference, base, fault):
    place, kept = reference.place, reference.place.with_name("place.before")
    set_up_disk(writer, place, base)
    ended = run(writer.command, place, fault, context=FORK)
    assert ended.code == 2, ended.said
    assert "Traceback" not in ended.said
    found = re.findall(r"no space left for (\S+?)(: \d+ \w+ needed, \d+ \w+ free)?$", ended.said, re.MULTILINE)
    assert found, ended.said
    name, needed = found[-1]
    assert needed or not name.endswith(OF_KNOWN_SIZE), ended.said
    path = place / name
    if path.name == kept.joinpath("name").read_text():
        before = kept / path.name
        assert path.exists() == before.exists(), ended.said
        assert not before.exists() or path.read_bytes() == before.read_bytes()
    assert list(place.rglob(".*.partial")) == []
    assert list_torn(place, reference.files, reference.writes) == []
    (place / "ballast").unlink()
    go_on(writer, reference)


def refuse_all_writes(writer, reference, base):
    place = reference.place
    set_up_disk(writer, place, base)
    before = read_all(place)
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    ended = run(writer.command, place, context=FORK)
    assert ended.code == 2, ended.said
    assert "Read-only file system" in ended.said
    assert "Traceback" not in ended.said
    assert read_all(place) == before
    subprocess.run(["mount", "-o", "remount,rw", place], check=True)
    go_on(writer, reference)


def go_on(writer, reference):
    ended = run(writer.command, reference.place, context=FORK)
    assert ended.code == 0, ended.said
    assert list_different(reference.place, reference.files) == []


@pytest.fixture
def disk(base, measure):
    """Empties the place of a writer's reference, for the disk, and gives the reference."""

    def disk(writer):
        reference = measure(writer)
        for path in (reference.place, reference.place.with_name("place.before")):
            shutil.rmtree(path, ignore_errors=True)
        reference.place.mkdir()
        return reference

    return disk


@by_kind()
def test_full(writer, kind, disk, base, rng, note):
    reference = disk(writer)
    count = sum(fnmatch(name, kind) for name in reference.writes)
    fault = Fault(kind, 1 if kind.endswith(".csv") else rng.randint(1, count), "full")  # a line may fit where one ended
    wrong = in_own_namespace(fill_at_a_write, writer, reference, base, fault)
    note("disk full at a write", writer.name)
    assert not wrong, f"{fault}\n{wrong}"


@by_writer(*(writer.name for writer in WRITERS if writer.name != "checkpoints"))
def test_read_only(writer, disk, base, note):
    wrong = in_own_namespace(refuse_all_writes, writer, disk(writer), base)
    note("read-only disk", writer.name)
    assert not wrong, wrong
