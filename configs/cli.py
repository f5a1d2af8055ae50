"""What the three commands share: compose the config, run the task, answer errors in words."""

import difflib
import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.cluster import watch_signal
from configs.errors import UserError, describe_failure, escape
from configs.overrides import quote_place
from configs.processes import keep_freed_memory, main_process
from configs.registry import plugins, searchpath

ROOT = Path(__file__).parents[1]
SWEEPS = "${oc.select:run.root,runs}/.sweep"
"""Where a launcher or a sweeper writes: beside the runs, on a disk that all nodes of a cluster see."""
MISSING = re.compile(r"Could not find '(.+/)?([^/']*)'")
"""What Hydra says of an option that there is not."""
FAILED: list[str] = []
"""Of each job of a sweep that failed: what it was, and why."""


def command(config: str, task: Callable[[DictConfig, str | None], object],
            prepare: Callable[[list[str]], list[str]] | None = None) -> None:
    """Run ``task(cfg, experiment)`` on the config that the command line composes.

    In a sweep, a job that fails does not keep the others from running; all that failed are reported at the end. A job
    that a launcher runs in another process ends that with the code, which is all that a cluster sees.

    Exit codes: 0 done, 1 Hydra refused the overrides, 2 a :class:`UserError` or a failed job, 130 interrupted.

    :param config: the top-level config, ``train``, ``sample`` or ``evaluate``
    :param task: gets the composed config and the name of the chosen experiment, if any
    :param prepare: changes the arguments before Hydra sees them
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    FAILED.clear()
    parent, script = os.getpid(), sys.argv[0]

    @hydra.main(version_base="1.3", config_path=".", config_name=config)
    def main(cfg: DictConfig) -> object:
        sys.argv = [script, *arguments]  # as typed: a run records them, Lightning starts its other processes with them
        logging.basicConfig(level=logging.INFO if main_process() else logging.WARNING, force=True)
        for handler in logging.getLogger().handlers:
            handler.setFormatter(Plain("%(message)s"))
        sweep = job()
        watch_signal()
        keep_freed_memory()
        try:
            return task(cfg, HydraConfig.get().runtime.choices.get("experiment"))
        except Exception as error:
            if isinstance(error, OmegaConfBaseException):
                error = UserError(str(error).splitlines()[0], "settings of the kinds that the config has, and ${} of "
                                  "those that are there", "another value, or the value without ${}")
            if isinstance(error, OSError):
                error = describe_failure(error) or error
            if sweep is None and isinstance(error, UserError):
                stop(str(error), 2)
            if sweep is None:
                raise
            if not isinstance(error, UserError):
                traceback.print_exc()
            print(f"\n{error}\n", file=sys.stderr)
            if os.getpid() != parent:
                sys.exit(2)
            # The place is the error's note, see Run.__exit__.
            FAILED.append("\n".join([" ".join([*sweep, *getattr(error, "__notes__", [])]), str(error)]))

    try:
        sys.argv[1:] = map(quote_place, sys.argv[1:])
        if {"--help", "-h"} & set(sys.argv[1:]):
            from configs.help import describe_command

            typed = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
            print(describe_command(config, prepare(typed) if prepare and typed else typed))
            return
        arguments = prepare(sys.argv[1:]) if prepare else sys.argv[1:]
        sweeps = {"-m", "--multirun"} & set(arguments)
        chosen = any(argument.startswith("hydra/") for argument in arguments)
        with tempfile.TemporaryDirectory(prefix="thaw-") if sweeps and not chosen else nullcontext() as scratch:
            # Hydra notes a sweep in a folder; the run folders say all that it would say. A launcher and a sweeper of
            # their own have more to say.
            more = [f"hydra.sweep.dir='{scratch or SWEEPS}'"] if sweeps else []
            more += [searchpath()] if plugins() else []
            first = next((i for i, a in enumerate(arguments) if "=" in a and a[0] != "-"), len(arguments))
            sys.argv[1:] = [*arguments[:first], *more, *arguments[first:]]
            with raising():
                main()
    except UserError as error:
        stop(str(error), 2)
    except (HydraException, OmegaConfBaseException) as error:
        stop(_explain_refusal(error), 1)
    except KeyboardInterrupt:
        stop("interrupted", 130)
    finally:
        if FAILED:
            print("\n\n".join([f"\njobs of the sweep that failed: {len(FAILED)}", *FAILED]), file=sys.stderr)
    if FAILED:
        sys.exit(2)


@contextmanager
def raising() -> Iterator[None]:
    """Hydra raises its errors instead of printing them, with a traceback where it did not foresee them.

    :raises UserError: for what Hydra did not foresee in the overrides
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1].filename
        if isinstance(error, UserError | HydraException | OmegaConfBaseException) or "/hydra/" not in place:
            raise
        typed = " ".join(argument for argument in sys.argv[1:] if not argument.startswith(("hydra", "-")))
        raise UserError(f"overrides that mean nothing: {typed}", "key=value, group=name, +key=value or ~key",
                        "the choices are in --help") from error
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _explain_refusal(error: BaseException) -> str:
    """What Hydra has against the overrides, and why. The options that there are make one line, the nearest another."""
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines += [line for line in str(cause).splitlines() if line not in lines
                  and not line.startswith(("Config search path", "\tprovider="))]
        cause = cause.__cause__
    options = [line.strip() for line in lines if line.startswith("\t")]
    said = [line for line in lines if line.strip() and not line.startswith("\t")]
    missing = next((found[2] for found in map(MISSING.search, said) if found), "")
    near = difflib.get_close_matches(missing, options, n=1)
    shown = [", ".join(options)] if options else []
    return "\n".join([*said, *shown, *(f"Did you mean {name}?" for name in near)])


class Plain(logging.Formatter):
    """Log lines without what a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return escape(super().format(record))


def job() -> list[str] | None:
    """The overrides of the job of a sweep that is running; None outside of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return list_typed()


def list_typed() -> list[str]:
    """The overrides of this job as they were typed: an interpolation in them is about the config, not Hydra's own."""
    from hydra.core.hydra_config import HydraConfig

    typed = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False) or ()
    return [str(override) for override in typed]


def child(arguments: Sequence[str]) -> int:
    """Print a command such as ``["train.py", "experiment=ddpm_digits"]``, run it, and give its exit code. Ctrl-C
    reaches the command, which may take its time to save.

    :raises KeyboardInterrupt: once the command has ended after Ctrl-C
    """
    script, *overrides = arguments
    path = os.path.relpath(ROOT / script)
    print(f"\n$ python {shlex.join([path, *overrides])}", flush=True)
    interrupted = False
    with subprocess.Popen([sys.executable, path, *overrides]) as process:
        while process.returncode is None:
            try:
                process.wait()
            except KeyboardInterrupt:
                interrupted = True
    if interrupted or process.returncode == 130:
        raise KeyboardInterrupt
    return process.returncode


def stop(message: str, code: int) -> NoReturn:
    """Print why and leave, without a traceback."""
    print(f"\n{message}", file=sys.stderr)
    sys.exit(code)
