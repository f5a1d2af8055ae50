"""Plain data: what a composed config is for everybody who does not compose."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.errors import UserError


def read_limit(name: str, default: int) -> int:
    """A limit on what is read, such as the pixels of an image: ``THAW_<NAME>`` of the environment, or the default.

    :raises UserError: for one that is no whole number above 0
    """
    given = os.environ.get(f"THAW_{name}", "").strip()
    if not given:
        return default
    if not given.isascii() or not given.isdecimal() or len(given) > 18 or int(given) == 0:
        raise UserError(f"THAW_{name}={given} in the environment", "a whole number above 0",
                        f"unset THAW_{name}, or THAW_{name}={default}")
    return int(given)


def read_library_config(path: Path, most: int, library: str) -> Any:
    """What the JSON file of a model of another library says, of anybody.

    :param most: bytes that are read, unless ``THAW_MOST_CONFIG_BYTES`` says otherwise
    :param library: that writes such files
    :raises UserError: if it cannot be read, or is longer
    """
    most = read_limit("MOST_CONFIG_BYTES", most)
    try:
        with path.open("rb") as file:
            text = file.read(most + 1)
        if len(text) > most:
            raise ValueError(f"it has more than {most} bytes (THAW_MOST_CONFIG_BYTES)")
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}", f"the file that {library} wrote",
                        "another folder") from error


def to_plain(cfg: DictConfig | ListConfig) -> dict[str, Any]:
    """A config as plain, resolved data.

    :raises UserError: from a resolver that was asked for what is not there
    """
    try:
        record = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        raise cause or UserError(str(error).splitlines()[0], "plain values, and ${} for settings that are there",
                                 "the value without ${}") from None
    assert isinstance(record, dict)
    return {str(key): value for key, value in record.items()}


PLACES = ("root", "out", "images", "reference", "against", "run", "judge", "cache", "others", "of", "to",
          "folder")
"""Keys of settings that are places of files, wherever they stand."""


def settle_paths(cfg: DictConfig, required: Sequence[str] = ()) -> None:
    """Expand ``~`` in all settings that are places, and refuse those that are empty: an unset variable of the shell is
    not the current folder.

    :param required: groups in which a ``root`` may not be null either
    :raises UserError: naming the first
    """
    for path, value in list_places(OmegaConf.to_container(cfg, resolve=False)):
        if value == "" or (value is None and path.endswith("root") and path.partition(".")[0] in required):
            key = "input" if path == "input.root" else path
            raise UserError(f"{key} is {'empty' if value == '' else 'null'}", "the place of files", f"{key}=FOLDER")
        if isinstance(value, str) and value.startswith("~"):
            OmegaConf.update(cfg, path, str(Path(value).expanduser()))


def list_places(config: Any, path: str = "") -> list[tuple[str, Any]]:
    """The settings of a plain config that are places, by their dotted keys."""
    if not isinstance(config, Mapping):
        return []
    found = [(f"{path}.{key}".strip("."), value) for key, value in config.items()
             if key in PLACES and (value is None or isinstance(value, str))]
    return found + [row for key, value in config.items() for row in list_places(value, f"{path}.{key}".strip("."))]


def require_values(cfg: DictConfig) -> None:
    """Refuse a config in which mandatory values are open.

    :raises UserError: naming them
    """
    keys = sorted(list_missing(OmegaConf.to_container(cfg, resolve=False)))
    if keys:
        raise UserError(f"{', '.join(keys)} not given", "a value", " ".join(f"{key}=..." for key in keys))


def list_missing(config: Any, path: str = "") -> list[str]:
    """The dotted keys of the open values, ``???``, in a config that is not resolved."""
    if isinstance(config, list):
        config = dict(enumerate(config))
    if isinstance(config, Mapping):
        return [key for name, value in config.items()
                for key in list_missing(value, f"{path}.{name}" if path else str(name))]
    return [path] if config == "???" else []


def require_ints(cfg: DictConfig, **least: int) -> None:
    """Refuse a config in which these fields are not whole numbers of at least so much.

    :raises UserError: naming the first
    """
    for key, low in least.items():
        if type(cfg[key]) is not int or cfg[key] < low:
            near = int(cfg[key]) if isinstance(cfg[key], float) and cfg[key].is_integer() else low
            raise UserError(f"{key}={cfg[key]}", f"a whole number, at least {low}", f"{key}={max(low, near)}")


def require_at_least(low: float, place: str, **values: float | Sequence[float]) -> None:
    """Refuse arguments of a class that are lower, or lists that are empty or hold such.

    :param place: of the class in the config, for messages
    :raises UserError: naming the first
    """
    for name, value in values.items():
        some = list(value) if isinstance(value, Sequence) else [value]
        if not some or not all(low <= each < math.inf for each in some):
            raise UserError(f"{place}.{name}={value}", f"at least {low:g}", f"{place}.{name}={low:g}")


def require_parts(cfg: DictConfig, *names: str) -> None:
    """Refuse a config without these groups, or with something else in their place.

    :raises UserError: naming the first
    """
    for name in names:
        node = cfg.get(name)
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise UserError(f"no {name}" if node is None else f"{name}={node}", f"a choice of the group {name}",
                            f"{name}=..., as python train.py --help lists them")


def require_kinds(cfg: DictConfig, **kinds: Any) -> None:
    """Refuse a config in which these fields are not of these types; a double underscore is a dot.

    :param kinds: the annotation of each, such as ``int | None``
    :raises UserError: naming the first
    """
    for name, kind in kinds.items():
        key = name.replace("__", ".")
        value = OmegaConf.select(cfg, key)
        if isinstance(value, ListConfig | DictConfig):
            value = OmegaConf.to_container(value, resolve=True)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value}", "a finite number", f"{key}=...")
        if not fits(value, kind):
            word = isinstance(value, int | float) and fits("", kind)
            fix = f"{key}='{value}'" if word else f"another value for {key}"
            raise UserError(f"{key}={value}", describe_annotation(kind), fix)


PACKAGES = ("degradations", "models", "samplers", "diffusion")
"""Whose classes are built from mappings, never from words or numbers."""


def describe_annotation(kind: Any) -> str:
    """A type in words: ``a number``, ``true or false``, ``a whole number or null``."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null",
             None: "null"}
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    inside = {list: "a list", dict: "a mapping"}
    return " or ".join(words.get(option) or inside.get(get_origin(option) or option) or str(option)
                       for option in options)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value may go where ``annotation`` is a plain type, a list of such, a choice of words, a class of
    ours (then it may not) or a union of these; other annotations take anything. An int is a float; a bool is no
    number."""
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        return any(fits(value, option) for option in get_args(annotation))
    kind, inside = get_origin(annotation), get_args(annotation)
    if kind is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inside)
    if kind in (list, Sequence, tuple):
        if isinstance(value, str | int | float | bool | dict | None):
            return False
        if not isinstance(value, list | tuple):
            return True  # an object of somebody's own
        if kind is tuple and Ellipsis not in inside:
            return len(value) == len(inside) and all(map(fits, value, inside))
        return all(fits(item, inside[0]) for item in value) if inside else True
    if annotation in (dict, list):
        return isinstance(value, annotation)
    if annotation is None or annotation in (int, float, bool, str, type(None)):
        kinds = {type(None) if annotation is None else annotation}
        return type(value) in kinds or (type(value) is int and annotation is float)
    ours = isinstance(annotation, type) and annotation.__module__.split(".")[0] in PACKAGES
    return not (ours and isinstance(value, str | int | float))


def drop_keys(config: Any, keys: Sequence[str]) -> Any:
    """A config as plain data without these keys, at any depth."""
    if isinstance(config, Mapping):
        return {key: drop_keys(value, keys) for key, value in config.items() if key not in keys}
    return [drop_keys(value, keys) for value in config] if isinstance(config, list) else config


MOST_NODES, DEEPEST, LONGEST_WORD = 20_000, 40, 100_000
"""Bounds of plain data that somebody else has written: lists that share their items can stand for any number of them.
"""


def require_plain(content: Any, what: str) -> None:
    """Refuse what is no plain data (nested lists and mappings with words as keys, of words, numbers, truth values and
    None), or too much of it.

    :param what: is looked at, for messages
    :raises UserError: naming what is wrong
    """

    def refuse(why: str) -> UserError:
        return UserError(f"{what}: {why}", "plain data, as train.py writes them",
                         "do not use files of people whom you do not trust")

    stack, count = [(content, 0)], 0
    while stack:
        node, depth = stack.pop()
        count += 1
        if count > MOST_NODES or depth > DEEPEST:
            raise refuse(f"more than {MOST_NODES} entries" if count > MOST_NODES else f"deeper than {DEEPEST} levels")
        if isinstance(node, Mapping):
            if not all(isinstance(key, str | int) for key in node):
                raise refuse("a key that is no word")
            stack += [(value, depth + 1) for value in node.values()]
        elif isinstance(node, list | tuple):
            stack += [(value, depth + 1) for value in node]
        elif not isinstance(node, str | int | float | bool | None):
            raise refuse(f"an entry of type {type(node).__name__}")
        elif isinstance(node, str) and len(node) > LONGEST_WORD:
            raise refuse(f"a word of {len(node)} letters")


MOST = 2**24
"""Bound of whole numbers in what a stranger's config says of its parts."""


