"""Scripts as they are called, on small runs."""

import json
import math
from itertools import product

import pytest
from helpers import command
from PIL import Image

from scripts import plot_metrics, plot_sweep


def test_curves(hot, cold, tmp_path):
    out = tmp_path / "deep" / "curves.png"
    result = command("scripts/plot_metrics.py", str(hot.folder), str(cold.folder), "--columns", "loss", "lr", "--out",
                     str(out))
    assert result.returncode == 0, result.stderr
    with Image.open(out) as picture:
        assert picture.width > 1.5 * picture.height


def test_curves_read_what_was_logged(hot, tmp_path):
    values = plot_metrics.read(hot.folder)
    assert values["step"] == list(range(1, 13))
    assert plot_metrics.chosen(["l*"], [values])[0] == "loss"
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "metrics.csv").write_text("step,loss\n1,\n2,0.5\n")
    loss = plot_metrics.read(tmp_path)["loss"]
    assert math.isnan(loss[0])
    assert loss[1] == 0.5


@pytest.mark.parametrize(("arguments", "words"), [(["{run}", "--columns", "los"], "loss"),
                                                  (["{run}/nowhere"], "no run in")])
def test_curves_of_what_is_not_there(hot, arguments, words):
    result = command("scripts/plot_metrics.py", *(a.format(run=hot.folder) for a in arguments))
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


class TestSweep:
    """Curves of evaluations over a setting."""

    @pytest.fixture
    def runs(self, tmp_path):
        """Two runs, each measured at three scales, one of them on a schedule too."""
        for run, schedules in (("a", ["", ", schedule Linear"]), ("b", [""])):
            for schedule, (i, scale) in product(schedules, enumerate((10, 1, 2.5))):
                folder = tmp_path / run / "evaluations" / f"{schedule}{scale}"
                folder.mkdir(parents=True)
                guidance = f"CFG (scale {scale}{schedule}), PAG (scale 3.0, sites ['mid', 'up'])"
                protocol = {"sampler": "DDIM (grid Leading (offset 0), num_steps 5)", "guidance": guidance, "run": run}
                number = {"value": i, "low": i - 0.5, "high": math.inf, "how": ""}
                (folder / "evaluation.json").write_text(json.dumps(
                    {"rows": {"samples": {"fd@70": number, "recall": number}, "training images": {"fd@70": number}},
                     "subject": ["samples"], "protocol": protocol}))
        return tmp_path

    def test_settings_in_words(self):
        words = "CFG (scale 2, schedule Interval (low 0.2, high 0.8)), PAG (sites ['mid', 'up'], scale 3)"
        assert plot_sweep.settings(words) == {
            "CFG.scale": "2", "CFG.schedule": "Interval", "Interval.low": "0.2", "Interval.high": "0.8",
            "PAG.sites": "['mid', 'up']", "PAG.scale": "3"}
        assert plot_sweep.settings("none") == {}

    def test_points_in_the_order_of_the_axis(self, runs):
        found = plot_sweep.curves(plot_sweep.read([runs], None), "CFG.scale", ["fd*"])
        assert set(found) == {"fd@70"}
        lines = found["fd@70"]
        assert set(lines) == {"run a", "run a, CFG.schedule Linear", "run b"}
        assert [(value, number["value"]) for value, number in lines["run b"]] == [("1", 1), ("2.5", 2), ("10", 0)]
        points = plot_sweep.curves(plot_sweep.read([runs], None), "CFG.schedule", ["fd*"])["fd@70"]
        assert [value for value, _ in points["run a, CFG.scale 1"]] == ["Linear", "none"]

    def test_a_line_without_a_setting_has_a_name(self, runs):
        lines = plot_sweep.curves(plot_sweep.read([runs / "a"], None), "CFG.scale", ["fd*"])["fd@70"]
        assert set(lines) == {"CFG.schedule Linear", "no CFG.schedule"}

    def test_some_of_the_evaluations(self, runs):
        lines = plot_sweep.curves(plot_sweep.read([runs], None), "CFG.schedule", ["fd*"], ["CFG.scale=1"])["fd@70"]
        assert {line: [value for value, _ in points] for line, points in lines.items()} == {
            "run a": ["Linear", "none"], "run b": ["none"]}

    def test_steps_of_restorations(self, tmp_path):
        """A line for each sampler, none for what no sampler has made."""
        for n in (2, 5):
            folder = tmp_path / "evaluations" / str(n)
            folder.mkdir(parents=True)
            rows = {name: {"rmse": {"value": n, "low": n, "high": n, "how": ""}}
                    for name in ("degraded", "direct", "cold1", "cold2")}
            protocol = {"guidance": "none", "run": "a",
                        "samplers": {f"cold{i}": f"Algorithm{i} (grid Levels, num_steps {n})" for i in (1, 2)}}
            (folder / "evaluation.json").write_text(json.dumps(
                {"rows": rows, "subject": list(rows), "protocol": protocol}))
        lines = plot_sweep.curves(plot_sweep.read([tmp_path], None), "sampler.num_steps", ["rmse"])["rmse"]
        assert {line: [value for value, _ in points] for line, points in lines.items()} == {
            "sampler Algorithm1, of cold1": ["2", "5"], "sampler Algorithm2, of cold2": ["2", "5"]}

    @pytest.mark.parametrize("over", ["CFG.scale", "CFG.schedule"])
    def test_a_picture(self, runs, over, tmp_path):
        out = plot_sweep.plot([runs], over, ["*"], tmp_path / "deep" / "sweep.png")
        with Image.open(out) as picture:
            assert picture.width > 2 * picture.height

    @pytest.mark.parametrize(("arguments", "words"), [
        (["--over", "CFG.scale", "--where", "CFG.schedule=Sine"], "Linear"),
        (["--over", "CFG.scael"], "--over CFG.scale"), (["--over", "CFG.scale", "--numbers", "recal"], "recall"),
        (["--over", "CFG.scale", "--of", "nothing"], "no evaluation of nothing")])
    def test_what_is_not_there(self, runs, arguments, words):
        result = command("scripts/plot_sweep.py", str(runs), *arguments)
        assert result.returncode == 2
        assert words in result.stderr
        assert "Traceback" not in result.stderr
