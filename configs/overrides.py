"""Override strings: those of a run, which somebody else may have written, and those that were typed."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from configs.errors import UserError
from configs.registry import available, closest, node
from configs.values import PLACES

JOINED = ("guidance", "edit")
"""Groups of which a method adds to what there is."""
RECIPE = ("sampler", "guidance", "prior", "edit", "start")
"""What a run may say about its sampling."""
SIGNALS = re.compile(r"[A-Za-z]\w*(\+[A-Za-z]\w*)*")
"""Names of signals, several joined by +."""
KEY = re.compile(r"[a-z]\w*(/[a-z]\w*)*(@[a-z]\w*(\.[a-z]\w*)*)?|[a-z]\w*(\.[A-Za-z]\w*)+")
PATHS = ("run", "root", "path", "folder", "file")
"""Keys whose values are paths, whether they look like it or not."""


def check_recipe(overrides: Sequence[str], root: Path | None = None) -> list[str]:
    """A run's ``sampling`` list, which becomes overrides of ``sample.py``. A stranger may have written it, so a group
    choice must be a name that the registry lists, and everything else a plain value of a key of the recipe: a number, a
    word, a list of these, or numbers by the names of signals.

    :param root: of the runs; a path in the list must stay inside. None takes any path
    :raises UserError: if it says anything but how to sample
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType, QuotedString
    from hydra.errors import HydraException

    def refuse(override: Any, why: str) -> UserError:
        return UserError(f"sampling: {override}: {why}", f"plain overrides of {', '.join(RECIPE)}",
                         """'sampling=["sampler=ddim","guidance=cfg"]'; what is typed to sample.py may be more""")

    def plain(override: str, value: Any) -> Iterator[Any]:
        if isinstance(value, list):
            for item in value:
                yield from plain(override, item)
        elif isinstance(value, QuotedString):
            yield from plain(override, value.text)
        elif isinstance(value, dict):
            for name, number in value.items():
                inside = list(plain(override, number))
                if not SIGNALS.fullmatch(str(name)) or not all(type(each) in (int, float) for each in inside):
                    raise refuse(override, "a table of something else than numbers by names of signals")
                yield from inside
        elif value is None or isinstance(value, bool | int | float | str):
            if isinstance(value, str) and ("${" in value or not value.isprintable()):
                raise refuse(override, "an interpolation")
            yield value
        else:
            raise refuse(override, "neither a number, a word, a list of these nor a table of numbers")

    if isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise refuse(overrides, "no list")
    parser = OverridesParser.create()
    for override in overrides:
        if not isinstance(override, str):
            raise refuse(override, "no text")
        try:
            parsed = parser.parse_override(override)
        except HydraException as error:
            raise refuse(override, str(error).splitlines()[0]) from error
        key, package = parsed.key_or_group, parsed.package
        name = key if package is None else f"{key}@{package}"
        own = group_of(key) in RECIPE and (package is None or group_of(package) == group_of(key))
        if not own or not KEY.fullmatch(name) or parsed.type != OverrideType.CHANGE or parsed.is_sweep_override():
            raise refuse(override, "no value of a key of these")
        values = list(plain(override, parsed.value()))
        if "." not in key and key != "start":
            names = available(key)
            for value in values:
                if value is not None and value not in names:
                    raise refuse(override, f"no name that {key} has: {closest(str(value), names)}")
        elif root is not None:
            for value in values:
                if isinstance(value, str) and not is_inside(key, value, root):
                    raise refuse(override, f"a path outside of {root}, which has to be typed to sample.py")
    return list(overrides)


def refuse_unknown(cfg: DictConfig, config: str) -> None:
    """Refuse settings that nothing reads: keys that ``+key=`` has put beside those of a command.

    :param config: the command's top-level config, ``sample`` or ``evaluate``
    :raises UserError: naming the first
    """
    known, groups = read_command(config)
    tables = {"": (cfg, [*known, *groups])}
    tables |= {f"{key}.": ({} if cfg.get(key) is None else cfg[key], list(node))
               for key, node in known.items() if isinstance(node, dict)
               and key not in ("condition", "data")}  # the run knows its own signals and data
    for place, (given, names) in tables.items():
        if not isinstance(given, Mapping | DictConfig):
            raise UserError(f"{place[:-1]}={given}", "settings with names of their own",
                            " ".join(f"{place}{name}=..." for name in names[:3]))
        for key in given:
            if str(key) not in names:
                raise UserError(f"+{place}{key}: a setting that {config}.py does not have",
                                f"one of {', '.join(name for name in names if name != 'hydra')}",
                                f"{place}{closest(str(key), names)}=...")


@cache
def reserved_names() -> frozenset[str]:
    """Names that no signal can have: the keys and groups of the commands, and the arguments of ``Model.sample``."""
    names = {"indices", "recipe", "images", "degraded", "callbacks", "input", "condition", "hydra"}
    for config in ("sample", "evaluate"):
        known, groups = read_command(config)
        names |= {*known, *groups}
    return frozenset(names)


def read_command(config: str) -> tuple[dict[str, Any], list[str]]:
    """The settings of a command's top-level config, and the groups that it chooses from."""
    known: Any = OmegaConf.to_container(OmegaConf.load(Path(__file__).parent / f"{config}.yaml"))
    return known, [key for entry in known.pop("defaults") if isinstance(entry, dict) for key in entry]


