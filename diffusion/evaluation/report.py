"""The outcome of an evaluation: kept in a folder, shown as a table, compared with another."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from configs import UserError
from configs.values import hash_plain, list_differences
from diffusion.data.files.images import size
from diffusion.metrics.intervals import MetricValue, difference
from diffusion.reports.numbers import MINE, count_decimals
from diffusion.runs import checkpoint
from diffusion.runs.environment import describe_environment
from diffusion.runs.files import make_folder, write_whole

Numbers = dict[str, MetricValue]
"""By name."""


@dataclass
class Report:
    """What was measured, of which sets of images, and under which protocol.

    :ivar protocol: all on which the numbers depend, plain data
    :ivar sets: the numbers of each set of images, by its name
    :ivar subject: which of the sets the evaluation is about
    :ivar skipped: why a metric was not measured, by its key
    :ivar cost: of each set that a model has made
    :ivar losses: which of the sets are about the model itself and not about images of it
    """

    protocol: dict[str, Any]
    subject: list[str]
    sets: dict[str, Numbers] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    cost: dict[str, dict[str, Any]] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As ``evaluation.json`` has it."""
        rows = {name: {key: number.plain() for key, number in numbers.items()} for name, numbers in self.sets.items()}
        return {"rows": rows, "subject": self.subject, "skipped": self.skipped, "cost": self.cost,
                "losses": self.losses, "protocol": self.protocol, "environment": describe_environment()}

    def save(self, folder: Path) -> None:
        """Write ``evaluation.json``, and ``parts.pt`` with the parts of each number, by which it can be compared."""
        make_folder(folder)
        parts = {name: {key: number.pseudo_values for key, number in numbers.items()}
                 for name, numbers in self.sets.items()}
        write_whole(folder / "parts.pt", checkpoint.dump(parts))
        write_whole(folder / "evaluation.json", json.dumps(self.plain(), indent=2))

    @classmethod
    def load(cls, folder: Path) -> "Report":
        """The report in a folder."""
        content = json.loads((folder / "evaluation.json").read_text())
        values = torch.load(folder / "parts.pt", weights_only=True)
        sets = {name: {key: MetricValue(**number, pseudo_values=values[name][key]) for key, number in numbers.items()}
                for name, numbers in content["rows"].items()}
        return cls(content["protocol"], content["subject"], sets, content["skipped"], content["cost"],
                   content.get("losses", []))

    @classmethod
    def read(cls, folder: Path, protocol: dict[str, Any]) -> "Report | None":
        """The report in a folder, None if there is none of this protocol."""
        try:
            report = cls.load(folder)
        except Exception:  # damaged bytes fail in many ways, and all of them mean the same
            return None
        return report if report.protocol == protocol else None

    def show(self, title: str) -> None:
        """Print a table, a column for each set of images; below it what was left out and what it cost."""
        names = list(dict.fromkeys(key for numbers in self.sets.values() for key in numbers))
        rows = [[key, *(format_number(numbers.get(key)) for numbers in self.sets.values())] for key in names]
        show_table(title, ["", *self.sets], rows)
        say = Console(highlight=False, soft_wrap=True).print
        say("brackets: 95 % intervals, of what this many images can tell")
        say(f"protocol: {describe_protocol(self.protocol)}")
        for name, cost in self.cost.items():
            say(f"cost of {name}: " + ", ".join(f"{value} {unit}" for unit, value in cost.items()))
        for reason in dict.fromkeys(self.skipped.values()):
            keys = [key for key, why in self.skipped.items() if why == reason]
            say(f"not measured: {', '.join(keys)}, for want of {reason}")


def describe_protocol(protocol: Mapping[str, Any]) -> str:
    """The main lines of a protocol, in words."""
    reference = protocol["reference"]
    made = [protocol[key] for key in ("sampler", "guidance") if protocol.get(key, "none") != "none"]
    parts = [f"{protocol['count']} {protocol['what']}", *made,
             f"reference: {reference['what']} ({reference['count']} of {size(reference['shape'])})",
             *(f"{key}: {protocol[key]['name']} ({protocol[key]['identity']})" for key in
               ("extractor", "judge", "embedding") if key in protocol)]
    return "; ".join(parts)


