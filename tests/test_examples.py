"""The examples, with little to do."""

import pytest
from helpers import ROOT, done
from PIL import Image

pytestmark = pytest.mark.commands


def test_the_minimal_example_is_short_and_writes_a_grid_of_digits(tmp_path):
    assert len((ROOT / "examples/minimal.py").read_text().splitlines()) < 40
    done("examples/minimal.py", "--steps", "2", "--out", str(tmp_path / "digits.png"))
    with Image.open(tmp_path / "digits.png") as picture:
        assert picture.size == (4 * 64 + 5 * 2,) * 2  # 16 digits, four times as large, and the lines between them
