"""Checkpoints: tensors and plain types only, written atomically, with a checksum in the file's name.

``step-00001000.1f3a9c5e7b20d846.pt`` holds ``{"format", "step", "config", "raw", "ema", "frozen", "data"}``, where
``frozen`` is what the training does not change, such as a fitted prior, and to go on from it ``{"optimizers", "logged",
"tally", "skips"}``; the second part of the name starts the SHA-256 of the file. A checkpoint is read with
``weights_only=True`` and its objects are rebuilt from the config by classes of known roles: a stranger's file can give
wrong pictures, never run code.
"""

import hashlib
import io
import json
import logging
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from configs import UserError
from configs.values import require_plain
from diffusion.runs import exported
from diffusion.runs.files import make_folder, write_whole
from diffusion.runs.run import FORMAT, SUFFIX

log = logging.getLogger(__name__)

BEST = "best.json"
"""Names the best checkpoint of a folder."""


def save(folder: Path, step: int, content: dict[str, Any]) -> Path:
    """Write ``content`` as the checkpoint of ``step``; it appears whole or not at all."""
    data = dump(intern_words({"format": FORMAT, "step": step, **content}))
    path = folder / f"step-{step:08d}.{_checksum(data)}.pt"
    make_folder(folder)
    write_whole(path, data)
    for other in folder.glob(f"step-{step:08d}.*.pt"):
        if other != path:  # a damaged one, or of a run that was begun again
            other.unlink(missing_ok=True)
    return path


def dump(content: Any) -> bytes:
    """The bytes of a file of tensors and plain data."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def intern_words(node: Any) -> Any:
    """Plain data with equal words as one object, so that equal content makes equal files: a pickle writes a word again
    when it meets another object of it, such as one that came from a checkpoint."""
    if isinstance(node, str):
        return sys.intern(node)
    if isinstance(node, dict):
        return {intern_words(key): intern_words(value) for key, value in node.items()}
    return [intern_words(value) for value in node] if isinstance(node, list) else node


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by step, in order; of a run in one file, that file."""
    if folder.is_file():
        return {exported.read_record(folder)["step"]: folder}
    names = {path: re.fullmatch(r"step-(\d+)\.\w+\.pt", path.name) for path in sorted(folder.glob("step-*.pt"))}
    return {int(name[1]): path for path, name in names.items() if name}


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, or of a run in one file, on the CPU.

    :raises UserError: if it is missing, damaged, of another format, or holds more than tensors and plain types
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}", "a file written by train.py", f"one of the files in {path.parent}")
    if path.suffix == SUFFIX:
        return exported.read(path)
    data = path.read_bytes()
    stamp = path.name.split(".")
    if len(stamp) == 3 and stamp[1] != _checksum(data):
        raise UserError(f"{path} is damaged (its checksum is {_checksum(data)})", f"the checksum {stamp[1]}",
                        "remove it: an earlier checkpoint is used")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as parts:
            if sum(part.file_size for part in parts.infolist()) > len(data):
                raise ValueError("its parts are longer than the file")  # compressed, to any size
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint fail in many ways
        reason = [*str(error).splitlines(), type(error).__name__][0]
        raise UserError(f"{path} cannot be read: {reason}", "tensors and plain types only",
                        "use a checkpoint that train.py wrote") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of format {FORMAT}",
                        "a file written by train.py since version 0.2", "train again, or use the version that wrote it")
    require_content(path, content)
    return content


def require_content(path: Path, content: dict[str, Any]) -> None:
    """Refuse the content of a checkpoint that lacks something, or has something else in its place.

    :raises UserError: naming the first
    """
    kinds = {"step": int, "config": dict, "data": str, "raw": dict, "ema": dict, "frozen": dict}
    wrong = [f"{name} is {describe_kind(content.get(name))}" for name, kind in kinds.items()
             if type(content.get(name)) is not kind]
    wrong += [f"{kind} has a {describe_kind(value)} in it, {name}" for kind in ("raw", "ema", "frozen")
              if isinstance(content.get(kind), dict) for name, value in content[kind].items()
              if not isinstance(name, str) or not isinstance(value, torch.Tensor)]
    step = re.fullmatch(r"step-(\d+)\..*", path.name)
    if not wrong and step and int(step[1]) != content["step"]:
        wrong.append(f"its step is {content['step']}")
    if wrong:
        raise UserError(f"{path} is not a checkpoint of this version: {wrong[0]}", "a file written by train.py",
                        "another checkpoint or run")
    require_plain(content["config"], f"the config in {path}")


def describe_kind(value: Any) -> str:
    """The type of a value, for messages."""
    return "missing" if value is None else type(value).__name__


def read_latest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, None if the folder has none; damaged ones are passed over with a warning.

    :raises UserError: if all of them are damaged
    """
    problems = []
    for path in reversed(list_checkpoints(folder).values()):
        try:
            return read(path)
        except UserError as error:
            log.warning("%s", error)
            problems.append(error)
    if problems:
        raise problems[0]
    return None


def merge_state(content: dict[str, Any], weights: str) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint: the trained ones as they are or averaged, and those that were not trained.

    :param weights: ``raw`` or ``ema``
    :raises UserError: for the raw ones of a file that holds the averages alone
    """
    if weights not in content:
        raise UserError(f"weights={weights} of a file that holds the averages alone", "weights=ema",
                        "weights=ema, or export the run once more with weights=raw")
    return {**content["frozen"], **content[weights]}


def prune(folder: Path, keep: int, milestones: list[int]) -> None:
    """Remove all but the newest ``keep`` checkpoints, those at the milestone steps, and the best."""
    files, best = list_checkpoints(folder), read_best(folder)
    for step in list(files)[:-keep] if keep else []:
        if step not in milestones and (best is None or step != best["step"]):
            files[step].unlink(missing_ok=True)


def note_best(folder: Path, best: dict[str, Any]) -> None:
    """Write down which checkpoint is the best: its ``step``, and the ``value`` of a ``score``."""
    make_folder(folder)
    write_whole(folder / BEST, json.dumps(best))


def read_best(folder: Path) -> dict[str, Any] | None:
    """Which checkpoint is the best, see :func:`note_best`; None if none is known."""
    try:
        best = json.loads((folder / BEST).read_text())
    except (OSError, ValueError):
        return None
    kinds = {"step": int, "score": str, "value": float}
    whole = isinstance(best, dict) and all(type(best.get(name)) is kind for name, kind in kinds.items())
    return best if whole else None


def forget_best(folder: Path, step: int) -> None:
    """Forget the best checkpoint, if it is later than a step from which the training goes on."""
    best = read_best(folder)
    if best is not None and best["step"] > step:
        (folder / BEST).unlink()


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
