import re
from pathlib import Path

import pytest
import torch

import configs
import models
from models.unet import UNet

FOLDER = Path(configs.__file__).parent / "model"
UNITS = {"k": 1e3, "M": 1e6}


@pytest.mark.parametrize("name", models.available())
def test_preset_has_the_size_that_it_states(name):
    stated = re.match(r"# ([\d.]+) ([kM]) parameters", (FOLDER / f"{name}.yaml").read_text())
    assert stated
    with torch.device("meta"):
        net = models.build(name)
    count = sum(p.numel() for p in net.parameters())
    assert count == pytest.approx(float(stated[1]) * UNITS[stated[2]], rel=0.02)


@pytest.mark.parametrize("name", [name for name in models.available() if name != "base"])
def test_preset_runs(name):
    net = models.build(name, in_channels=3)
    x = torch.randn(2, 3, 8, 16)
    with torch.no_grad():
        assert net(x, torch.tensor([0.3, 1.0])).shape == x.shape


def test_overrides_reach_the_network():
    net = models.build("tiny", base=64, multipliers=[1, 2], attention=[1], emb_dim=256, cross_dim=6)
    assert isinstance(net, UNet)
    assert (net.emb_dim, net.mid_channels) == (256, 128)
    assert any(site.kind == "cross" for site in net.sites)
