"""The seed of the moments, what the commands need, and the table of what has been survived."""

import os
import random
import secrets
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from processes import run
from writers import TRAIN, TRAIN_STAGE, Reference, make_photos, read_all

SEED = os.environ.setdefault("CRASH_SEED", str(secrets.randbelow(10**6)))
HEAD = ("fault", "command", "tries", "survived", "most work lost")


def pytest_report_header():
    return f"moments of the kills: CRASH_SEED={SEED}"


def pytest_terminal_summary(terminalreporter):
    rows: dict[tuple[str, str], list[Any]] = defaultdict(lambda: [0, 0, ""])
    most: dict[tuple[str, str], int] = defaultdict(int)
    for report in [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())]:
        case = dict(report.user_properties)
        if report.when != "call" or "fault" not in case:
            continue
        key = case["fault"], case["command"]
        rows[key][0] += 1
        rows[key][1] += report.passed
        most[key] = max(most[key], case.get("lost", 0))
        rows[key][2] = f"{most[key]} {case['unit']}" if "unit" in case else "-"
    if rows:
        table = [HEAD, *([*key, *map(str, row)] for key, row in sorted(rows.items()))]
        widths = [max(len(line[i]) for line in table) for i in range(len(HEAD))]
        terminalreporter.section(f"faults (CRASH_SEED={SEED})")
        for line in table:
            terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with all that a command may need."""
    place = tmp_path_factory.mktemp("base") / "place"
    place.mkdir()
    make_photos(place / "photos")
    for command in ([*TRAIN, "callbacks.pictures.count=0"], TRAIN_STAGE):
        ended = run(command, place)
        assert ended.code == 0, ended.said
    return place


@pytest.fixture(scope="session")
def set_up(base):
    """Makes a folder anew, with what a command needs."""

    def set_up(place: Path, writer) -> Path:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name in writer.needs:
            shutil.copytree(base / name, place / name)
        return place

    return set_up


@pytest.fixture(scope="session")
def measure(set_up, tmp_path_factory):
    """The reference of a writer, made once."""
    made: dict[str, Reference] = {}

    def measure(writer) -> Reference:
        if writer.name not in made:
            place = set_up(tmp_path_factory.mktemp(writer.name) / "place", writer)
            ended = run(writer.command, place)
            assert ended.code == 0, ended.said
            made[writer.name] = Reference(place, read_all(place), ended.seconds, ended.writes)
        return made[writer.name]

    return measure


@pytest.fixture
def note(request):
    """Notes what a test is about, for the table."""

    def note(fault: str, command: str, **more: Any) -> None:
        request.node.user_properties.extend({"fault": fault, "command": command, **more}.items())

    return note


@pytest.fixture
def rng(request) -> random.Random:
    """Of this test, by the seed."""
    return random.Random(f"{SEED} {request.node.name}")
