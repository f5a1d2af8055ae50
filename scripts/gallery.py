"""Pages of the site that show every method: the YAML files say which there are, the docstrings of their classes what
they are, and pictures of digits what they do."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from gallery_pictures import draw_degradation, draw_sampler

from configs import UserError, registry
from configs.help import find_files, find_source

ROOT = Path(__file__).parents[1]
GROUPS = {
    "guidance": ("Guidance", "python sample.py run=runs/ddpm_digits/first {choice}"),
    "sampler": ("Samplers", "python sample.py run=runs/ddpm_digits/first {choice}"),
    "degradation": ("Degradations", "python train.py {choice} objective=cold prior=degraded"),
    "edit": ("Edits", "python sample.py run=runs/ddpm_digits/first input=photos {choice}"),
    "method": ("Methods", "python sample.py run=runs/ddpm_digits/first {choice}"),
}
"""Kinds of methods: their titles and how one is chosen."""


def write_gallery(folder: Path) -> None:
    """A page for each kind of methods."""
    folder.mkdir(parents=True)
    for group, (title, command) in GROUPS.items():
        lines = [title, "=" * len(title), ""]
        for place in list_groups(group):
            for name in registry.available(place):
                lines += describe(place, name, command, folder)
        (folder / f"{group}.rst").write_text("\n".join(lines))


def list_groups(group: str) -> Iterator[str]:
    """A config group and those inside it, such as ``sampler`` and ``sampler/grid``."""
    yield group
    inside = {path.name for folder in registry.folders() for path in (folder / group).glob("[a-z]*/")}
    yield from (f"{group}/{name}" for name in sorted(inside) if registry.available(f"{group}/{name}"))


def describe(group: str, name: str, command: str, folder: Path) -> list[str]:
    """The section of one method: its first comment, picture, command, and what the docstrings of its classes say."""
    [path] = find_files(group, name)[:1]
    heading = f"{group}={name}"
    comment = read_comment(path)
    lines = [heading, "-" * len(heading), "", *([re.sub(r"([*|`_])", r"\\\1", comment), ""] if comment else [])]
    picture = find_picture(group, name, folder)
    if picture is not None:
        lines += [f".. image:: {picture}", f"   :alt: {heading}", ""]
    if "/" not in group:
        lines += ["::", "", f"   {command.format(choice=heading)}", ""]
    node = yaml.safe_load(path.read_text()) or {}
    if group == "method":
        lines += ["::", "", *(f"   {override}" for override in node["overrides"]), ""]
    for target in dict.fromkeys(list_targets(node)):
        if find_source(target.split(".")[:-1]) is not None:
            lines += [f".. autoclass:: {target}", "   :no-index:", "   :no-members:", ""]
    return lines


def read_comment(path: Path) -> str:
    """The comment with which a YAML file begins, on one line, or that behind its first key."""
    head = re.match(r"(?:#.*\n?)+", path.read_text())
    return " ".join(line.lstrip("# ") for line in head[0].splitlines()) if head else ""


def list_targets(node: Any) -> Iterator[str]:
    """The classes that a config names, from the outermost one inwards."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from list_targets(value)


def find_picture(group: str, name: str, folder: Path) -> str | None:
    """The picture of a method beside the page: one that is kept in docs/pictures/gallery, since a trained network has
    made it, or one that is drawn now; None if there is none."""
    kept = ROOT / "docs/pictures/gallery" / group / f"{name}.png"
    if kept.is_file():
        return f"../docs/pictures/gallery/{group}/{name}.png"
    place = f"{group.replace('/', '-')}-{name}.png"
    try:
        if group.split("/")[0] == "degradation":
            draw_degradation(group, name, folder / place)
        elif group == "sampler":
            draw_sampler(name, folder / place)
        else:
            return None
    except UserError:  # such as one that needs images which are not here
        return None
    return place