def ask_signals(overrides: Sequence[str], names: Iterable[str], texts: Collection[str] = ()) -> list[str]:
    """Overrides in which ``text=...`` and ``hint.of=...`` are about ``condition``, where these are names of signals. A
    value with a ``=`` in it, such as ``attributes=Smiling=1,Male=0``, is one word.

    :param texts: those that are said in sentences, in which commas and colons mean nothing
    """
    free = [name for name in names if name.isidentifier() and name not in reserved_names()]
    own = re.compile(rf"({'|'.join(free)})(\.of)?=") if free else None
    found = []
    for override in overrides:
        name, _, value = override.partition("=")
        asked = own is not None and own.match(override) is not None
        said = name in texts or (asked and "=" in value)
        if said and value and value[0] not in "[{'\"" and value != "null":
            override = f"{name}={quote(value)}"
        found.append(f"++condition.{override}" if asked else override)
    return found


def is_inside(key: str, value: str, root: Path) -> bool:
    """Whether a value of a key is no path, or one that leads to a place below ``root``."""
    path = "/" in value or "\\" in value or value.startswith(("~", "..")) or key.rpartition(".")[2] in PATHS
    return not path or Path(value).expanduser().resolve().is_relative_to(root.expanduser().resolve())


def merge_overrides(defaults: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """A run's ``sampling`` list with overrides on top: a chosen group, such as ``sampler=ddpm``, drops all that the run
    says about it (``sampler=ddim``, ``sampler.num_steps=50``, ``sampler/grid=uniform``), and another value of a setting
    its own, so that a table is not mixed of both."""
    chosen = {override.split("=")[0] for override in overrides if "=" in override}
    defaults, overrides = expand_method(defaults, overrides)
    kept = [d for d in defaults if group_of(d) not in chosen and d.split("=")[0] not in chosen]
    return [*kept, *overrides]


def expand_method(defaults: Sequence[str], overrides: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """A run's ``sampling`` list, and overrides, with what ``method=NAME`` among these stands for: what its file says
    comes before what was typed, and its guidance and edits stand beside those of the run, or those that were typed."""
    name = next((unquote(value) for key, _, value in (o.partition("=") for o in overrides) if key == "method"), None)
    if name is None or name not in available("method"):
        return defaults, overrides
    own = read_method(name)
    joined = {key: value.strip("[]").split(",") for key, _, value in (o.partition("=") for o in own) if key in JOINED}
    defaults = merge_overrides(defaults, [o for o in own if o.partition("=")[0] not in joined])

    def join(override: str) -> str:
        key, _, value = override.partition("=")
        if key not in joined:
            return override
        there = [name for name in value.strip("[]").replace(" ", "").split(",") if name not in ("", "none", "null")]
        return f"{key}=[{','.join(dict.fromkeys([*there, *joined[key]]))}]"

    for key, names in joined.items():
        if not any(o.startswith(f"{key}=") for o in (*defaults, *overrides)):
            defaults = [*defaults, f"{key}=[{','.join(names)}]"]
    typed = {o.partition("=")[0] for o in overrides}
    return [o if o.partition("=")[0] in typed else join(o) for o in defaults], [join(o) for o in overrides]


def read_method(name: str) -> list[str]:
    """The overrides that ``method=NAME`` stands for.

    :raises UserError: if they are no plain choices of the parts of a sampling
    """
    return check_recipe([str(override) for override in node("method", name).overrides])


def drop_condition_guidance(overrides: Sequence[str]) -> list[str]:
    """A ``sampling`` list without classifier-free guidance, for models without a condition to guide by: so
    ``condition=none``, or images without classes, are enough to make an experiment unconditional."""
    kept = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "guidance":
            names = [name.strip() for name in value.strip("[]").split(",")]
            left = [name for name in names if name not in ("cfg", "multi_cfg")]
            override = override if left == names else f"guidance=[{','.join(left)}]" if left else ""
        if override and not key.startswith(("guidance.cfg.", "guidance.multi_cfg.")):
            kept.append(override)
    return kept


def group_of(override: str) -> str:
    return override.split("=")[0].split(".")[0].split("/")[0]


def quote_place(argument: str) -> str:
    """An override whose value is a place, quoted where Hydra would not read it: ``out=~/pictures``, ``run=my run (1)``.
    What is quoted already, a list, several values by commas, numbers and null stay as they are."""
    key, equals, value = argument.partition("=")
    name = key.lstrip("+").split(".")[-1]
    whole = set("'\"") if name == "name" else set("'\"[{")
    if not equals or key.startswith("-") or name not in (*PLACES, "input", "name") or set(value[:1]) & whole \
            or "," in value or "${" in value or NO_WORD.fullmatch(value):
        return argument
    return f"{key}={quote(value)}"


NO_WORD = re.compile(r"|null|true|false|[-+]?(nan|inf)|[-+.\d_e]*\d[-+.\d_e]*", re.IGNORECASE | re.ASCII)
"""What Hydra reads as a number, a truth value or nothing."""


def quote(value: str) -> str:
    """A word as Hydra reads it back, in quotes unless it is plain and no number; :func:`unquote` is the way back."""
    if re.fullmatch(r"[\w./:+-]*", value, re.ASCII) and not NO_WORD.fullmatch(value):
        return value
    # A backslash counts for itself, but before a quote and at the end.
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"


def unquote(value: str) -> str:
    """A value as Hydra reads it: quotes around it, which names beyond ASCII need, do not belong to it."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return re.sub(rf"(\\*)({value[0]}|$)", lambda found: found[1][:len(found[1]) // 2] + found[2], value[1:-1])
    return value
