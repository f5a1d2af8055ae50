"""Plots of what was measured alike: numbers over the steps that they took, and quality over diversity."""

import json
from collections.abc import Callable, Mapping, Sequence

from diffusion.reports.numbers import find_direction
from diffusion.reports.plots import Plot, Point
from diffusion.reports.protocols import NFE, Measured

QUALITY = ("fd", "FID", "kid", "agreement", "precision", "rmse", "ssim", "lpips", "accuracy")
DIVERSITY = ("recall", "vendi", "coverage", "lpips diversity")
STEPS = "num_steps"
PANELS = 6


def plot_steps(group: Sequence[Measured], columns: Mapping[str, str], links: Mapping[int, str]) -> list[Plot]:
    """The numbers of quality over the evaluations of the network; none where all took as many.

    :param columns: settings in which the sets differ, see :func:`diffusion.reports.protocols.name_columns`
    :param links: the place of each set on the page, by its ``id``
    """
    known = [one for one in group if one.nfe is not None]
    if len({one.nfe for one in known}) < 2:
        return []
    names = choose(known, (*QUALITY, *DIVERSITY))[:PANELS]
    lines = split_lines(known, columns, lambda key: key.endswith(STEPS))
    return [Plot(name, NFE, name, {line: [
        Point(one.nfe or 0.0, *bars(one, name), say(one, name), links.get(id(one), ""))
        for one in sorted(some, key=lambda one: one.nfe or 0.0) if name in one.numbers]
        for line, some in lines.items()}, log_x=True, colours=number(lines)) for name in names]


def plot_quality(group: Sequence[Measured], columns: Mapping[str, str], links: Mapping[int, str]) -> list[Plot]:
    """Quality over diversity, joined along the setting that takes the most numbers; none of a single set."""
    pairs = [(x, y) for x in choose(group, DIVERSITY)[:2] for y in choose(group, QUALITY[:5])[:3]]
    values = {key: {one.settings[key] for one in group if type(one.settings.get(key)) in (int, float)}
              for key in columns}
    over = max(values, key=lambda key: len(values[key]), default="")
    lines = split_lines(group, columns, lambda key: key == over)
    order = sorted(group, key=lambda one: (float(one.settings.get(over) or 0)
                                           if type(one.settings.get(over)) in (int, float) else 0.0))
    plots = [Plot(f"{y} over {x}", x, y, {line: [
        Point(one.numbers[x].value, *bars(one, y), f"{say(one, x)}, {say(one, y)}", links.get(id(one), ""))
        for one in order if one in some and {x, y} <= {*one.numbers}] for line, some in lines.items()},
        colours=number(lines)) for x, y in pairs]
    return [plot for plot in plots if sum(map(len, plot.lines.values())) > 1][:PANELS]


def choose(group: Sequence[Measured], stems: Sequence[str]) -> list[str]:
    """The numbers of these kinds, in the order of the kinds."""
    names = dict.fromkeys(name for one in group for name in one.numbers)
    return [name for stem in stems for name in names
            if name.split("/")[0].split("@")[0] == stem and find_direction(name)]


def split_lines(group: Sequence[Measured], columns: Mapping[str, str],
                along: Callable[[str], bool]) -> dict[str, list[Measured]]:
    """Sets that differ only in settings along which a line is drawn, by what they have in common."""
    lines: dict[str, list[Measured]] = {}
    runs, names = len({one.run for one in group}), len({one.name for one in group})
    for one in group:
        parts = [one.run] * (runs > 1) + [one.name] * (names > 1)
        parts += [f"{short} {json.dumps(one.settings[key])}".replace('"', "") for key, short in columns.items()
                  if not along(key) and one.settings.get(key) is not None]
        lines.setdefault(", ".join(parts) or one.run, []).append(one)
    return lines


def number(lines: Mapping[str, object]) -> dict[str, int]:
    """A colour for each line."""
    return {name: i for i, name in enumerate(lines)}


def bars(one: Measured, name: str) -> tuple[float, float, float]:
    """A number with its interval."""
    return one.numbers[name].value, one.numbers[name].low, one.numbers[name].high


def say(one: Measured, name: str) -> str:
    """A number in words."""
    return f"{name} {one.numbers[name]} {one.numbers[name].interval}"
