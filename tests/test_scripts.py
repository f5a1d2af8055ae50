"""Scripts as they are called, on small runs."""

import math

import pytest
from helpers import command
from PIL import Image

from scripts import plot_metrics


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
