"""The jobs of a sweep as an array of SLURM jobs, by submitit."""

import logging
import os
import pickle
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from configs.errors import UserError

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_BETWEEN_QUESTIONS = 15.0
"""To SLURM, which serves many people."""
ENDINGS = 2
"""Questions in a row to which SLURM must answer that a job is over before its result is missed: files of other nodes
may come late."""


@dataclass
class Job:
    """One job of the sweep.

    :ivar overrides: its settings
    :ivar typed: those of them that were typed, which name it
    :ivar title: those in which it differs from the others
    :ivar shape: nodes, and processes on each of them
    :ivar state: ``complete`` before anything was submitted, ``submitted``, then ``done`` or ``failed``
    :ivar place: what it made, or its log
    :ivar handle: submitit's
    """

    overrides: list[str]
    typed: list[str]
    title: str
    shape: tuple[int, int] = (1, 1)
    state: str = ""
    value: Any = None
    place: str = ""
    handle: Any = None
    run: Any = None
    missed: int = 0


class SlurmLauncher(Launcher):
    """A sweep as one array of SLURM jobs, which this process waits for. A job that failed is shown at once; the table
    at the end is made of the run folders and of what the jobs gave back. What is complete is not submitted, and jobs
    that an earlier call has submitted are waited for.

    ``configs/hydra/launcher/slurm.yaml`` has the common options of ``sbatch``; ``more`` takes the others.

    :param timeout_min: minutes of one start of a job
    :param signal_s: seconds before that at which it gets SIGUSR1, saves, and goes back into the queue
    """

    def __init__(self, *, timeout_min: int, signal_s: int, more: Mapping[str, Any] | None, **options: Any):
        if find_spec("hydra_plugins.hydra_submitit_launcher") is None:
            raise UserError("hydra/launcher=slurm without submitit", "the package hydra-submitit-launcher",
                            'pip install "thaw[slurm]"')
        self.options = {"timeout_min": timeout_min, **options}
        self.more = {"signal": f"USR1@{signal_s}", "requeue": True, **(more or {})}
        self._told: str | None = None
        if timeout_min * 60 <= signal_s:
            raise UserError(f"hydra.launcher.timeout_min={timeout_min} and signal_s={signal_s}",
                            "time for the job before it is told to save", f"hydra.launcher.signal_s={timeout_min * 15}")

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from submitit.core.utils import FailedJobError

        from configs.cli import FAILED
        from thaw.commands import complete_job

        name = str(self.config.hydra.job.config_name)
        shared = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set()
        jobs = [Job(complete_job(name, typed), list(typed), " ".join(one for one in typed if one not in shared) or name)
                for typed in job_overrides]
        for job in jobs:
            self.look(name, job)
        shape = {job.shape for job in jobs if not job.state} or {(1, 1)}
        if len(shape) > 1:
            raise UserError("jobs of one sweep on different numbers of devices", "the same trainer.devices and "
                            "trainer.num_nodes for all", "a sweep for each")
        self.options["nodes"], self.options["tasks_per_node"] = shape.pop()
        place = Path(self.config.hydra.sweep.dir).absolute()
        try:
            self.submit(jobs, place, initial_job_idx)
        except (FailedJobError, ValueError, RuntimeError, TypeError, OSError) as error:
            raise UserError(f"SLURM does not take the jobs: {str(error).strip()}", "options that this cluster's sbatch "
                            "takes, on a machine that has it", "hydra.launcher.partition=..., or hydra/launcher=local"
                            ) from error
        try:
            self.wait(jobs)
        except KeyboardInterrupt:
            ids = sorted({job.handle.job_id.split("_")[0] for job in jobs if job.state == "submitted"})
            log.info("the jobs go on: scancel %s ends them, the same command waits for them", " ".join(ids))
            raise
        show(jobs)
        FAILED += ["\n".join([job.title, str(job.value)]) for job in jobs if job.state == "failed"]
        return [JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED,
                          _return_value=None if job.state == "failed" else job.value) for job in jobs]

    def compose(self, job: Job) -> tuple[DictConfig, str | None]:
        """The config of a job and the experiment that it names."""
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, job.overrides)
        experiment = cfg.hydra.runtime.choices.get("experiment")
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg, experiment

    def look(self, name: str, job: Job) -> None:
        """Refuse a job of ``train.py`` that means nothing, and see whether it is complete."""
        if name != "train":
            return
        from diffusion.commands import settle_training
        from diffusion.runs.run import Run

        try:
            cfg, experiment = self.compose(job)
            job.run = Run.find(cfg, experiment, job.typed, settle_training(cfg))
            job.place = str(job.run.folder)
            job.shape = (cfg.trainer.num_nodes, cfg.trainer.devices)
            if not isinstance(cfg.trainer.devices, int) or cfg.trainer.devices < 1:
                raise UserError(f"trainer.devices={cfg.trainer.devices} for a job of SLURM", "a number: each device "
                                "gets a process", "trainer.devices=1")
            if job.run.exists and job.run.complete(cfg.max_steps) is not None:
                job.state, job.value = "complete", job.run.read_score(cfg.score)
        except UserError as error:
            job.state, job.value = "failed", error
            log.info("failed: %s\n%s\n", job.title, error)

    def submit(self, jobs: Sequence[Job], folder: Path, first: int) -> None:
        """Submit what is neither complete nor in the queue already."""
        from hydra.core.singleton import Singleton
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as Worker
        from submitit import AutoExecutor, SlurmJob

        from configs.cli import ROOT
        from configs.values import hash_plain
        from diffusion.runs.files import make_folder, write_whole

        make_folder(folder)
        notes = {id(job): folder / f"{hash_plain(job.overrides, 12)}.job" for job in jobs}
        known = {id(job): notes[id(job)].read_text() for job in jobs if not job.state and notes[id(job)].is_file()}
        waiting = list_queue(list(known.values())) if known else {}
        if waiting is None:
            raise RuntimeError("squeue does not say whether jobs that were submitted before still wait")
        for job in jobs:
            if known.get(id(job)) in waiting:
                job.state, job.handle = "submitted", SlurmJob(folder / "%j", known[id(job)])
                log.info("submitted before as job %s: %s", job.handle.job_id, job.title)
        fresh = [(i, job) for i, job in enumerate(jobs, first) if not job.state]
        if not fresh:
            return
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        executor = AutoExecutor(folder / "%j", cluster="slurm")
        kinds = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
        options = {key if key in kinds else f"slurm_{key}": OmegaConf.to_object(value) if OmegaConf.is_config(value)
                   else value for key, value in self.options.items() if value is not None}
        executor.update_parameters(**options, name=f"thaw-{self.config.hydra.job.config_name}",
                                   slurm_additional_parameters=self.more, stderr_to_stdout=True,
                                   slurm_srun_args=["--kill-on-bad-exit=1"])
        worker = Worker()  # what the job runs: it composes the config and calls the task
        worker.setup(hydra_context=self.hydra_context, task_function=self.task_function, config=self.config)
        singletons = Singleton.get_state()
        handles = executor.map_array(worker, [job.overrides for _, job in fresh], ["hydra.sweep.dir"] * len(fresh),
                                     [i for i, _ in fresh], [str(i) for i, _ in fresh], [singletons] * len(fresh))
        for (_, job), handle in zip(fresh, handles):
            job.state, job.handle = "submitted", handle
            write_whole(notes[id(job)], handle.job_id)
            log.info("submitted as job %s: %s", handle.job_id, job.title)
        log.info("logs: %s", folder)

    def wait(self, jobs: Sequence[Job]) -> None:
        """Wait until all jobs have given back a result, or can no longer."""
        asked = time.monotonic()
        while left := [job for job in jobs if job.state == "submitted"]:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for job in left:
                collect(job)
            left = [job for job in left if job.state == "submitted"]
            if left and time.monotonic() - asked > SECONDS_BETWEEN_QUESTIONS:
                queue, asked = list_queue([job.handle.job_id for job in left]), time.monotonic()
                if queue is None:
                    continue
                for job in left:
                    self.tell(job, queue.get(job.handle.job_id))
                    job.missed = 0 if job.handle.job_id in queue else job.missed + 1
                    if job.missed >= ENDINGS:
                        collect(job)
                        if job.state == "submitted":
                            fail(job, ask_state(job.handle.job_id))

    def tell(self, job: Job, reason: str | None) -> None:
        """Say for what a job waits that is not its turn, such as a time limit that the partition does not have."""
        if reason not in (None, "None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", self._told):
            self._told = reason
            log.info("job %s waits: %s", job.handle.job_id, reason)


