"""Curves of what ``evaluate.py`` measured over a setting: ``python scripts/plot_sweep.py RUN --over CFG.scale``.

One panel per number, one line for each way in which the evaluations differ otherwise, bars for the 95 % intervals. The
setting is the sampler's, ``sampler.num_steps``, or one of a guidance part, by the class that the protocol names:
``CFG.scale``, ``CFG.schedule`` (names become places on the axis), ``Interval.low``. ``--where CFG.scale=2`` leaves out
evaluations with another value. A sweep is measured by

    python evaluate.py -m run=RUN guidance=cfg guidance.cfg.scale=1,1.5,2,3,5
    python evaluate.py -m run=RUN sampler.num_steps=1,2,5,10,20 'samplers=[cold1,cold2]'

Needs matplotlib (the extra ``plots``).
"""

import argparse
import json
import math
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pages import save_figure

from configs import UserError
from configs.cli import stop
from configs.registry import closest

OTHERS = ("run", "checkpoint", "weights", "start", "condition", "seed", "count")
"""Entries in which evaluations may differ besides."""


def items(text: str) -> list[str]:
    """What stands between the commas outside of brackets."""
    found, depth = [""], 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and depth == 0:
            found.append("")
        else:
            found[-1] += sign
    return [item.strip() for item in found if item.strip()]


def settings(text: str) -> dict[str, str]:
    """The settings in a protocol's words: ``CFG (scale 2, schedule Linear)`` is {"CFG.scale": "2", "CFG.schedule":
    "Linear"}."""
    found: dict[str, str] = {}
    for item in items(text):
        own = re.fullmatch(r"(\w+) \((.*)\)", item)
        for part in items(own[2]) if own else ():
            key, _, value = part.partition(" ")
            if value == "None":  # as if nothing were said
                continue
            nested = settings(value)
            # Of two parts of a kind the first gives the value.
            found = {f"{own[1] if own else ''}.{key}": value.split(" (")[0], **nested, **found}
    return found


def kinds(text: str) -> str:
    """The classes that a protocol's words name."""
    return ", ".join(item.split(" (")[0] for item in items(text))