def require_modest(content: Any, what: str) -> None:
    """Refuse plain data with whole numbers above ``MOST``, of which something would be made; a ``seed`` may be any.

    :raises UserError: naming the first
    """
    for path, value in list_leaves(content, what):
        if isinstance(value, int) and abs(value) > MOST and not path.endswith("seed"):
            raise UserError(f"{path}: {value}", f"a number of at most {MOST}",
                            "do not use files of people whom you do not trust")


def list_leaves(content: Any, path: str = "") -> list[tuple[str, Any]]:
    """The single values in plain data, by their dotted keys."""
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping):
        return [(path, content)]
    return [row for key, value in content.items() for row in list_leaves(value, f"{path}.{key}".strip("."))]


def has_interpolation(config: Any) -> bool:
    """Whether ``${`` stands anywhere in plain data, in a key or a value."""
    if isinstance(config, Mapping):
        return any(has_interpolation(each) for item in config.items() for each in item)
    if isinstance(config, list):
        return any(map(has_interpolation, config))
    return isinstance(config, str) and "${" in config


def hash_plain(content: Any, length: int) -> str:
    """The first hexadecimal digits of the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:length]


def list_differences(a: Any, b: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Where two nested mappings differ: (dotted key, value in a, value in b)."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        return [row for key in keys
                for row in list_differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))]
    return [] if a == b else [(path, a, b)]
