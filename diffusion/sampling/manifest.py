"""``manifest.json``: how the samples in a folder were made, and a line for each of them."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs import UserError
from configs.values import hash_plain, list_differences
from diffusion.runs.files import write_whole

FREE = ("run", "out", "batch", "device", "data", "samples", "condition", "allow", "overwrite", "animate", "animation",
        "shard")
"""Settings of ``sample.py`` in which samples of one folder may differ: they say which ones, or where, or how fast."""
OF_ARCHIVES = ("samples", "condition")
"""Those of them in which the samples of one archive may not: nothing is added to one."""
COSTS = ("evaluations_per_sample", "evaluations_of_other_runs", "peak_memory_gb")
"""What a record says of the drawing; a command that draws nothing leaves it as it is."""
SECONDS_BETWEEN_WRITES = 10.0

Sample = dict[str, Any]
"""``file``, ``index``, ``condition`` (its signals in words) and ``seed``; of a restoration also ``source``, the photo's
name, and ``pixels``, a hash of what was restored."""


def drop_free(settings: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for all samples of a folder: settings without the free ones and the input's place."""
    archive = settings.get("format", "png") != "png"
    kept = {key: value for key, value in settings.items() if key not in FREE or (archive and key in OF_ARCHIVES)}
    if kept.get("pool") is None:  # the usual, which no folder names
        kept.pop("pool", None)
    return kept | {"input": {key: value for key, value in kept["input"].items() if archive or key != "root"}}


def require_same(folder: Path, there: dict[str, Any], mine: dict[str, Any], overwrite: bool) -> bool:
    """Whether samples were made as others are to be made, by the ``checkpoint`` and the ``settings`` of their records.

    :param overwrite: they may be thrown away otherwise
    :raises UserError: with the differences
    """
    before, now = ({"checkpoint": one["checkpoint"], **drop_free(one["settings"])} for one in (there, mine))
    lines = [f"{key}: {old!r} there, {new!r} here" for key, old, new in list_differences(before, now)]
    if lines and not overwrite:
        raise UserError(f"{folder} holds other samples:\n    " + "\n    ".join(lines),
                        "the same settings, to add to them",
                        "another out=FOLDER, or overwrite=true to replace them")
    return not lines


def folder_name(title: str, settings: dict[str, Any], checkpoint: dict[str, Any]) -> str:
    """Name of the folder of a set of samples: readable, and different for different settings or checkpoints.

    :param title: what is done
    """
    asked = [drop_free(settings), settings["condition"], settings["input"]["root"], checkpoint]
    name = re.sub(r"\W", "", title).lower()
    return f"{name}-seed{settings['seed']}-{hash_plain(asked, 6)}"


def describe_part(node: dict[str, Any] | None) -> str:
    """A composed config in short: ``DDIM (grid UniformGrid, num_steps 50)``; parts without a name are listed, what
    is null is left out. A table of plain values is ``(hint 1.5, text 3.0)``."""
    if not node:
        return "none"
    parts = {key: describe_part(value) if isinstance(value, dict) else value for key, value in node.items()
             if value is not None}
    name = str(parts.pop("_target_", "")).split(".")[-1]
    settings = ", ".join(f"{key} {value}" for key, value in parts.items())
    if name:
        return f"{name} ({settings})" if parts else name
    return f"({settings})" if _is_table(node) else ", ".join(map(str, parts.values()))


def order_tables(node: Any) -> Any:
    """A composed config for a record: tables of plain values as lists of pairs, since they may differ by their order
    alone, as ``guidance.multi_cfg.scales`` does."""
    if not isinstance(node, dict):
        return node
    return [list(pair) for pair in node.items()] if _is_table(node) else \
        {key: order_tables(value) for key, value in node.items()}


def _is_table(node: dict[str, Any]) -> bool:
    return "_target_" not in node and any(not isinstance(value, dict | None) for value in node.values())


