"""A table of the paper, trained, measured and printed beside its numbers: ``python scripts/reproduce.py table=mnist``.

The tables are those of Cold Diffusion (Bansal et al. 2022), one file each in ``configs/table``: restorations (degraded,
direct, Algorithm 1, Algorithm 2; Fréchet distance, SSIM, RMSE) of mnist, cifar10, celeba, generations (generation_*).
``budget=smoke`` says within minutes whether everything runs, ``small`` takes an hour of CPU, ``full`` is the paper's.

Every command is printed before it runs. What is trained or measured already is not done again, so the same command goes
on after Ctrl-C; a row that fails does not stop the others (exit code 2 then). ``run.root/tables/TABLE-BUDGET.json`` and
``.md`` are written anew after each row.
"""

import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pages
from omegaconf import DictConfig

from configs import UserError
from configs.cli import child, command
from configs.registry import closest
from configs.values import fits, require_values, to_plain
from diffusion.runs.files import make_folder, write_whole
from diffusion.runs.run import Run


@dataclass
class Row:
    """A row of a table: a run, and how it is measured.

    :ivar name: its key in the table
    :ivar experiment: what is trained
    :ivar run: folder of the run
    :ivar train: overrides of ``train.py``
    :ivar evaluate: overrides of ``evaluate.py``
    :ivar paper: the paper's numbers, by column, in the order of the table's; a list may end early or have None
    """

    name: str
    experiment: str
    run: Path
    train: list[str]
    evaluate: list[str]
    paper: dict[str, list[float | None]]

    @property
    def commands(self) -> list[list[str]]:
        """The two commands that make the row."""
        return [["train.py", f"experiment={self.experiment}", *self.train],
                ["evaluate.py", f"run={self.run}", *self.evaluate]]


@dataclass
class Plan:
    """What a table needs.

    :ivar name: of the files, such as ``mnist-small``, with the rows if they were chosen
    :ivar table: the table's config, plain
    :ivar judge: the command that trains the judge, if the table has one
    :ivar rows: in order
    :ivar folder: where the table goes
    """

    name: str
    table: dict[str, Any]
    judge: list[str] | None
    rows: list[Row]
    folder: Path

    @classmethod
    def of(cls, cfg: DictConfig, name: str) -> "Plan":
        """The plan that the config describes.

        :param name: of the table
        :raises UserError: for a row that the table does not have
        """
        config = to_plain(cfg)
        table, budget = config["table"], config["budget"]
        names = list(table["rows"])
        for key in ("rows", "train", "evaluate"):
            if not fits(config[key], list[str] | None):
                raise UserError(f"{key}={config[key]}", "a list of words", f"'{key}=[...]'")
        for row in config["rows"] or ():
            if row not in names:
                raise UserError(f"rows=[{row}]", f"among {', '.join(names)}", f"rows=[{closest(row, names)}]")
        root, where = config["run"]["root"], config["data"]["root"]
        data = [] if where is None else [f"data.root={where}"]
        common = [f"run.root={root}", f"run.name={budget['name']}", *data]

        def settings(kind: str, *places: Mapping[str, Any]) -> list[str]:
            """Of the budget, then of the table and the row, always and in this budget, then typed; of two settings of
            one key the last."""
            levels = [budget, *(one for place in places for one in (place, place.get(budget["name"], {}))), config]
            found = [override for level in levels for override in level.get(kind) or ()]
            return list({override.split("=")[0]: override for override in found}.values())

        rows = [Row(row, node["experiment"], Path(root) / node["experiment"] / budget["name"],
                    [*common, *settings("train", table, node)], [*data, *settings("evaluate", table, node)],
                    node.get("paper", {}))
                for row, node in table["rows"].items() if not config["rows"] or row in config["rows"]]
        judge = table["judge"]
        command = ["train.py", f"experiment={judge}", *common, *budget["judge"]] if judge else None
        title = "-".join([name, budget["name"], *(config["rows"] or ())])
        return cls(title, table, command, rows, Path(root) / "tables")


@dataclass
class Outcome:
    """What has come out so far.

    :ivar reports: by row
    :ivar failed: the commands that ended with an error, by row
    """

    reports: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def reproduce(plan: Plan) -> Outcome:
    """Run what is missing, row by row, and write the table after each."""
    from diffusion.evaluation.report import Report

    outcome = Outcome()
    if plan.judge and child(plan.judge):
        raise UserError("no classifier, whose features the table is measured by", "a command that works",
                        shlex.join(["python", *plan.judge]))
    for row in plan.rows:
        broken = next((arguments for arguments in row.commands if child(arguments)), None)
        if broken is None:
            outcome.reports[row.name] = Report.load(Run(row.run).evaluations[-1].parent)
        else:
            outcome.failed[row.name] = shlex.join(["python", *broken])
        save(plan, outcome)
    return outcome