def collect(job: Job) -> None:
    """Take the result of a job, if it is there."""
    path = job.handle.paths.result_pickle
    with suppress(OSError, EOFError):
        if path.exists():
            outcome, value = pickle.loads(path.read_bytes())
            if outcome != "success" or value.status != JobStatus.COMPLETED:
                fail(job, str(value if outcome != "success" else value._return_value).strip().splitlines()[-1])
                return
            job.state, job.value = "done", value.return_value
            if job.run is None:
                job.place = str(job.value) if isinstance(job.value, Path) else str(job.handle.paths.stdout)
            log.info("done: %s", job.title)
            if job.run is None and job.value is None:  # what evaluate.py gives back is what it says
                print("\n".join(read_log(Path(job.handle.paths.stdout))), flush=True)


def read_log(path: Path) -> list[str]:
    """What a job itself has said so far, without empty lines and what srun and submitit say, some of it twice."""
    try:
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return []
    others = [line for line in lines if line.startswith(("submitit ", "srun: ", "slurmstepd"))]
    said = {line.split(" - ", 1)[-1] for line in others}
    return [line for line in lines if line not in others and line not in said]


def fail(job: Job, reason: str) -> None:
    """Say at once that a job failed, with the end of its log."""
    path = Path(job.handle.paths.stdout)
    log.info("\n".join(["", *read_log(path)[-6:]]))
    job.state, job.place, job.value = "failed", str(path), f"job {job.handle.job_id}: {reason}\n  log: {path}"
    log.info("failed: %s\n%s\n", job.title, job.value)


