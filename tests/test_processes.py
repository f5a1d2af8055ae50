"""How a process holds memory."""

import platform
import subprocess
import sys

import pytest

from configs.processes import keep_freed_memory

STEP = """
import resource, sys
from configs.processes import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "kept" else None)
def step():
    maps = [bytearray(24 * 2**20) for _ in range(4)]
    for each in maps:
        each[::4096] = bytes(len(each[::4096]))
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such setting")
def test_memory_that_was_freed_is_not_cleared_again():
    said = {}
    for how in ("kept", "given back"):
        ended = subprocess.run([sys.executable, "-c", STEP, how], capture_output=True, text=True, check=True)
        said[how] = ended.stdout.split()
    assert said["kept"][0] == "True"
    assert 100 * int(said["kept"][1]) < int(said["given back"][1])


def test_what_the_environment_says_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()
