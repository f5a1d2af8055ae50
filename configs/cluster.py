"""The SLURM job of this process, and how that is put back into the queue."""

import atexit
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from types import FrameType

from configs.processes import main_process

log = logging.getLogger(__name__)


def find_job(environ: Mapping[str, str] | None = None) -> str | None:
    """The number of the SLURM job in which this process runs, ``1234``, of an array ``1234_5``; None outside of one."""
    env = os.environ if environ is None else environ
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")


def requeue() -> bool:
    """Have SLURM end this job and start it again later. Of several processes the first asks.

    :returns: whether it will
    """
    job = find_job()
    if job is None or not main_process():
        return job is not None
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("SLURM does not put job %s back into the queue: %s", job,
                    str(getattr(error, "stderr", None) or error).strip())
        return False
    log.info("job %s is back in the queue: it will go on from here", job)
    return True


def watch_signal() -> None:
    """In a SLURM job, have SIGUSR1, by which it announces the time limit and a preemption, put the job back into the
    queue and end the process. A training saves first, see
    :class:`diffusion.training.callbacks.checkpoint.Checkpoint`."""

    def leave(number: int, frame: FrameType | None) -> None:
        requeue()
        sys.exit(128 + number)

    if find_job() is not None:
        signal.signal(signal.SIGUSR1, leave)
        # Python drops its handlers before it has quite ended: the signal would end a job that is done as a failed one.
        atexit.register(signal.signal, signal.SIGUSR1, signal.SIG_IGN)
