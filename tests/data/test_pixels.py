import subprocess
import sys

import pytest
import torch

import diffusion.data
from diffusion.data import to_float, to_uint8


def test_every_value_survives_the_round_trip():
    values = torch.arange(256, dtype=torch.uint8)
    floats = to_float(values)
    assert floats.dtype == torch.float32
    assert floats.min() == -1
    assert floats.max() == 1
    assert torch.equal(to_uint8(floats), values)


def test_what_lies_outside_is_clipped():
    assert to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


def test_half_precision_is_widened_before_rounding():
    values = torch.arange(256, dtype=torch.uint8)
    assert (to_uint8(to_float(values).to(torch.bfloat16)).int() - values.int()).abs().max() <= 1


def test_the_package_is_imported_without_torch():
    code = "import sys, diffusion.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_resolves():
    assert all(getattr(diffusion.data, name) for name in diffusion.data.__all__)
    with pytest.raises(AttributeError):
        diffusion.data.nothing  # noqa: B018
