"""Models of vectors (B, D) and of sequences (B, H, D), through the commands: spaces and a network of a guest."""

import json

import pytest
import torch
from helpers import NANO, done, installed, write_package

from diffusion import load
from diffusion.data import Digits
from diffusion.data.pixels import to_float

pytestmark = pytest.mark.commands

FILES = {
    "guest_shapes/__init__.py": "",
    "guest_shapes/configs/__init__.py": "",
    "guest_shapes/parts.py": '''
from torch import nn

from diffusion.spaces.base import Space
from models.embeddings import ScalarEmbedding


class Vector(Space):
    """The pixels as one vector."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.image = channels, size, size

    def encode(self, image):
        return image.flatten(1)

    def decode(self, x):
        return x.unflatten(1, self.image)

    def shape(self, image):
        channels, height, width = image
        return (channels * height * width,)


class Rows(Vector):
    """The rows of the image, one after the other, as a sequence."""

    def encode(self, image):
        return image.transpose(1, 2).flatten(2)

    def decode(self, x):
        channels, _, width = self.image
        return x.unflatten(2, (channels, width)).transpose(1, 2)

    def shape(self, image):
        channels, height, width = image
        return height, channels * width


class Perceptron(nn.Module):
    """Two layers over the first axis after the batch."""

    def __init__(self, in_channels: int, emb_dim: int = 32):
        super().__init__()
        self.emb_dim, self.time = emb_dim, ScalarEmbedding(16, emb_dim)
        self.enter, self.leave = nn.Linear(in_channels, emb_dim), nn.Linear(emb_dim, in_channels)

    def forward(self, x, t, ctx=None, attn=None):
        h = x.movedim(1, -1)
        emb = self.time(t, x.dtype) + (0 if ctx is None or ctx.emb is None else ctx.emb)
        h = self.enter(h) + emb.view(len(x), *[1] * (h.dim() - 2), -1)
        return self.leave(nn.functional.silu(h)).movedim(-1, 1)
''',
    "guest_shapes/configs/space/vector.yaml":
        "_target_: guest_shapes.parts.Vector\nchannels: ${data.channels}\nsize: ${data.size}\n",
    "guest_shapes/configs/space/rows.yaml":
        "_target_: guest_shapes.parts.Rows\nchannels: ${data.channels}\nsize: ${data.size}\n",
    "guest_shapes/configs/model/perceptron.yaml":
        "_target_: guest_shapes.parts.Perceptron\nin_channels: null\nemb_dim: 32\n",
    "guest_shapes-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: guest_shapes\nVersion: 1\n",
    "guest_shapes-1.dist-info/entry_points.txt": "[thaw.configs]\nshapes = guest_shapes.configs\n",
}
SETTINGS = [setting for setting in NANO if setting != "model=nano"]


@pytest.fixture(scope="module", autouse=True)
def guest(tmp_path_factory):
    with installed(write_package(tmp_path_factory.mktemp("site"), FILES), "guest_shapes"):
        yield


@pytest.mark.parametrize(("space", "shape"), [("vector", (256,)), ("rows", (16, 16))])
def test_it_trains_samples_and_is_evaluated(space, shape, tmp_path):
    done("train.py", "experiment=ddpm_digits", *SETTINGS, "model=perceptron", f"space={space}", "max_steps=3",
         f"run.root={tmp_path}", "run.name=x")
    run = tmp_path / "ddpm_digits" / "x"
    assert len(list(run.glob("pictures/*.png"))) == 2
    model = load(run, device="cpu")
    assert model.shape == shape
    assert model.config["model"]["in_channels"] == shape[0]
    x = to_float(Digits().split("test").images[:2])
    assert torch.equal(model.space.decode(model.space.encode(x)), x)
    done("sample.py", f"run={run}", "samples=0-2", "label=[3,4,5]", "guidance.cfg.scale=2", "sampler.num_steps=3",
         "device=cpu", f"out={tmp_path / 'out'}", "animate=true", "animation.frames=2")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [one["condition"] for one in manifest["samples"]] == [{"label": k} for k in (3, 4, 5)]
    done("evaluate.py", f"run={run}", "count=8", "metrics=quick", "judge=none", "sampler.num_steps=2", "device=cpu")
