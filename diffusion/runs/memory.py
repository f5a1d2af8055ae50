"""The most memory that something takes."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


class Peak:
    """The most memory in use while a context was open.

    :ivar bytes: on a GPU what torch had allocated there; else the resident memory of this process, all of it, libraries
        and data included. None where the system does not tell
    """

    bytes: int | None = None


@contextlib.contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Watch the memory of a device."""
    found = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Linux forgets the peak of the process when told so.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    yield found
    if device.type == "cuda":
        found.bytes = torch.cuda.max_memory_allocated(device)
    elif STATUS.exists():
        match = re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
        found.bytes = int(match[1]) * 1024 if match else None
