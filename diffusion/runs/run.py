"""The run folder: a run's identity. The same command finds the same folder and goes on.

```
runs/<experiment>/<name, hash of the identity, or, in a sweep, the job's own settings>/
  config.yaml        the resolved config; `sampling` in it holds the defaults of sample.py
  environment.json   git revision, versions, device, command of the last start
  metrics.csv        what was logged
  index.html         how the training goes, for a browser
  accuracy.csv       of a classifier, on held-out images
  skipped/           times and losses of batches that were not finite, see scripts/replay.py
  pictures/          samples and restorations at intervals
  samples/           what sample.py has drawn
  evaluations/       what evaluate.py has measured, a folder for each protocol
  checkpoints/       step-00001000.<checksum>.pt
```

Nothing here imports torch: a run is refused before anything slow is loaded.
"""

import contextlib
import csv
import hashlib
import json
import logging
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from configs import UserError
from configs.errors import WriteError
from configs.processes import main_process
from configs.values import has_interpolation, list_differences, read_limit, require_plain, to_plain
from diffusion.runs.environment import describe_environment
from diffusion.runs.files import make_folder, write_whole
from diffusion.runs.identity import check_name, extract_identity, hash_identity, name_job, take_filled
from diffusion.runs.lock import Lock

log = logging.getLogger(__name__)

FORMAT = 2
"""Of run folders, checkpoints and exported files. What this version writes, later versions read."""
SUFFIX = ".safetensors"
"""Of a run in one file, see :mod:`diffusion.runs.exported`."""
LOCK = ".lock"
"""Of a run folder that is being trained."""

MOST_BYTES = 2**20
"""Bytes of a config file that is read, unless ``THAW_MOST_CONFIG_BYTES`` says more."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file that somebody else may have written, as plain data; nothing in it is resolved.

    :raises ValueError: if it is none, too long, or has an alias, by which a few lines can stand for any number
    """
    most = read_limit("MOST_CONFIG_BYTES", MOST_BYTES)
    if path.stat().st_size > most:
        raise ValueError(f"it has more than {most} bytes (THAW_MOST_CONFIG_BYTES)")
    text = path.read_text()
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise ValueError("it has an alias in it")
    if not isinstance(yaml.safe_load(text), dict):
        raise ValueError("it holds no mapping")
    config: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    return {str(key): value for key, value in config.items()}


def list_configs(root: Path) -> Iterator[dict[str, Any]]:
    """The configs of the runs below the folder of all runs; one that cannot be read, or is of another format, is passed
    over."""
    for path in sorted(root.glob("*/*/config.yaml")):
        with contextlib.suppress(UserError):
            yield Run(path.parent).config


