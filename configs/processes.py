"""Which process of a training this is, whether a process is still there, and how this one holds its memory."""

import contextlib
import ctypes
import os
from pathlib import Path


def main_process() -> bool:
    """Whether this process has the global rank 0 of its training: the one that holds the run and writes into it.

    The rank is torchrun's ``RANK``, or ``SLURM_PROCID`` where Lightning goes by it (under ``srun``, but for jobs called
    ``bash`` or ``interactive``), or that of Lightning's own processes: ``NODE_RANK`` (else ``GROUP_RANK``) and
    ``LOCAL_RANK``. Without any of them there is one process.
    """
    known = os.environ
    if "RANK" in known:
        name = "RANK"
    elif "SLURM_NTASKS" in known and known.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        name = "SLURM_PROCID"
    else:
        name = "NODE_RANK" if "NODE_RANK" in known else "GROUP_RANK"
    return known.get(name, "0") == known.get("LOCAL_RANK", "0") == "0"


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of ``malloc.h``."""
MMAP_BYTES = (2**30, 2**25)
"""Below which memory is kept: what is wanted, and the most that a glibc before 2.35 allows."""


def keep_freed_memory() -> bool:
    """Keep the memory that is freed, for what is allocated next. Feature maps of a few megabytes come and go in every
    step; glibc gives each back to the system, which clears each page of the next one: a tenth of a training step on a
    CPU. The numbers and the peak of memory stay as they are. Nothing is done where the environment has its own wish
    (``MALLOC_``), or where the C library is another.

    :returns: whether it was done
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        allocator = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return any(allocator(M_MMAP_THRESHOLD, size) for size in MMAP_BYTES) and bool(
        allocator(M_TRIM_THRESHOLD, 2**31 - 1))


def find_boot() -> str:
    """Where the number of a process means that process: the boot of this machine, and its table of processes, since a
    container has one of its own. Empty parts are those that a system does not say."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def find_start(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks since the boot; empty for one that is dead and
    still listed, None if the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]


def is_gone(pid: int, start: str | None = None) -> bool:
    """Whether a process of this machine has ended, as far as the system says.

    :param start: its :func:`find_start`; another process may have got its number since
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # somebody else's
    now = find_start(pid)
    return now == "" or (None not in (now, start) and now != start)
