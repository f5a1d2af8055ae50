"""The run folder: a run's identity. The same command finds the same folder and goes on.

```
runs/<experiment>/<name, hash of the identity, or, in a sweep, the job's own settings>/
  config.yaml        the resolved config; `sampling` in it holds the defaults of sample.py
  environment.json   git revision, versions, device, command of the last start
  metrics.csv        what was logged
  accuracy.csv       of a classifier, on held-out images
  pictures/          samples and restorations at intervals
  samples/           what sample.py has drawn
  evaluations/       what evaluate.py has measured, a folder for each protocol
  checkpoints/       step-00001000.<checksum>.pt
```

Nothing here imports torch: a run is refused before anything slow is loaded.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from configs import UserError

IDENTITY = ("data", "space", "model", "condition", "degradation", "prior", "objective", "optimizer", "ema", "batch",
            "accumulate", "precision", "seed", "augment")
"""The fields in which two runs must agree to be the same run; everything else may change on the way."""
PATHS = ("root", "cache", "download")
"""Arguments of a data set that say where it lies, not what it is."""


class Run:
    """One run folder. As a context it is locked, and one that was made for nothing is removed at the end.

    :param folder: where it is
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.pictures = folder / "pictures"
        self.metrics = folder / "metrics.csv"
        self._lock: IO[str] | None = None
        self._made: list[Path] = []

    @classmethod
    def start(cls, cfg: DictConfig, experiment: str | None, job: Sequence[str] | None = None) -> "Run":
        """The folder of this config, made or found, and locked.

        :param job: the overrides of one job of a sweep, which name its folder; None outside of one
        :raises UserError: if the folder holds a run with another identity, or one that is being trained right now
        """
        record = plain(cfg)
        mine = identity(record)
        parts = [given(cfg.run.name), job_name(job or ())]
        name = ",".join(part for part in parts if part) or digest(mine, record["data"])
        run = cls(Path(cfg.run.root) / (experiment or "custom") / name)
        run._made = [folder for folder in (run.folder, *run.folder.parents) if not folder.exists()]
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            run._take()
        except OSError as error:
            raise UserError(f"cannot write to {run.folder}: {error.strerror}", "a folder that can be written",
                            "run.root=FOLDER") from error
        if any(run.checkpoints.glob("*.pt")):
            run._compare(mine)
        return run

    def record(self, config: dict[str, Any]) -> None:
        """Write down the resolved config and the environment, once nothing stands in the way of the training."""
        write(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        write(self.folder / "environment.json", json.dumps(environment(), indent=2))

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
        if self._made and [path.name for path in self.folder.iterdir()] == [".lock"]:
            (self.folder / ".lock").unlink()
            with contextlib.suppress(OSError):  # a parent that holds other runs by now
                for folder in self._made:
                    folder.rmdir()
        elif error is not None:
            error.add_note(f"in {self.folder}")
        if self._lock:
            self._lock.close()

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """An existing run.

        :raises UserError: if there is none, naming those that exist nearby
        """
        path = Path(folder)
        if not (path / "config.yaml").is_file():
            near = sorted(str(p.parent) for p in path.parent.glob("**/config.yaml"))[:5] if path.parent.is_dir() else []
            inside = sorted(str(p.parent) for p in path.glob("*/config.yaml"))[:5] if path.is_dir() else []
            raise UserError(f"no run in {path}", "a folder that train.py wrote (it holds config.yaml)",
                            " or ".join(f"run={p}" for p in inside or near) or "python train.py experiment=ddpm_digits")
        return cls(path)

    @property
    def evaluations(self) -> list[Path]:
        """The ``evaluation.json`` files of this run, the newest last."""
        return sorted(self.folder.glob("evaluations/*/evaluation.json"), key=lambda path: path.stat().st_mtime)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of the run, as plain data."""
        return plain(OmegaConf.load(self.folder / "config.yaml"))

    def _take(self) -> None:
        # The lock lives as long as the process, however that ends.
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                raise UserError(f"{self.folder} is being trained by another process", "one process per run",
                                "wait for it, or give this one another run.name") from None

    def _compare(self, mine: dict[str, Any]) -> None:
        theirs = identity(self.config)
        lines = [f"{key}: {theirs_value!r} there, {value!r} here" for key, theirs_value, value in diff(theirs, mine)]
        if lines:
            raise UserError(f"{self.folder} holds another run:\n    " + "\n    ".join(lines),
                            "the same settings, to go on with it", "run.name=ANOTHER_NAME, or undo the difference")


def plain(cfg: DictConfig | ListConfig) -> dict[str, Any]:
    """A config as plain, resolved data."""
    record = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(record, dict)
    return {str(key): value for key, value in record.items()}


def missing(cfg: DictConfig) -> None:
    """Refuse a config in which mandatory values are open.

    :raises UserError: naming them
    """
    keys = sorted(OmegaConf.missing_keys(cfg))
    if keys:
        raise UserError(f"{', '.join(keys)} not given", "a value", " ".join(f"{key}=..." for key in keys))


def whole(cfg: DictConfig, **least: int) -> None:
    """Refuse a config in which these fields are not whole numbers of at least so much.

    :raises UserError: naming the first
    """
    for key, low in least.items():
        if type(cfg[key]) is not int or cfg[key] < low:
            near = int(cfg[key]) if isinstance(cfg[key], float) and cfg[key].is_integer() else low
            raise UserError(f"{key}={cfg[key]}", f"a whole number, at least {low}", f"{key}={max(low, near)}")


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that makes a run what it is."""
    fields = {key: config.get(key) for key in IDENTITY}
    if not fields["augment"]:
        del fields["augment"]  # none, as in a config without the key
    fields["precision"] = str(fields["precision"])
    for key in ("data", "degradation"):  # a degradation may name images of another set
        fields[key] = without(fields[key] or {}, PATHS)
    return fields


def without(config: Any, keys: Sequence[str]) -> Any:
    """A config as plain data without these keys, at any depth."""
    if isinstance(config, Mapping):
        return {key: without(value, keys) for key, value in config.items() if key not in keys}
    return [without(value, keys) for value in config] if isinstance(config, list) else config


def sampling(overrides: Sequence[str]) -> list[str]:
    """A run's ``sampling`` list, which becomes overrides of ``sample.py``.

    :raises UserError: if it sets anything but how to sample
    """
    for override in overrides:
        if _group(override) not in ("sampler", "guidance", "prior", "start"):
            raise UserError(f"sampling: {override}", "overrides of sampler, guidance, prior or start",
                            """'sampling=["sampler=ddim","guidance=cfg"]'""")
    return list(overrides)


def suited(overrides: Sequence[str], condition: Mapping[str, Any]) -> list[str]:
    """A ``sampling`` list without classifier-free guidance where there is no condition to guide by, so that
    ``condition=none``, or images without classes, are enough to make an experiment unconditional."""
    if condition.get("signals", True):
        return list(overrides)
    left = {f"guidance=cfg{rest}": f"guidance={rest[1:]}" if rest else None for rest in ("", "_clip", "_pag")}
    kept = (left.get(o, o) for o in overrides if "guidance.cfg." not in o)
    return [o for o in kept if o]


def given(name: Any) -> str:
    """``run.name`` as a folder's name; empty if there is none.

    :raises UserError: for a path, and for what YAML reads as another thing than was typed (``1e3``, ``true``)
    """
    if name is None:
        return ""
    if isinstance(name, bool | float):
        raise UserError(f"run.name={name}, which is no word", "the name of a folder", f"""run.name="'{name}'\"""")
    if str(name) in (".", "..") or "/" in str(name):
        raise UserError(f"run.name={name}", "the name of a folder, not a path",
                        f"run.name={Path(str(name)).name or 'first'}, with run.root=FOLDER for another place")
    return str(name)


def job_name(overrides: Sequence[str]) -> str:
    """The name of a sweep's job: its own overrides of the identity, sorted, e.g. ``optimizer.lr=0.0003,seed=0``. What
    else the sweep holds, and in which order, makes no difference.

    A value that cannot be part of a folder's name is made so, a path by its last part, and told apart by a hash.

    :param overrides: as Hydra hands them to the job, numbers already normalised
    """
    parts = []
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if _group(key.lstrip("~")) in IDENTITY and key not in ("data.cache", "data.download"):
            parts.append(f"{key.replace('/', '.')}={_safe(unquoted(value))}")
    name = ",".join(sorted(parts))
    return name if len(name) <= 120 else f"{name[:111]}-{short(name, 8)}"


def _safe(value: str) -> str:
    clean = re.sub(r"[^\w.+-]+", "-", value.rsplit("/", 1)[-1], flags=re.ASCII)
    return clean if clean == value else f"{clean.strip('-')}-{short(value, 4)}"


def digest(mine: dict[str, Any], data: dict[str, Any]) -> str:
    """A short name for an identity. The last part of the data's path counts, so that two folders of images make two
    runs, wherever they lie."""
    return short([mine, Path(data.get("root") or "").name], 8)


def short(content: Any, length: int) -> str:
    """The first hexadecimal digits of the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:length]


def diff(a: Any, b: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Where two nested mappings differ: (dotted key, value in a, value in b)."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        return [row for key in keys for row in diff(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))]
    return [] if a == b else [(path, a, b)]


def environment() -> dict[str, Any]:
    """What a run needs to be understood later."""

    def git(*args: str) -> str | None:
        try:
            return subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
                                  timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git": git("rev-parse", "HEAD"),
        "changed": bool(git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {p: installed(p) for p in ("torch", "torchvision", "lightning", "hydra-core", "numpy")},
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "machine": platform.machine(),
    }


def write(path: Path, text: str) -> None:
    """Write a text file whole or not at all, also when several processes write it at once."""
    partial = path.with_suffix(f"{path.suffix}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)


def _group(override: str) -> str:
    return override.split("=")[0].split(".")[0].split("/")[0]


def on_top(defaults: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """A run's ``sampling`` list with overrides on top: a chosen group, such as ``sampler=ddpm``, drops all that the run
    says about it (``sampler=ddim``, ``sampler.num_steps=50``, ``sampler/grid=uniform``)."""
    chosen = {override.split("=")[0] for override in overrides if "=" in override}
    kept = [d for d in defaults if _group(d) not in chosen]
    return [*kept, *overrides]


def unquoted(value: str) -> str:
    """A value as Hydra reads it: quotes around it, which names beyond ASCII need, do not belong to it."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def with_defaults(arguments: list[str]) -> list[str]:
    """Arguments of ``sample.py`` or ``evaluate.py`` with the run's own ``sampling`` list before them.

    A default gives way to an argument about the same group: ``sampler=ddpm`` drops ``sampler=ddim`` and all
    ``sampler.*`` of the run. ``input=FOLDER`` becomes ``input.root=FOLDER``.

    :raises UserError: if ``run=`` names no run
    """
    arguments = [f"input.root={a[6:]}" if a.startswith("input=") else a for a in arguments]
    folder = next((unquoted(a[4:]) for a in arguments if a.startswith("run=")), None)
    if folder is None or "--help" in arguments:
        return arguments
    if "," in folder and not Path(folder).is_dir():
        raise UserError(f"run={folder}", "one run, since each has its own way of sampling", "one command for each run")
    if set(folder) & set(",="):  # as in the names that a sweep gives
        arguments = ["run='" + folder.replace("'", "\\'") + "'" if a.startswith("run=") else a for a in arguments]
    # Hydra's flags, such as -m, must stay in front of all overrides.
    first = next(i for i, a in enumerate(arguments) if "=" in a and not a.startswith("-"))
    return [*arguments[:first], *on_top(sampling(Run.open(folder).config["sampling"]), arguments[first:])]
