"""What makes a run what it is, and the name of its folder."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs import UserError
from configs.overrides import group_of, unquote
from configs.values import drop_keys, hash_plain

IDENTITY = ("data", "space", "model", "condition", "degradation", "prior", "objective", "optimizer", "ema", "batch",
            "accumulate", "precision", "seed", "augment")
"""The fields in which two runs must agree to be the same run; everything else may change on the way."""
FILLED = {"model": ("classes", "in_channels"), "objective": ("words",)}
"""Arguments of the network and the objective that are taken from the data and the space where they are null."""
NO_CAPTIONS = {"words": 4096, "length": None}
"""Arguments of a data set that mean something where captions are read, and the values that they have of themselves."""
AUTO = "auto"
"""The precision that a run takes from the machine of its first start."""
PATHS = ("root", "test", "cache", "download")
"""Arguments of a data set that say where it lies, not what it is."""


def drop_places(node: Any, name: str) -> Any:
    """A part of a config that somebody else may have written: it may say what images to read, not what to write or to
    fetch, nor, in a space or a condition, of which folder to take weights.

    :param name: of the part, such as ``space``
    """
    places = ("cache", "download", "folder") if name in ("space", "condition") else ("cache", "download")
    return drop_keys(node, places)


def extract_identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that makes a run what it is."""
    fields = {key: config.get(key) for key in IDENTITY}
    if not fields["augment"]:
        del fields["augment"]  # none, as in a config without the key
    fields["precision"] = str(fields["precision"])
    # What a run begins with is told by its content, wherever that lies by now.
    origins = config.get("origin") or {}
    begin = {name: {**drop_keys(entry, ("run",)), "step": origins[name]["step"], "checksum": origins[name]["checksum"]}
             for name, entry in (config.get("begin") or {}).items() if name in origins}

    def tell(place: str, node: Mapping[str, Any]) -> Mapping[str, Any]:
        found = origins.get(place)
        return {**node, "run": found["checksum"], "step": found["step"]} if found else node

    fields = {key: replace_runs(value, key, tell) for key, value in fields.items()}
    fields |= {key: value for key, value in (("begin", begin), ("trainable", config.get("trainable"))) if value}
    for key in ("data", "degradation"):  # a degradation may name images of another set
        fields[key] = _drop_no_signals(drop_keys(fields[key] or {}, PATHS))
    fields["condition"] = drop_keys(fields["condition"], ("folder",))
    fields["space"] = drop_keys(fields["space"] or {}, ("cache", "chunk", "folder"))
    return fields


def _drop_no_signals(data: Any) -> Any:
    """A data set's config without an empty list of signals, nor what is about captions that are not read: the same as
    one that has no such keys."""
    if not isinstance(data, Mapping):
        return data
    signals = data.get("signals") or []
    unused = [] if signals else ["signals"]
    if "signals" in data and "text" not in signals:
        unused += [key for key, value in NO_CAPTIONS.items() if key in data and data[key] == value]
    return {key: _drop_no_signals(value) for key, value in data.items() if key not in unused}


def replace_runs(node: Any, place: str, change: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]) -> Any:
    """Plain data with every object changed that refers to another run: one with a ``_target_`` and the argument
    ``run``, such as the teacher of an objective.

    :param place: of the node in the config, joined by dots
    :param change: gets the place and the node of each
    """
    if isinstance(node, Mapping):
        node = {key: replace_runs(value, f"{place}.{key}", change) for key, value in node.items()}
        return dict(change(place, node)) if "_target_" in node and isinstance(node.get("run"), str) else node
    return [replace_runs(value, f"{place}.{i}", change) for i, value in enumerate(node)] \
        if isinstance(node, list) else node


def take_filled(mine: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """An identity with what the data and the machine have said in another one where it leaves that open: a precision
    that the machine chooses, arguments of signals that are null here, signals that are null there since the data do not
    have them, and the network's classes with their words.

    :param there: the identity of the run that was begun
    """

    def take(ours: Any, theirs: Any) -> Any:
        if isinstance(ours, dict) and isinstance(theirs, dict):
            return {key: take(value, theirs[key]) if key in theirs else value for key, value in ours.items()}
        return theirs if ours is None or theirs is None else ours

    def signals(identity: dict[str, Any]) -> Any:
        return (identity["condition"] or {}).get("signals")

    mine = {**mine, "precision": there["precision"]} if mine["precision"] == AUTO else mine
    filled = {**mine, **{part: {key: take(value, there[part].get(key)) if key in keys else value
                                for key, value in mine[part].items()} for part, keys in FILLED.items()}}
    if signals(mine) and signals(there):
        filled["condition"] = {**mine["condition"], "signals": take(signals(mine), signals(there))}
    return filled


def check_name(name: Any) -> str:
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
    if len(str(name).encode()) > 200:
        raise UserError(f"run.name of {len(str(name).encode())} bytes", "at most 200", "a shorter run.name")
    return str(name)


def name_job(overrides: Sequence[str]) -> str:
    """The name of a sweep's job: its own overrides of the identity, sorted, e.g. ``optimizer.lr=0.0003,seed=0``. What
    else the sweep holds, and in which order, makes no difference.

    A value that cannot be part of a folder's name is made so, a path by its last part, and told apart by a hash.

    :param overrides: as Hydra hands them to the job, numbers already normalised
    """
    parts = []
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if group_of(key.lstrip("~")) in IDENTITY and key not in ("data.cache", "data.download"):
            parts.append(f"{key.replace('/', '.')}={_safe(unquote(value))}")
    name = ",".join(sorted(parts))
    return name if len(name) <= 120 else f"{name[:111]}-{hash_plain(name, 8)}"


def _safe(value: str) -> str:
    clean = re.sub(r"[^\w.+-]+", "-", value.rsplit("/", 1)[-1], flags=re.ASCII)
    return clean if clean == value else f"{clean.strip('-')}-{hash_plain(value, 4)}"


def hash_identity(mine: dict[str, Any], data: dict[str, Any]) -> str:
    """A short name for an identity. The last part of each path of the data counts, so that two folders of images make
    two runs, wherever they lie."""
    return hash_plain([mine, *list_roots(data)], 8)


def list_roots(data: Mapping[str, Any]) -> list[str]:
    """The last part of the path of a data set, or of its paths, and of those inside it."""
    inside = [name for value in data.values() if isinstance(value, Mapping) for name in list_roots(value)]
    held_out = _name_places(data["test"]) if data.get("test") else []
    return [*_name_places(data.get("root")), *held_out, *filter(None, inside)]


def _name_places(places: Any) -> list[str]:
    return [Path(place or "").name for place in (places if isinstance(places, list) else [places])]
