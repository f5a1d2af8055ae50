"""``--help`` of the commands: examples, the choices of this command alone, and every setting with what it means."""

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from configs.errors import UserError
from configs.registry import HERE, available, compose, folders

FOOTER = "Powered by Hydra (https://hydra.cc): --cfg job prints the config, --hydra-help its flags."
COLUMN = 36
"""Where the meanings begin."""


def describe_command(config: str, overrides: Sequence[str] = ()) -> str:
    """What ``--help`` prints.

    :param config: the top-level config, ``train``, ``sample``, ``evaluate``, ``reproduce`` or ``export``
    :param overrides: those of the command line: the settings are shown as they would be
    :raises UserError: if they cannot be composed
    """
    try:
        cfg = compose(config, overrides, hydra_config=True)
    except UserError as error:
        missing = re.search(r"You must specify '(\w+)'", error.got)
        if missing is None:
            raise
        return describe_command(config, [*overrides, f"{missing[1]}={available(missing[1])[0]}"])
    choices = {str(group): option for group, option in cfg.hydra.runtime.choices.items()
               if not str(group).startswith("hydra")}
    introduction = yaml.safe_load((HERE / "hydra" / "help" / f"{config}.yaml").read_text())["template"].rstrip()
    meanings = read_meanings(HERE / f"{config}.yaml")
    for group, option in choices.items():
        name, _, package = group.partition("@")
        for file in find_files(name, option):
            place = "" if name in ("experiment", "debug") else package or name.replace("/", ".")
            meanings = {f"{place}.{key}".strip("."): text for key, text in read_meanings(file).items()} | meanings
    del cfg.hydra
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    groups = [f"  {line}" for line in list_choices(choices)]
    heading = ["== Choices (group=option) ==", "", *groups, ""] if groups else []
    return "\n".join([introduction, "", *heading, "== Settings (override with key=value) ==", "",
                      *list_settings(plain, meanings), "", FOOTER])


def list_choices(choices: Mapping[str, Any]) -> Iterator[str]:
    """A line for each group that the command reads, and for the groups inside it.

    :param choices: the option of each group now
    """
    own = {group.partition("@")[0] for group in choices}
    inside = {str(path.relative_to(folder)) for folder in folders() for group in own
              for path in (folder / group).glob("**/*") if path.is_dir() and not path.name.startswith("_")}
    for group in sorted(own | inside - {"experiment/base"}):  # what experiments share is no choice
        names = available(group)
        if names:
            chosen = choices.get(group)
            now = f"  (now {', '.join(chosen) if isinstance(chosen, list) else chosen})" if chosen is not None else ""
            yield f"{group}: {', '.join(names)}{now}"


def find_files(group: str, option: Any) -> list[Path]:
    """The YAML files of the options of a group."""
    options = option if isinstance(option, list) else [option]
    paths = [folder / group / f"{each}.yaml" for folder in folders() for each in options if each is not None]
    return [path for path in paths if path.is_file()]


def read_meanings(path: Path) -> dict[str, str]:
    """The comments behind the settings of a YAML file, by the settings' dotted keys."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in path.read_text().splitlines():
        setting = re.match(r"( *)([\w.]+):(?:\s[^#]*)?(?:#\s*(.*))?$", line)
        if setting is None:
            continue
        depth = len(setting[1])
        above = [*(pair for pair in above if pair[0] < depth), (depth, setting[2])]
        if setting[3]:
            found[".".join(name for _, name in above)] = setting[3].strip()
    return found


def read_parameters(target: str) -> dict[str, str]:
    """What the docstring of a class says of its arguments, a line for each, without importing it.

    :param target: the dotted name of the class
    """
    *places, name = target.split(".")
    path = find_source(places)
    tree = ast.parse(path.read_text()) if path is not None else ast.Module([], [])
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    text = ast.get_docstring(classes[0]) or "" if classes else ""
    entries = re.findall(r"^:param (\w+): (.*?)(?=^:|^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    return {name: " ".join(re.sub(r":class:`[.~]?(?:\w+\.)*(\w+)`", r"\1", meaning).replace("``", "").split())
            for name, meaning in entries}


def find_source(places: Sequence[str]) -> Path | None:
    """The file of a module, without importing it."""
    for root in map(Path, [HERE.parent, *sys.path]):
        path = root.joinpath(*places).with_suffix(".py")
        if places and path.is_file():
            return path
    return None


def list_settings(node: Mapping[Any, Any], meanings: Mapping[str, str], place: str = "",
                  depth: int = 1) -> Iterator[str]:
    """The settings as YAML with their meanings behind them: comments of the YAML files, else what the docstring of the
    class says; which class that is is not shown.

    :param place: the dotted key of the node
    """
    documented = read_parameters(str(node["_target_"])) if "_target_" in node else {}
    meanings = {**{f"{place}.{key}": text for key, text in documented.items()}, **meanings}
    for key, value in node.items():
        if key == "_target_":
            continue
        path = f"{place}.{key}".strip(".")
        inner = value if isinstance(value, Mapping) and set(value) - {"_target_"} else None
        shown = "" if inner is not None else " {}" if isinstance(value, Mapping) else f" {write_value(value)}"
        line = f"{'  ' * depth}{key}:{shown}"
        yield f"{line:{COLUMN}}  # {meanings[path]}" if path in meanings else line
        if inner is not None:
            yield from list_settings(inner, meanings, path, depth + 1)


def write_value(value: Any) -> str:
    """A plain value on one line, as YAML writes it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