def list_queue(ids: Sequence[str]) -> dict[str, str] | None:
    """Which of these jobs wait or run, and for what, in SLURM's words; None if it does not answer."""
    numbers = sorted({number.split("_")[0] for number in ids})
    try:
        said = subprocess.run(["squeue", "--noheader", "--array", "--format=%i %r", f"--jobs={','.join(numbers)}"],
                              capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    if said.returncode and "Invalid job id" not in said.stderr:
        return None
    return dict(line.split(maxsplit=1) for line in said.stdout.splitlines() if " " in line)


def ask_state(number: str) -> str:
    """What the accounting says of a job that is over, in a word, such as ``OUT_OF_MEMORY``."""
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(["sacct", "-X", "--noheader", "--parsable2", "--format=State,ExitCode", "--jobs", number],
                              capture_output=True, text=True, timeout=60).stdout.split("\n")[0].split("|")
        if said[0]:
            return f"{said[0]}, exit code {said[-1].split(':')[0]}"
    return "it ended without a result"


def show(jobs: Sequence[Job]) -> None:
    """The table at the end."""
    rows = [("job", "state", "step", "score", "where")]
    for job in jobs:
        step = str(max(job.run.steps, default=0)) if job.run is not None else ""
        score = f"{job.value:.4g}" if isinstance(job.value, float) else ""
        rows.append((job.title, job.state, step, score, job.place))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip(), flush=True)
