"""A run in one file, to be handed on: ``scripts/export.py`` writes it, and ``run=FILE.safetensors`` reads it.

The file is of the format safetensors (https://github.com/huggingface/safetensors): a header in JSON that names type,
shape and place of each tensor, then the numbers. The library verifies the header: it lies within the file, and the
tensors fill the rest of it without gap or overlap, each with as many bytes as its type and shape say. The metadata of
the header hold, under ``thaw``, what a checkpoint says beside its tensors, as JSON: ``{"format", "step", "weights",
"data", "config"}``. The file may come from a stranger: it is checked before it is used, and never runs code.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from configs import UserError
from configs.values import has_interpolation, require_plain
from diffusion.runs.files import make_folder, write_whole
from diffusion.runs.identity import IDENTITY
from diffusion.runs.run import FORMAT, SUFFIX, Run

if TYPE_CHECKING:
    from torch import Tensor

KEY = "thaw"
"""Of the metadata. It is the only one: the library writes several in an order that changes."""
KEPT = (*IDENTITY, "max_steps", "sampling")
"""What a file keeps of a config: what the run is, and how it is sampled. Folders, devices, loggers and other runs stay
behind."""
PARTS = ("data", "space", "model", "condition", "degradation", "prior", "objective")
"""Parts of a config that every run has, each a mapping."""
MAX_HEADER = 2**24
"""Bytes of a header: some 100 000 tensors."""
MAX_RECORD = 2**20
"""Characters of the JSON about the run; a usual one has 3000."""
MAX_DEPTH = 64
"""Of mappings and lists inside each other."""


class RunFile(Run):
    """A run in one file: one step, and one kind of weights. What the commands draw and measure goes into a folder
    beside it that has its name without the ending.

    :param file: where it is
    """

    def __init__(self, file: Path):
        super().__init__(file.with_suffix(""))
        self.place = self.checkpoints = file

    @property
    def exists(self) -> bool:
        return self.place.is_file()

    @property
    def root(self) -> Path:
        """The folder in which the file lies: runs that its ``sampling`` list names are in there."""
        return self.place.absolute().parent

    @property
    def roots(self) -> list[Path]:
        """That folder, and ``run.root`` as it usually is: a file lies anywhere."""
        return [self.root, Path("runs")]

    @property
    def config(self) -> dict[str, Any]:
        """The config in the file, without what concerned its training alone.

        :raises UserError: if the file is damaged, or none of this version's
        """
        return {"format": FORMAT, **read_record(self.place)["config"]}

    @cached_property
    def steps(self) -> dict[int, str]:
        """The step of the file, and the start of the SHA-256 of the whole file."""
        with self.place.open("rb") as file:
            return {read_record(self.place)["step"]: hashlib.file_digest(file, "sha256").hexdigest()[:16]}


def write(path: Path, content: Mapping[str, Any], state: Mapping[str, "Tensor"]) -> None:
    """Write a run as one file, which appears whole or not at all; equal runs make equal files.

    :param content: ``step``, ``weights`` (``raw`` or ``ema``), ``data`` (the fingerprint of the training images) and
        ``config``
    :param state: all weights of the model, those that were not trained among them
    :raises UserError: if the config holds what JSON does not, or the folder cannot be written
    """
    from safetensors.torch import save

    config = {key: content["config"][key] for key in KEPT if key in content["config"]}
    record = {"format": FORMAT, **content, "config": config}
    text = json.dumps(record, ensure_ascii=False)
    if json.loads(text) != record:
        raise UserError("a config with keys that are no words", "a config that JSON gives back as it was",
                        "words as keys, in the part of the config that the run's own class reads")
    data = save({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, {KEY: text})
    make_folder(path.parent)
    write_whole(path, data)


def read_record(path: Path) -> dict[str, Any]:
    """What a file says about its run: ``{"format", "step", "weights", "data", "config"}``. No tensor is read.

    :raises UserError: if it is damaged, none that :func:`write` made, or of another format
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise _refuse(path, f"its header would have {length} bytes")
        with safe_open(path, framework="np") as opened:
            text = (opened.metadata() or {}).get(KEY)
    except (OSError, SafetensorError) as error:
        raise _refuse(path, str(error)) from error
    if text is None:
        raise _refuse(path, "its metadata say nothing of a run")
    if len(text) > MAX_RECORD:
        raise _refuse(path, f"its metadata have {len(text)} characters")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refuse(path, f"its metadata are no JSON ({error})") from error
    if measure_depth(record) > MAX_DEPTH:
        raise _refuse(path, f"its metadata are nested more than {MAX_DEPTH} deep")
    if not isinstance(record, dict) or type(record.get("format")) is not int:
        raise _refuse(path, "its metadata do not say the format")
    if record["format"] != FORMAT:
        raise UserError(f"{path} is of format {record['format']}", f"a file of format {FORMAT}",
                        "the version of this program that wrote it")
    require_plain(record.get("config"), f"the config in {path}")
    problem = find_problem(record)
    if problem is not None:
        raise _refuse(path, problem)
    return record


def find_problem(record: Mapping[str, Any]) -> str | None:
    """What is wrong with the types of a record; None if nothing is."""
    config = record.get("config")
    if not isinstance(config, dict):
        return "its metadata have no config"
    wrong = [f"config.{key}" for key in PARTS if not isinstance(config.get(key), dict)]
    if wrong:
        return f"{wrong[0]} in its metadata is no mapping"
    data = config["data"]
    fine = {
        "step": type(record.get("step")) is int and 0 <= record["step"] < 2**63,
        "weights": record.get("weights") in ("raw", "ema"),
        "data": isinstance(record.get("data"), str),
        "config.seed": type(config.get("seed")) is int,
        "config.sampling": isinstance(config.get("sampling"), list),
        "config.condition.signals": isinstance(config["condition"].get("signals") or {}, dict),
        **{f"config.data.{key}": type(data.get(key)) is int and data[key] > 0 for key in ("size", "channels")},
    }
    wrong = [key for key, good in fine.items() if not good]
    if wrong:
        return f"{wrong[0]} in its metadata is not what scripts/export.py writes there"
    if has_interpolation(config):
        return "its config has an interpolation in it"
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "its metadata have half characters"
    return None


def measure_depth(node: Any) -> int:
    """How many mappings and lists of plain data are inside each other at most."""
    depth, level = 0, [node]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return depth


def read(path: Path) -> dict[str, Any]:
    """The content of a file, as that of a checkpoint: ``{"format", "step", "config", "data", "frozen", "ema"}``, and
    ``raw`` if the file holds these. A file of raw weights has no averages: these are what ``ema`` gives, too.

    :raises UserError: see :func:`read_record`
    """
    record = read_record(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no mapping
    except Exception as error:  # shapes and types that torch does not have fail in many ways
        raise _refuse(path, [*str(error).splitlines(), type(error).__name__][0]) from error
    kinds = dict.fromkeys(("ema", "raw") if record["weights"] == "raw" else ("ema",), state)
    return {**{key: record[key] for key in ("format", "step", "config", "data")}, "frozen": {}, **kinds}


def _refuse(path: Path, why: str) -> UserError:
    return UserError(f"{path} cannot be used: {why}", f"a whole file that scripts/export.py wrote (*{SUFFIX})",
                     "another copy of the file, or the folder of the run")