class Run:
    """One run folder. As a context it is locked, and removed at the end if nothing was written into it, or if it was
    refused before the first step.

    :param folder: where it is
    :ivar place: what ``run=`` names
    :ivar lock: held by the main process of a training
    """

    def __init__(self, folder: Path):
        self.folder = self.place = folder
        self.checkpoints = folder / "checkpoints"
        self.pictures = folder / "pictures"
        self.metrics = folder / "metrics.csv"
        self.lock = Lock(folder / LOCK, f"{folder} is being trained", "wait for it, or give this one another run.name")
        self._made: list[Path] = []

    @classmethod
    def find(cls, cfg: DictConfig, experiment: str | None, job: Sequence[str] | None = None,
             origins: Mapping[str, Any] | None = None) -> "Run":
        """The run of this config, whether its folder is there or not. For the parameters see :meth:`start`."""
        record = {**to_plain(cfg), "origin": dict(origins or {})}
        parts = [check_name(cfg.run.name), name_job(job or ())]
        name = ",".join(part for part in parts if part) or hash_identity(extract_identity(record), record["data"])
        return cls(Path(cfg.run.root) / (experiment or "custom") / name)

    @classmethod
    def start(cls, cfg: DictConfig, experiment: str | None, job: Sequence[str] | None = None,
              origins: Mapping[str, Any] | None = None) -> "Run":
        """The folder of this config, made or found, and locked.

        :param origins: the checkpoints that the run begins with, see :func:`diffusion.runs.origins.find_origins`
        :param job: the overrides of one job of a sweep, which name its folder; None outside of one
        :raises UserError: if the folder holds a run with another identity, or one that is being trained right now
        """
        run = cls.find(cfg, experiment, job, origins)
        run._made = [folder for folder in (run.folder, *run.folder.parents) if not folder.exists()]
        try:
            run._take()
            if run.checkpoints.exists() and not run.checkpoints.is_dir():
                raise UserError(f"{run.checkpoints} is no folder", "the place of the checkpoints",
                                "remove or rename that file")
            if any(run.checkpoints.glob("*.pt")):
                run._compare(extract_identity({**to_plain(cfg), "origin": dict(origins or {})}))
        except BaseException:
            run.lock.release()
            run._remove_made()
            raise
        return run

    def record(self, config: dict[str, Any]) -> None:
        """Write down the resolved config and the environment, once nothing stands in the way of the training."""
        self._write_config(config)
        write_whole(self.folder / "environment.json", json.dumps(describe_environment(), indent=2))

    def complete(self, max_steps: int) -> int | None:
        """The step of a checkpoint that leaves nothing to do up to ``max_steps``; None if there is no such checkpoint
        that is whole, by the checksum in its name."""
        for path in sorted(self.checkpoints.glob("step-*.*.pt"), reverse=True):
            step, checksum = path.name.removeprefix("step-").split(".")[:2]
            if int(step) >= max_steps and hashlib.sha256(path.read_bytes()).hexdigest().startswith(checksum):
                return int(step)
        return None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        there = {path.name for path in self.folder.iterdir()} - {LOCK}
        idle = {"config.yaml", "environment.json"} if isinstance(error, UserError) else set()
        unused = bool(self._made) and there <= idle and self.lock.held
        if unused:
            for name in there:
                (self.folder / name).unlink()
        elif error is not None:
            error.add_note(f"in {self.folder}")
        self.lock.release()
        if unused:
            self._remove_made()

    @classmethod
    def at(cls, place: str | Path) -> "Run":
        """The run of a folder or of a file, whether it is there or not."""
        from diffusion.runs.exported import RunFile

        path = Path(place).expanduser()
        return RunFile(path) if path.suffix == SUFFIX and path.is_file() else Run(path)

    @property
    def exists(self) -> bool:
        """Whether there is a run: its checkpoints have the config, too."""
        return (self.folder / "config.yaml").is_file() or any(self.folder.glob("checkpoints/step-*.*.pt"))

    @classmethod
    def open(cls, place: str | Path) -> "Run":
        """An existing run, from its folder or its file.

        :raises UserError: if there is none, naming those that exist nearby
        """
        run = cls.at(place)
        if not run.exists:
            path = run.folder
            inside, near = (sorted(str(p.parent) for p in islice(folder.glob("*/config.yaml"), 100))[:5]
                            for folder in (path, path.parent))
            found = [shlex.quote(f"run={folder}") for folder in inside or near]
            step = re.fullmatch(r"step-(\d+)\..*\.pt", path.name)
            if step and (path.parents[1] / "config.yaml").is_file():  # a checkpoint itself
                found = [f"{shlex.quote(f'run={path.parents[1]}')} step={int(step[1])}"]
            raise UserError(f"no run in {path}", "a folder that train.py wrote (it holds config.yaml), or a file "
                            f"that scripts/export.py wrote (*{SUFFIX})",
                            " or ".join(found) or "python train.py experiment=ddpm_digits")
        return run

    def read_score(self, name: str | None) -> float | None:
        """The last number of a column of ``metrics.csv`` or ``accuracy.csv``; None if there is none."""
        for path in (self.metrics, self.folder / "accuracy.csv") if name else ():
            rows = csv.DictReader(path.read_text().splitlines()) if path.is_file() else []
            values = [row[name] for row in rows if row.get(name)]
            if values:
                return float(values[-1])
        if name:
            log.warning("score=%s: no such number in metrics.csv or accuracy.csv of %s", name, self.folder)
        return None

    @property
    def root(self) -> Path:
        """The folder of all runs, ``run.root``."""
        return self.folder.absolute().parents[1]

    @property
    def roots(self) -> list[Path]:
        """Folders of runs in which a judge of this one is looked for."""
        return [self.root]

    @property
    def steps(self) -> dict[int, str]:
        """The checkpoints in order: their steps, and the starts of their SHA-256."""
        files = sorted(self.checkpoints.glob("step-*.pt"))
        names = [re.fullmatch(r"step-(\d+)\.(\w+)\.pt", path.name) for path in files]
        return {int(name[1]): name[2] for name in names if name}

    @property
    def evaluations(self) -> list[Path]:
        """The ``evaluation.json`` files of this run, the newest last."""
        return sorted(self.folder.glob("evaluations/*/evaluation.json"), key=lambda path: path.stat().st_mtime)

    @property
    def config(self) -> dict[str, Any]:
        """The config of the run as plain data, as it is written: nothing in it is resolved.

        :raises UserError: if the file is none of this version's
        """
        path = self.folder / "config.yaml"
        try:
            config = read_yaml(path)
        except (OSError, ValueError, YAMLError, RecursionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return self._recover(UserError(f"{path} cannot be read: {reason}", "the file that train.py wrote",
                                           "another run"))
        if config.get("format") != FORMAT:
            raise UserError(f"{path} is not a run of format {FORMAT}", "a run that train.py wrote since version 0.2",
                            "train again, or use the version that wrote it")
        if has_interpolation(config):
            raise UserError(f"{path} has an interpolation in it", "plain values, as train.py writes them",
                            "do not use runs of people whom you do not trust")
        require_plain(config, str(path))
        return config

    def _recover(self, problem: UserError) -> dict[str, Any]:
        """The config that the newest checkpoint has, which becomes ``config.yaml`` again.

        :raises UserError: the problem, if there is no checkpoint
        """
        from diffusion.runs import checkpoint  # imports torch

        content = checkpoint.read_latest(self.checkpoints)
        if content is None:
            raise problem
        log.warning("%s; the checkpoint of step %d has the config, too", problem.got, content["step"])
        path = self.folder / "config.yaml"
        with contextlib.suppress(WriteError, OSError):
            if path.exists():
                path.replace(path.with_suffix(".yaml.damaged"))
            self._write_config(content["config"])
        return {"format": FORMAT, **content["config"]}

    def _write_config(self, config: dict[str, Any]) -> None:
        make_folder(self.folder)
        write_whole(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create({"format": FORMAT, **config})))

    def _take(self) -> None:
        """Make the folder, and lock it in the process that writes there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if main_process():
                self.lock.take()
        except OSError as error:
            if self.folder.is_file():
                raise UserError(f"{self.folder} is a file", "the folder of a run; what scripts/export.py wrote cannot "
                                "be trained on", "run.name=ANOTHER_NAME, which may begin with it: begin=base "
                                f"begin.base.run={shlex.quote(str(self.folder))}") from error
            raise UserError(f"cannot write to {self.folder}: {error.strerror}", "a folder that can be written",
                            "run.root=FOLDER") from error

    def _remove_made(self) -> None:
        """Remove the folders that were made for this run, those that are empty."""
        with contextlib.suppress(OSError):  # the run's own, or a parent that holds other runs by now
            for folder in self._made:
                folder.rmdir()

    def _compare(self, mine: dict[str, Any]) -> None:
        there = extract_identity(self.config)
        rows = list_differences(there, take_filled(mine, there))
        lines = [f"{key}: {theirs!r} there, {ours!r} here" for key, theirs, ours in rows]
        if lines:
            raise UserError(f"{self.folder} holds another run:\n    " + "\n    ".join(lines),
                            "the same settings, to go on with it", "run.name=ANOTHER_NAME, or undo the difference")