class Manifest:
    """The record of a folder of samples. What another command with the same settings has put there stays; a sample of
    the same file name is replaced.

    :param folder: of the samples
    :param record: what is true of all samples; ``settings`` and ``checkpoint`` must be those of the samples that are
        there already
    :param overwrite: throw away samples that were made otherwise
    :raises UserError: samples are there that were made otherwise
    :ivar seconds: time that the drawing took, of all commands together
    :ivar pictures: what the grid and the animation show, by file name
    """

    def __init__(self, folder: Path, record: dict[str, Any], overwrite: bool = False):
        self.folder = folder
        self.path = folder / "manifest.json"
        there = self._read()
        there = there if there.get("samples") else {}
        if not require_same(folder, there or record, record, overwrite):
            files = [there["archive"]] if "archive" in there else [sample["file"] for sample in there["samples"]]
            for file in ["manifest.json", *there["pictures"], *files]:
                (folder / Path(file).name).unlink(missing_ok=True)
            there = {}
        self.record = record | {key: there[key] for key in COSTS if key in there}
        self.samples: dict[str, Sample] = {sample["file"]: sample for sample in there.get("samples", ())}
        self.seconds: float = there.get("seconds", 0.0)
        self.pictures: dict[str, Any] = there.get("pictures", {})
        self._mine: dict[str, Sample] = {}
        self._written = time.monotonic()

    def has(self, sample: Sample) -> bool:
        """Whether this very sample is there, and its file."""
        file = self.record.get("archive", sample["file"])
        return self.samples.get(sample["file"]) == sample and (self.folder / file).is_file()

    def shows(self, pictures: dict[str, Any]) -> bool:
        """Whether these pictures are there, and their files."""
        return pictures.items() <= self.pictures.items() and all((self.folder / name).is_file() for name in pictures)

    def record_costs(self, costs: Mapping[str, float], n: int) -> None:
        """What the drawing of n samples has cost.

        :param costs: the evaluations ``own`` and ``others`` of all of them (see
            :func:`diffusion.sampling.watchers.evaluations`), the most ``bytes`` in memory, and the ``seconds``
        """
        if costs.get("own") or costs.get("others"):
            self.record["evaluations_per_sample"] = round(costs.get("own", 0) / n, 2)
            self.record["evaluations_of_other_runs"] = round(costs.get("others", 0) / n, 2)
        self.record["peak_memory_gb"] = round(costs["bytes"] / 1e9, 2) if costs.get("bytes") else None
        self.seconds += costs.get("seconds", 0.0)

    def add(self, samples: Sequence[Sample]) -> None:
        """Samples whose files have been written; the manifest itself is only now and then."""
        self._mine |= {sample["file"]: sample for sample in samples}
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Write the file, with what other commands may have added to it meanwhile."""
        there = {sample["file"]: sample for sample in self._read().get("samples", ())}
        if not (there or self._mine):
            return  # nothing was drawn: the folder stays free for other settings
        self.samples = dict(sorted((there | self._mine).items(), key=lambda item: (item[1]["index"], item[0])))
        head = json.dumps(self.record | {"seconds": round(self.seconds, 3), "pictures": self.pictures}, indent=2)
        lines = ",\n    ".join(map(json.dumps, self.samples.values()))
        write_whole(self.path, f'{head[:-2]},\n  "samples": [\n    {lines}\n  ]\n}}\n')
        self._written = time.monotonic()

    def _read(self) -> dict[str, Any]:
        return read_manifest(self.folder, "out=ANOTHER_FOLDER") or {}


def read_manifest(folder: Path, fix: str) -> dict[str, Any] | None:
    """The manifest of a folder, which somebody else may have written: what it says of files is about files there.

    :param fix: for messages
    :returns: None if there is none
    :raises UserError: if it is not as :class:`Manifest` writes it
    """
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    try:
        there = json.loads(path.read_bytes())
        wrong = find_fault(there)
    except (ValueError, RecursionError) as error:
        wrong = str(error) or type(error).__name__
    if wrong:
        raise UserError(f"{path} was not written by this version of sample.py: {wrong}",
                        "a folder of its samples, or a new one", fix)
    return there


def find_fault(manifest: Any) -> str | None:
    """What is not as it should be in a manifest, in words; None if all is."""
    if not isinstance(manifest, dict):
        return "it is no mapping"
    kinds = {"settings": dict, "checkpoint": dict, "samples": list, "pictures": dict}
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            return f"no {name}" if name not in manifest else f"{name} is a {type(manifest[name]).__name__}"
    if not isinstance(manifest["settings"].get("input", {}), dict) or \
            not isinstance(manifest.get("run", ""), str) or not isinstance(manifest.get("seconds", 0.0), int | float):
        return "settings, run or seconds of another type"
    if not is_file_name(manifest.get("archive", "none")):
        return f"the archive {str(manifest['archive'])[:100]}"
    for sample in manifest["samples"]:
        if not isinstance(sample, dict) or not is_file_name(sample.get("file")) \
                or type(sample.get("index")) is not int or not isinstance(sample.get("condition"), dict) \
                or not isinstance(sample.get("source"), str | None):
            return f"the sample {str(sample)[:100]}"
        if "label" in sample["condition"] and type(sample["condition"]["label"]) is not int:
            return f"the label of {sample['file']}"
    odd = next((name for name in manifest["pictures"] if not is_file_name(name)), None)
    return None if odd is None else f"the picture {odd[:100]}"


def is_file_name(name: Any) -> bool:
    """Whether this is the name of a file in a folder, and leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")