def show_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, as wide as it is."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(head):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    width = Console(width=1000).measure(table).maximum
    Console(highlight=False, width=max(width, Console().width)).print(table)


def format_number(number: MetricValue | None) -> str:
    """``0.287 [0.285, 0.290]``, to the second digit that is uncertain."""
    if number is None:
        return "-"
    places = count_decimals((number.high - number.low) / 2)
    value, low, high = (f"{x:.{places}f}" for x in (number.value, number.low, number.high))
    return f"{value} \\[{low}, {high}]"


def compare(a: Report, b: Report) -> dict[str, dict[str, dict[str, Any]]]:
    """By set and number: ``difference`` (a - b) with its interval, whether it ``exceeds`` the noise, and ``paired``,
    whether both have measured images of the same draws, or restorations or reconstructions of the same images.

    :raises UserError: if the protocols differ in more than in what is compared
    """
    mine, theirs = ({key: value for key, value in report.protocol.items() if key not in MINE} for report in (a, b))
    lines = [f"{key}: {x!r} and {y!r}" for key, x, y in list_differences(mine, theirs)]
    if lines:
        raise UserError("evaluations that cannot be compared:\n    " + "\n    ".join(lines),
                        "the same reference, count, extractor and metrics",
                        "the same data for both, or extractor=random judge=none")
    same_draws = a.protocol.get("seed") == b.protocol.get("seed") and \
        a.protocol.get("condition") == b.protocol.get("condition")
    what = a.protocol["what"]
    pairs = what == b.protocol["what"] and (
        what in ("restorations", "reconstructions") or (what == "samples" and same_draws))
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for name in a.subject:
        other = b.sets.get(name) or (b.sets[b.subject[0]] if len(a.subject) == len(b.subject) == 1 else {})
        if rows := compare_numbers(a.sets[name], other, pairs):
            result[name] = rows
    for name in [name for name in a.losses if name in b.losses]:
        result[name] = compare_numbers(a.sets[name], b.sets[name], a.protocol.get("seed") == b.protocol.get("seed"))
    return result


def compare_numbers(a: Numbers, b: Numbers, pairs: bool) -> dict[str, dict[str, Any]]:
    """The numbers that two sets of images share, as :func:`compare` gives them.

    :param pairs: both are made of the same images, or samples of the same draws
    """
    rows: dict[str, dict[str, Any]] = {}
    for key in [key for key in a if key in b]:
        x, y = a[key], b[key]
        paired = pairs and len(x.pseudo_values) == len(y.pseudo_values)
        step = difference(x, y, paired)
        rows[key] = {"a": x.value, "b": y.value, "difference": step.value, "low": step.low, "high": step.high,
                     "exceeds": step.low > 0 or step.high < 0, "paired": paired}
    return rows


def show_comparison(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], a: str, b: str) -> None:
    """Print a comparison."""
    for name, numbers in rows.items():
        table = []
        for key, row in numbers.items():
            places = count_decimals((row["high"] - row["low"]) / 2)
            x, y, step, low, high = (f"{row[k]:.{places}f}" for k in ("a", "b", "difference", "low", "high"))
            verdict = "exceeds the noise" if row["exceeds"] else "within the noise"
            table.append([key, x, y, f"{step} \\[{low}, {high}]", verdict])
        show_table(f"\nA  {a}\nB  {b}", [name, "A", "B", "A - B", ""], table)
    count = sum(len(numbers) for numbers in rows.values())
    Console(highlight=False, soft_wrap=True).print(
        f"95 % intervals, each by itself: of {count} numbers that are alike, about {count / 20:.1g} exceed by chance")


def folder_name(protocol: dict[str, Any]) -> str:
    """Name of the folder of an evaluation: readable, and different for different protocols."""
    sampler = str(protocol.get("sampler", protocol["what"])).split(" ")[0].lower()
    return f"{sampler}-{protocol['count']}-{hash_plain(protocol, 6)}"
