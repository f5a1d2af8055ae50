"""Every command and every code block of the README and the docs runs."""

import re
import runpy
import shlex
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT
from hydra.core.global_hydra import GlobalHydra
from oracles import Arbitrary, state_of
from PIL import Image

import degradations
from degradations.randomness import Streams
from models.conditioning import ConditionEncoder, Context, LabelSignal
from models.unet import UNet
from samplers.guidance.base import Guided

SMALL = ["debug=fast", "run.root=runs", "trainer.threads=1", "callbacks.pictures.count=0", "model.base=8",
         "model.emb_dim=16", "model.head_dim=8"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The arguments of every ``python ...`` line, without comments."""
    lines = "".join(blocks(page, "bash")).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("python ")]


COMMANDS = commands("README.md")


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    """A folder as a newcomer has it: some photos, as a folder and as a zip, and MNIST."""
    folder = tmp_path_factory.mktemp("desk")
    rng = np.random.default_rng(0)
    for i in range(40):
        place = folder / "photos" / ("cats" if i % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(place / f"{i:03d}.png")
    import shutil

    shutil.make_archive(str(folder / "photos"), "zip", folder / "photos")
    raw = folder / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 64), ("t10k", 32)):
        images, labels = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10
        header = np.array([2051, count, 28, 28], ">i4").tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(np.array([2049, count], ">i4").tobytes() + labels.tobytes())
    return folder


def run(arguments: list[str], monkeypatch) -> int:
    """A command line, in this process."""
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", [str(ROOT / arguments[0]), *arguments[1:]])
    try:
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("arguments", COMMANDS, ids=[" ".join(c)[:70] for c in COMMANDS])
def test_readme_command(arguments, desk, monkeypatch):
    monkeypatch.chdir(desk)
    extra = SMALL if arguments[0] == "train.py" else ["sampler.num_steps=2"]
    if arguments[0] == "evaluate.py":
        extra = [*extra, "count=70"]
    if any(a.startswith("samples=0-63") for a in arguments):
        extra = [*extra, "samples=0-3"]
    assert run([*arguments, *extra], monkeypatch) == 0


def test_the_readme_shows_all_three_commands():
    assert {c[0] for c in COMMANDS} == {"train.py", "sample.py", "evaluate.py"}
    assert any("-m" in c for c in COMMANDS)


def test_readme_python(desk, monkeypatch):
    monkeypatch.chdir(desk)
    if not (desk / "runs" / "ddpm_digits" / "first").exists():
        run(["train.py", "experiment=ddpm_digits", "run.name=first", *SMALL], monkeypatch)
    first, second = blocks("README.md", "python")
    names: dict = {}
    exec(first.replace('"guidance.cfg.scale=4"', '"guidance.cfg.scale=4", "sampler.num_steps=2"'), names)
    assert names["images"].shape == (16, 1, 16, 16)
    assert names["more"].shape == (16, 1, 16, 16)
    exec(second, names)
    assert names["x_t"].shape == (4, 3, 32, 32)


@pytest.fixture(scope="module")
def extending():
    names: dict = {}
    for block in blocks("docs/extending.md", "python"):
        assert len(block.splitlines()) < 30
        exec(block, names)
    return names


def test_own_degradation(extending):
    d = extending["Fade"]()
    x0, t = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 0.5, 1.0])
    state = state_of(d, x0.shape)
    x_t = d.forward(x0, t, state)
    assert torch.equal(x_t[0], x0[0])
    torch.testing.assert_close(x_t[2], state["c"][2].expand(1, 8, 8))


def test_own_sampler(extending):
    d = degradations.build("blur")
    x_T = torch.randn(2, 1, 8, 8)
    sampler = extending["Cautious"](num_steps=4)
    out = sampler.sample(Arbitrary(d), d, x_T, state_of(d, x_T.shape), Context(), Streams(0, (0, 1)))
    assert out.isfinite().all()


def test_own_guidance_and_network(extending):
    from diffusion.parameterization import V
    from diffusion.restorer import NetworkRestorer

    d = degradations.build("gaussian")
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.5)
    state = state_of(d, x.shape)
    net = UNet(1, base=8, multipliers=(1, 2), attention=(1,), emb_dim=16, head_dim=8)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    for network in (net, extending["Convolutions"](emb_dim=16)):
        encoder = ConditionEncoder({"label": LabelSignal(3, 16)}, 16)
        ctx = encoder.with_null({"label": torch.tensor([0, 2])})
        restorer = NetworkRestorer(network, d, V())
        plain = restorer(x, t, ctx, state=state, step=None)
        guided = Guided(restorer, d, [extending["Perturbed"](3.0)])(x, t, ctx, state=state, step=None)
        changed = (plain.x0 - guided.x0).abs().max() > 1e-4
        assert changed == (network is net), "only a network with attention is perturbed"


def test_links_lead_somewhere():
    for page in ("README.md", "docs/architecture.md", "docs/extending.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            if not link.startswith("http"):
                assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"
