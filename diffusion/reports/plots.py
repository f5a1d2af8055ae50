"""Curves with bars, as SVG within the page; the colours are those of the style."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

WIDTH, HEIGHT = 320, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 32
COLOURS = 8


class Point(NamedTuple):
    """A place in a plot.

    :ivar low: lower end of its bar; equal to ``high`` for none
    :ivar words: what it is
    :ivar link: the name of a place on the page
    """

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    words: str = ""
    link: str = ""


@dataclass(frozen=True)
class Plot:
    """A panel.

    :ivar lines: points by the name of their line, the same colour in every plot with these names
    :ivar log_x: a logarithmic axis, where all is above 0
    :ivar dots: whether points are seen as such
    """

    title: str
    x: str
    y: str
    lines: dict[str, list[Point]]
    log_x: bool = False
    log_y: bool = False
    dots: bool = True
    joined: bool = True
    colours: dict[str, int] = field(default_factory=dict)

    def draw(self) -> dict[str, Any]:
        """Where everything is, for the template: points that are no finite numbers are nowhere."""
        lines = {name: [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
                 for name, points in self.lines.items()}
        every = [point for points in lines.values() for point in points]
        ends = [end for p in every for end in (p.low, p.high) if math.isfinite(end)]
        x_axis = Axis.around([p.x for p in every], self.log_x, LEFT, WIDTH - RIGHT)
        y_axis = Axis.around([*(p.y for p in every), *ends], self.log_y, HEIGHT - BOTTOM, TOP)
        colours = self.colours or {name: i for i, name in enumerate(lines)}
        return {"title": self.title, "x": self.x, "y": self.y, "dots": self.dots, "width": WIDTH, "height": HEIGHT,
                "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM,
                "x_ticks": x_axis.ticks(), "y_ticks": y_axis.ticks(), "lines": [
                    {"name": name, "colour": colours[name] % COLOURS,
                     "path": " ".join(f"{x_axis.place(p.x):.1f},{y_axis.place(p.y):.1f}" for p in points)
                     if self.joined else "",
                     "points": [{"x": f"{x_axis.place(p.x):.1f}", "y": f"{y_axis.place(p.y):.1f}",
                                 "bar": [f"{y_axis.place(end):.1f}" for end in (p.low, p.high)]
                                 if math.isfinite(p.low) and math.isfinite(p.high) else None,
                                 "words": p.words, "link": p.link} for p in points] if self.dots else []}
                    for name, points in lines.items() if points]}


@dataclass(frozen=True)
class Axis:
    """From numbers to places.

    :ivar low: the number at ``start``
    :ivar high: the number at ``end``
    """

    low: float
    high: float
    log: bool
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], log: bool, start: float, end: float) -> "Axis":
        """One that holds all of these."""
        log = log and bool(values) and min(values) > 0
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if log:
            low, high = low / 1.08, high * 1.08
        else:
            margin = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
            low, high = low - margin, high + margin
        return cls(low, high, log, start, end)

    def place(self, value: float) -> float:
        """Where a number is."""
        if self.log:
            low, high, value = math.log(self.low), math.log(self.high), math.log(max(value, self.low))
        else:
            low, high = self.low, self.high
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[tuple[str, str]]:
        """Places and words of round numbers, four or so."""
        numbers = self._decades() if self.log else []
        if len(numbers) < 2:
            rough = (self.high - self.low) / 5
            unit = 10.0 ** math.floor(math.log10(rough))
            step = next((k * unit for k in (1, 2, 5) if k * unit >= rough), 10 * unit)
            first = math.ceil(self.low / step)
            numbers = [k * step for k in range(first, math.floor(self.high / step) + 1)]
        return [(f"{self.place(number):.1f}", f"{number:.10g}" if 1e-4 <= abs(number) < 1e5 or not number
                 else f"{number:.3g}") for number in numbers]

    def _decades(self) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for each in ((1, 2, 5), (1,)):
            found = [k * 10.0**power for power in powers for k in each if self.low <= k * 10.0**power <= self.high]
            if len(found) <= 6:
                return found
        return found[::-(-len(found) // 6)]