def save(plan: Plan, outcome: Outcome) -> None:
    """Write what there is, as JSON and as Markdown."""
    make_folder(plan.folder)
    content = {"table": plan.name, "rows": {name: report.plain() for name, report in outcome.reports.items()},
               "paper": {row.name: row.paper for row in plan.rows}, "orders": orders(plan, outcome),
               "failed": outcome.failed, "commands": commands(plan)}
    write_whole(plan.folder / f"{plan.name}.json", json.dumps(content, indent=2))
    write_whole(plan.folder / f"{plan.name}.md", markdown(plan, outcome))


def commands(plan: Plan) -> list[str]:
    """All commands of the plan, each once."""
    typed = [*([plan.judge] if plan.judge else []), *(one for row in plan.rows for one in row.commands)]
    return list(dict.fromkeys(shlex.join(["python", *arguments]) for arguments in typed))


def chosen(numbers: Mapping[str, Any], patterns: Sequence[str]) -> str | None:
    """The first name that fits the first pattern that any fits."""
    return next((name for pattern in patterns for name in numbers if fnmatch(name, pattern)), None)


def orders(plan: Plan, outcome: Outcome) -> list[dict[str, Any]]:
    """For each order that the paper's table suggests, the difference of its two sides by number, with its interval."""
    from diffusion.evaluation.report import compare, compare_numbers

    found = []
    for a, b in plan.table["orders"]:
        if a in plan.table["columns"]:
            pairs = [(name, compare_numbers(report.sets[a], report.sets[b], pairs=True))
                     for name, report in outcome.reports.items()]
        elif {a, b} <= set(outcome.reports):
            one, two = outcome.reports[a], outcome.reports[b]
            pairs = [("", compare(one, two)[one.subject[0]])]
        else:
            continue
        for name, differences in pairs:
            keys = {head: chosen(differences, patterns) for head, patterns in plan.table["numbers"].items()}
            found.append({"row": name, "a": a, "b": b,
                          "numbers": {head: differences[key] for head, key in keys.items() if key}})
    return found


def title(key: str) -> str:
    """A key for people."""
    return key.replace("_", " ")


def digits(value: float | None) -> str:
    """Three digits behind the point, or as many as 4 in all."""
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def markdown(plan: Plan, outcome: Outcome) -> str:
    """The page: the table in the paper's layout, the orders, and how it was made."""
    columns, numbers = plan.table["columns"], plan.table["numbers"]
    rows = [[" / ".join(numbers), "", *columns.values()]]
    for row in plan.rows:
        report = outcome.reports.get(row.name)
        sets = report.sets if report else {}
        if report:
            cells = [[sets[c][key].value if (key := chosen(sets[c], patterns)) else None
                      for patterns in numbers.values()] for c in columns]
            rows.append([title(row.name), "here", *(" / ".join(map(digits, cell)) for cell in cells)])
        else:
            state = "failed" if row.name in outcome.failed else "not yet"
            rows.append([title(row.name), "here", *[state] * len(columns)])
        if row.paper:
            rows.append(["", "paper", *(" / ".join(map(digits, row.paper[c])) if c in row.paper else "-"
                                        for c in columns)])
    parts = [f"# {plan.table['title']}", f"{date.today()}, {plan.name}; torch {version('torch')}, Python "
             f"{platform.python_version()}. " + measure(outcome), pages.table(rows)]
    differences = orders(plan, outcome)
    if differences:
        parts += ["The differences, image by image or draw by draw, with their 95 % intervals; bold where they exceed "
                  "the noise.", pages.table([["", "", *numbers], *(
                      [title(d["row"]), f"{columns.get(d['a'], title(d['a']))} - {columns.get(d['b'], title(d['b']))}",
                       *(step(d["numbers"].get(head)) for head in numbers)] for d in differences)])]
    return "\n\n".join([*parts, "```bash\n" + "\n".join(commands(plan)) + "\n```"]) + "\n"


def measure(outcome: Outcome) -> str:
    """What the numbers are of, in words: they are the same in all rows but for the data."""
    kinds = {f"{r.protocol['count']} {r.protocol['what']}; reference: {r.protocol['reference']['what']}; features: "
             f"{r.protocol['extractor']['name']}" for r in outcome.reports.values()}
    return "; ".join(sorted(kinds)) + "." if kinds else ""


def step(difference: Mapping[str, Any] | None) -> str:
    """A difference and its interval."""
    if difference is None:
        return "-"
    text = f"{difference['difference']:+.3g} [{difference['low']:.3g}, {difference['high']:.3g}]"
    return f"**{text}**" if difference["exceeds"] else text


def main(cfg: DictConfig, experiment: str | None = None) -> None:
    from hydra.core.hydra_config import HydraConfig

    require_values(cfg)
    plan = Plan.of(cfg, HydraConfig.get().runtime.choices["table"])
    outcome = reproduce(plan)
    page = plan.folder / f"{plan.name}.md"
    print("\n" + page.read_text() + f"\nwritten: {page}, {page.with_suffix('.json')}")
    if outcome.failed:
        raise UserError("rows that failed:\n    " + "\n    ".join(outcome.failed.values()), "commands that work",
                        "the errors above; then the same command again goes on")


if __name__ == "__main__":
    command("reproduce", main)