def read(folders: list[Path], which: str | None) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Settings and numbers of every evaluation below these folders.

    :param which: the set of images; None takes those that the evaluation is about
    :raises UserError: if there is none
    """
    found = []
    for path in sorted({path for folder in folders for path in folder.rglob("evaluations/*/evaluation.json")}):
        content = json.loads(path.read_text())
        protocol = content["protocol"]
        others = {key: str(protocol[key]) for key in OTHERS if key in protocol}
        guidance = str(protocol.get("guidance", "none"))
        others |= settings(guidance) | {"guidance": kinds(guidance)}
        for name in [which] if which else content["subject"]:
            sampler = str(protocol.get("samplers", {}).get(name) or protocol.get("sampler", "none"))
            own = {f"sampler{key.removeprefix(kinds(sampler))}" if key.startswith(f"{kinds(sampler)}.") else key: value
                   for key, value in settings(sampler).items()}
            if name in content["rows"]:
                found.append((others | own | {"sampler": kinds(sampler), "of": name}, content["rows"][name]))
    if not found:
        raise UserError(f"no evaluation{f' of {which}' if which else ''} in {', '.join(map(str, folders))}",
                        "runs that were measured", "python evaluate.py run=RUN")
    return found


def curves(found: list[tuple[dict[str, str], dict[str, Any]]], over: str, patterns: list[str],
           where: Sequence[str] = ()) -> dict[str, dict[str, list[tuple[str, dict[str, Any]]]]]:
    """By number and by line, the points (value of the setting, number), in the order of the axis.

    :param where: ``KEY=VALUE`` of the evaluations that are taken
    :raises UserError: for a setting or a number that no evaluation has
    """
    keys = sorted({key for chosen, _ in found for key in chosen if "." in key})
    if over not in keys:
        raise UserError(f"--over {over}", f"one of {', '.join(keys)}", f"--over {closest(over, keys)}")
    for key, _, value in (condition.partition("=") for condition in where):
        there = sorted({chosen[key] for chosen, _ in found if key in chosen})
        found = [(chosen, numbers) for chosen, numbers in found if chosen.get(key) == value]
        if not found:
            raise UserError(f"--where {key}={value}", f"a value that was measured: {', '.join(there) or 'none'}",
                            f"--where {key}={there[0]}" if there else f"--where {closest(key, keys)}=...")
    part = over.split(".")[0]
    # The images that no sampler has made, such as the degraded ones, have no place on the axis.
    named = [(chosen, numbers) for chosen, numbers in found
             if over in chosen or (part in chosen["guidance"].split(", ") if part != "sampler" else
                                   chosen["sampler"] != "none")]
    found = [({over: "none", **chosen}, numbers) for chosen, numbers in named]  # a setting that is null has no words
    names = list(dict.fromkeys(name for _, numbers in found for name in numbers))
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise UserError(f"--numbers {pattern}", f"among {', '.join(names)}",
                            f"--numbers '{closest(pattern, names)}'")
    differ = [key for key in dict.fromkeys(key for chosen, _ in found for key in chosen)
              if key != over and len({chosen.get(key) for chosen, _ in found}) > 1]
    result: dict[str, dict[str, list[tuple[str, dict[str, Any]]]]] = {}
    for chosen, numbers in found:
        line = ", ".join(f"{key} {chosen[key]}" for key in differ if key in chosen) or ", ".join(
            f"no {key}" for key in differ)
        for name, number in numbers.items():
            if any(fnmatch(name, pattern) for pattern in patterns):
                result.setdefault(name, {}).setdefault(line, []).append((chosen[over], number))
    for lines in result.values():
        for points in lines.values():
            points.sort(key=lambda point: (place(point[0]), point[0]))
    return result


def place(value: str) -> float:
    """Where a value lies among the others; names come last."""
    try:
        return float(value)
    except ValueError:
        return math.inf


def plot(folders: list[Path], over: str, patterns: list[str], out: Path, which: str | None = None,
         where: Sequence[str] = (), log: bool = False) -> Path:
    """Draw the curves into a PNG file. Where all values but ``none`` are numbers, the axis is one of numbers, and
    ``none`` has no place on it.

    :param log: a logarithmic axis
    """
    panels = curves(read(folders, which), over, patterns, where)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(panels), 3.4), layout="constrained")
    for axis, (name, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        values = sorted({value for points in lines.values() for value, _ in points}, key=lambda v: (place(v), v))
        numeric = {value for value in values if not math.isfinite(place(value))} <= {"none"} < set(values) | {"none"}
        if numeric:
            lines = {line: [point for point in points if point[0] != "none"] for line, points in lines.items()}
        for i, (line, points) in enumerate(lines.items()):
            x = [place(value) if numeric else values.index(value) + 0.08 * i for value, _ in points]
            y = [number["value"] for _, number in points]
            bars = [[max(0.0, abs(number["value"] - number[end])) if math.isfinite(number[end]) else 0.0
                     for _, number in points] for end in ("low", "high")]
            axis.errorbar(x, y, bars, label=line or None, marker="o", markersize=3, linewidth=1, capsize=2,
                          linestyle="-" if numeric else "none")
        if numeric and log:
            axis.set_xscale("log")
        if not numeric:
            axis.set_xticks(range(len(values)), values, rotation=30, ha="right")
        axis.set(xlabel=over, title=name)
        axis.grid(alpha=0.3)
    entries = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels())}
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", fontsize="x-small")
    return save_figure(figure, out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of such")
    parser.add_argument("--over", required=True, help="the setting on the axis, such as CFG.scale or sampler.num_steps")
    parser.add_argument("--numbers", nargs="+", default=["*"], help="what is drawn; patterns such as 'fd*'")
    parser.add_argument("--where", nargs="+", default=[], metavar="KEY=VALUE", help="take these evaluations alone")
    parser.add_argument("--of", help="a set of images of the evaluation, such as samples (default: what it is about)")
    parser.add_argument("--log", action="store_true", help="a logarithmic axis, for numbers")
    parser.add_argument("--out", type=Path, default=Path("sweep.png"), help="the PNG file to write")
    arguments = parser.parse_args()
    try:
        print(plot(arguments.runs, arguments.over, arguments.numbers, arguments.out, arguments.of,
                   arguments.where, arguments.log))
    except UserError as error:
        stop(str(error), 2)
    except ModuleNotFoundError:
        stop("matplotlib is not installed\n  try:    pip install matplotlib", 2)


if __name__ == "__main__":
    main()
