"""Tables of the paper: every command that they would run composes, and one is made as a user makes it."""

import json

import pytest
from helpers import command
from omegaconf import OmegaConf

from configs import UserError, compose, registry
from configs.help import describe_command
from configs.overrides import check_recipe
from configs.values import require_values
from diffusion.evaluation.report import Report
from diffusion.metrics.intervals import mean
from scripts import reproduce
from scripts.reproduce import Outcome, Plan

pytestmark = pytest.mark.docs

TABLES, BUDGETS = registry.available("table"), registry.available("budget")


def plan(table: str, budget: str, *overrides: str) -> Plan:
    images = [] if table == "digits" else ["data.root=/photos"]
    return Plan.of(compose("reproduce", [f"table={table}", f"budget={budget}", *images, *overrides]), table)


@pytest.mark.parametrize("table", TABLES)
def test_every_command_composes(table):
    plans = [plan(table, budget) for budget in BUDGETS]
    for command_ in {tuple(c) for p in plans for row in p.rows for c in row.commands} | {
            tuple(p.judge) for p in plans if p.judge}:
        script, *overrides = command_
        cfg = compose(script.removesuffix(".py"), overrides)
        require_values(cfg)
        assert table == "digits" or cfg.data.root == "/photos"
        if script == "train.py":
            check_recipe(cfg.sampling)


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_whole(table):
    """Every order has two sides, and every number of the paper a place."""
    node = plan(table, "full").table
    for order in node["orders"]:
        assert set(order) <= set(node["columns"]) or set(order) <= set(node["rows"]) or table == "generation_mnist"
    for row in node["rows"].values():
        assert set(row.get("paper", {})) <= set(node["columns"])
        assert all(len(numbers) <= len(node["numbers"]) for numbers in row.get("paper", {}).values())


def test_settings_come_in_the_order_of_their_reach():
    """Budget, table, row, command line: the last one wins."""
    for depth, wanted in enumerate(("1200", "1", "2", "3", "4", "9")):
        typed = ['train=["max_steps=9"]'] if depth == 5 else []
        cfg = compose("reproduce", ["table=mnist", "budget=small", "rows=[snow]", *typed])
        layers = ({"train": ["max_steps=1"]}, {"small": {"train": ["max_steps=2"]}, "full": {"train": ["max_steps=7"]}})
        for layer in layers[:depth]:
            OmegaConf.update(cfg, "table", layer, force_add=True)
        layers = ({"train": ["max_steps=3"]}, {"small": {"train": ["max_steps=4"]}})
        for layer in layers[:max(0, depth - 2)]:
            OmegaConf.update(cfg, "table.rows.snow", layer, force_add=True)
        [row] = Plan.of(cfg, "mnist").rows
        assert [o for o in row.train if o.startswith("max_steps=")] == [f"max_steps={wanted}"]
    assert Plan.of(cfg, "mnist").name == "mnist-small-snow"


def test_the_help_names_all():
    text = describe_command("reproduce")
    for group, names in (("table", TABLES), ("budget", BUDGETS)):
        listed = next(line for line in text.splitlines() if line.strip().startswith(f"{group}: "))
        assert sorted(listed.split("  (now")[0].split(": ")[1].split(", ")) == names


def test_rows_of_another_table():
    with pytest.raises(UserError, match=r"rows=\[deblur\]"):
        plan("mnist", "small", "rows=[deblurr]")


class TestPage:
    """What is written when half of the rows are there."""

    @pytest.fixture
    def outcome(self):
        import torch

        numbers = {"direct": (0.3, 0.7, 0.1), "cold1": (0.5, 0.5, 0.3), "cold2": (0.2, 0.6, 0.1)}
        sets = {name: {key: mean(torch.full((8,), value, dtype=torch.float64))
                       for key, value in zip(("fd/classifier@8", "ssim", "rmse"), values)}
                for name, values in numbers.items()}
        protocol = {"count": 8, "what": "restorations", "reference": {"what": "test split of MNIST"},
                    "extractor": {"name": "classifier"}}
        return Outcome({"deblur": Report(protocol, list(sets), {"degraded": {}, **sets})}, {"inpaint": "python x.py"})

    def test_numbers_beside_the_papers(self, outcome):
        page = reproduce.markdown(plan("mnist", "small"), outcome).splitlines()
        here = "- / - / - | 0.300 / 0.700 / 0.100 | 0.500 / 0.500 / 0.300 | 0.200 / 0.600 / 0.100"
        assert f"| deblur | here | {here} |" in page
        assert "|  | paper | 438.6 / - / 0.287 | 5.100 / 0.757 / 0.142 | - | 4.690 / 0.718 / 0.154 |" in page
        assert "| inpaint | here | failed | failed | failed | failed |" in page
        assert "| snow | here | not yet | not yet | not yet | not yet |" in page

    def test_orders(self, outcome):
        one, two = reproduce.orders(plan("mnist", "small"), outcome)
        assert (one["a"], one["b"], two["b"]) == ("cold2", "cold1", "direct")
        assert one["numbers"]["Fréchet"]["difference"] == pytest.approx(-0.3)
        assert one["numbers"]["Fréchet"]["exceeds"]
        assert two["numbers"]["RMSE"]["difference"] == 0
        assert not two["numbers"]["RMSE"]["exceeds"]


def test_as_a_user_makes_it(tmp_path):
    """A row that fails, and the same command without the mistake, which goes on with what is there."""
    typed = ["scripts/reproduce.py", "table=digits", "budget=smoke", f"run.root={tmp_path}"]
    page = tmp_path / "tables" / "digits-smoke.md"
    failed = command(*typed, 'train=["batch=0"]')
    assert failed.returncode == 2
    assert "rows that failed:" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "| deblur | here | failed |" in page.read_text()

    result = command(*typed)
    assert result.returncode == 0, result.stderr
    assert "this run is complete" in result.stdout + result.stderr
    content = json.loads(page.with_suffix(".json").read_text())
    numbers = content["rows"]["deblur"]["rows"]
    assert list(numbers) == ["degraded", "direct", "cold1", "cold2"]
    assert f"{numbers['cold2']['rmse']['value']:.3f}" in page.read_text()
    assert len(content["orders"]) == 2
    assert not content["failed"]
