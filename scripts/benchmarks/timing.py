"""Candidates that take turns: CPU or GPU time of each, and ratios within a round."""

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles

import torch
from rich.console import Console
from rich.table import Table

Call = Callable[[], object]
CEILING = "ceiling: "
"""How the names begin of candidates that are no network but one large product, the most that the machine can do."""
SHORTEST = 0.02  # seconds that one measurement should last: a quicker candidate is called several times in a row


def cpu_time(call: Call, number: int, clock: Callable[[], float] = time.process_time) -> float:
    """CPU seconds of this process for ``number`` calls."""
    start = clock()
    for _ in range(number):
        call()
    return clock() - start


def child_time(call: Call, number: int) -> float:
    """CPU seconds, user and system, of the processes that ``number`` calls start and wait for."""
    return cpu_time(call, number, lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]))


def cuda_time(call: Call, number: int) -> float:
    """Seconds of the GPU for ``number`` calls."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    cpu_time(call, number)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


@dataclass(frozen=True)
class Case:
    """Candidates (by name) for the same job, and the one of them that the ratios refer to.

    :ivar scale: factors for candidates that do only a part of the job
    :ivar images: of the job, whose number per second is shown
    :ivar flops: floating-point operations of the job (a multiplication and an addition are two), by candidate
    :ivar unit: of what the timer gives, and its part that is shown
    """

    title: str
    candidates: dict[str, Call]
    baseline: str
    timer: Callable[[Call, int], float] = cpu_time
    scale: dict[str, float] = field(default_factory=dict)
    images: int = 0
    flops: dict[str, float] = field(default_factory=dict)
    unit: tuple[str, float] = ("ms", 1e-3)


def measure(case: Case, rounds: int) -> dict[str, list[float]]:
    """Seconds per call of every candidate, one entry per round; the candidates take turns within a round."""
    number = {}
    for name, call in case.candidates.items():
        case.timer(call, 1)  # builds tables, warms caches
        number[name] = min(100, 1 + int(SHORTEST / max(case.timer(call, 1), 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in case.candidates}
    for _ in range(rounds):
        for name, call in case.candidates.items():
            times[name].append(case.timer(call, number[name]) / number[name] * case.scale.get(name, 1.0))
    return times


def summary(times: dict[str, list[float]], baseline: str, images: int = 0,
            flops: Mapping[str, float] | None = None) -> dict[str, dict[str, float]]:
    """Per candidate the median and quartiles (seconds), and the median over rounds of the ratio to the baseline; where
    that is known, images and billions of floating-point operations a second."""
    rows: dict[str, dict[str, float]] = {}
    for name, own in times.items():
        low, middle, high = quantiles(own, n=4, method="inclusive") if len(own) > 1 else own * 3
        ratio = median(mine / max(theirs, 1e-12) for mine, theirs in zip(own, times[baseline]))
        rows[name] = {"median": middle, "q1": low, "q3": high, "ratio": ratio}
        if name in (flops or {}):
            rows[name]["gflops"] = (flops or {})[name] / max(middle, 1e-12) / 1e9
        if images and not name.startswith(CEILING):
            rows[name]["images_per_s"] = images / max(middle, 1e-12)
    return rows


def show(case: Case, rows: dict[str, dict[str, float]]) -> None:
    """Print the table of one case."""
    table = Table("", title=f"\n{case.title}", title_justify="left")
    (_, *heads), *lines = tabulate(case, rows)
    for head in heads:
        table.add_column(head, justify="right")
    for line in lines:
        table.add_row(*line)
    Console(highlight=False).print(table)


def tabulate(case: Case, rows: dict[str, dict[str, float]]) -> list[list[str]]:
    """The table of one case in words, its head first. The share is that of the fastest of the machine's own products
    (``CEILING``) in the precision that the candidate's name has."""
    unit, factor = case.unit
    device = {cuda_time: "GPU ", cpu_time: "CPU ", child_time: "CPU "}.get(case.timer, "")
    extra = [key for key in ("images_per_s", "gflops") if any(key in row for row in rows.values())]
    ceilings = {kind: max((row["gflops"] for name, row in rows.items() if name.startswith(CEILING) and kind in name),
                          default=0.0) for kind in ("32", "bf16")}
    shares = any(ceilings.values())
    words = {"images_per_s": "images/s", "gflops": "GFLOP/s"}
    lines = [["", f"{device}{unit}", "quartiles", "ratio", *(words[key] for key in extra), *["share"] * shares]]
    for name, row in rows.items():
        low, middle, high = (f"{row[key] / factor:,.3f}" for key in ("q1", "median", "q3"))
        ratio = f"{row['ratio']:,.2f}" if row["ratio"] >= 0.1 else f"{row['ratio']:.2g}"
        top = ceilings["bf16" if "bf16" in name else "32"]
        share = f"{row['gflops'] / top:.0%}" if top and "gflops" in row else ""
        lines.append([name + " *" * (name == case.baseline), middle, f"{low} .. {high}", ratio,
                      *(f"{row[key]:,.1f}" if key in row else "" for key in extra), *[share] * shares])
    return lines


def write_markdown(case: Case, rows: dict[str, dict[str, float]]) -> str:
    """The table of one case as Markdown."""
    return f"**{case.title}**\n\n{write_table(tabulate(case, rows))}\n"


def write_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of words, the head first, as a table of Markdown."""
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *rest))
