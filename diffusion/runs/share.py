"""Which of several processes this one is: what SLURM and torchrun say in the environment, or the user."""

import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from configs import UserError

SPECIAL_STEP = 0xFFFFFFF0
"""SLURM's numbers of steps from here on are no steps of ``srun``, but the batch script, the interactive shell, ..."""


@dataclass(frozen=True)
class Share:
    """One of several equal processes, and the work that is its own.

    :ivar index: from 0
    :ivar count: of the processes
    :ivar source: who says so, in words
    :ivar local: index among the processes of this machine, from 0
    """

    index: int = 0
    count: int = 1
    source: str = ""
    local: int = 0

    def __str__(self) -> str:
        return f"part {self.index + 1} of {self.count}" + (f" ({self.source})" if self.source else "")

    def cut(self, n: int) -> range:
        """Which of n pieces of work are this process's: in a row, and shared out as evenly as can be."""
        return range(self.index * n // self.count, (self.index + 1) * n // self.count)


ALONE = Share()


def find_share(asked: str, environ: Mapping[str, str], sweep: bool = False,
               ask_slurm: Callable[[str], str] | None = None) -> Share:
    """Which process this is.

    An array of SLURM whose jobs start several processes each counts them all: job after job.

    :param asked: ``auto`` (by the environment), ``none`` (alone), or ``i/n``, counted from 1
    :param environ: the environment of the process
    :param sweep: this is a job of a sweep, which may be an array itself: an array means nothing here
    :param ask_slurm: gives what ``scontrol show job`` says of an array; None asks it
    :raises UserError: for what is none of these, and where the environment does not tell
    """
    if asked == "none":
        return ALONE
    if asked != "auto":
        return _read_share(asked)
    started = find_launcher(environ)
    array = None if sweep else find_array(environ, ask_slurm or ask_scontrol)
    found = [share for share in (array, started) if share is not None]
    index, count = 0, 1
    for share in found:
        index, count = index * share.count + share.index, count * share.count
    return Share(index, count, ", ".join(share.source for share in found if share.count > 1 or len(found) == 1),
                 started.local if started else 0)


def find_launcher(environ: Mapping[str, str]) -> Share | None:
    """The process among those that torchrun or srun has started; None if neither has. A torchrun that srun started on
    each machine counts all processes itself."""
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return _take(environ, "RANK", "WORLD_SIZE", "LOCAL_RANK", "torchrun")
    step = environ.get("SLURM_STEP_ID", "")
    if not step.isdecimal() or int(step) >= SPECIAL_STEP or "SLURM_PROCID" not in environ:
        return None
    count = next((name for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if name in environ), None)
    return _take(environ, "SLURM_PROCID", count, "SLURM_LOCALID", "srun") if count else None


def find_array(environ: Mapping[str, str], ask_slurm: Callable[[str], str]) -> Share | None:
    """The job among those of a SLURM array; None outside of one. Arrays need not begin at 0, and may have a step, or
    gaps, of which the environment does not tell: then SLURM is asked for the list.

    :raises UserError: if it does not know all jobs of the array any more
    """
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return None
    number = _read(environ, "SLURM_ARRAY_TASK_ID")
    first, last, step, count = (_read(environ, f"SLURM_ARRAY_TASK_{key}", default)
                                for key, default in (("MIN", -1), ("MAX", -1), ("STEP", 1), ("COUNT", -1)))
    numbers = list(range(first, last + 1, max(1, step))) if first >= 0 else []
    if len(numbers) != count or number not in numbers:
        numbers = list_array(ask_slurm(environ.get("SLURM_ARRAY_JOB_ID", "")))
    if number not in numbers or count not in (-1, len(numbers)):
        raise UserError(f"shard=auto in job {number} of a SLURM array with gaps, and SLURM does not tell which jobs it "
                        "has", "an array without gaps, such as --array=0-9", "shard=i/n, with i counted from 1 to n")
    return Share(numbers.index(number), len(numbers), "SLURM array")


def list_array(said: str) -> list[int]:
    """The numbers of the jobs of an array, in order, in what ``scontrol show job`` says: ``ArrayTaskId=7,9-13:2%4``."""
    found: set[int] = set()
    for words in re.findall(r"\bArrayTaskId=([\d,:-]+)", said):
        for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", words):
            found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return sorted(found)


def ask_scontrol(array: str) -> str:
    """What SLURM says of the jobs of an array; nothing if it cannot be asked."""
    try:
        return subprocess.run(["scontrol", "show", "job", "-o", array], capture_output=True, text=True, timeout=30,
                              check=True).stdout if array else ""
    except (OSError, subprocess.SubprocessError):
        return ""


def _read_share(asked: str) -> Share:
    numbers = re.fullmatch(r"(\d{1,9})/(\d{1,9})", asked)
    if numbers is None or not 1 <= int(numbers[1]) <= int(numbers[2]):
        raise UserError(f"shard={asked}", "auto, none, or a part and their number, counted from 1", "shard=1/4")
    return Share(int(numbers[1]) - 1, int(numbers[2]))


def _take(environ: Mapping[str, str], index: str, count: str, local: str, source: str) -> Share:
    share = Share(_read(environ, index), _read(environ, count), source, _read(environ, local, 0))
    if share.index >= share.count:
        raise UserError(f"{index}={share.index} and {count}={share.count} in the environment",
                        "one of the processes, counted from 0", "shard=i/n, with i counted from 1 to n, or shard=none")
    return share


def _read(environ: Mapping[str, str], name: str, default: int = 0) -> int:
    value = environ.get(name, str(default))
    if not re.fullmatch(r"-?\d{1,18}", value):
        raise UserError(f"{name}={value} in the environment", "a whole number",
                        "shard=i/n, with i counted from 1 to n, or shard=none")
    return int(value)
