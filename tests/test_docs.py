"""Every command and every code block of the README and the docs runs; those of docs/results, which take long, compose.

A page is the unit: its python blocks share one namespace, its commands run in its order, on the same desk as those of
the other pages. Runs that a page takes for granted (``runs/ddpm_digits/first``) are trained, small, when first named.
"""

import itertools
import re
import shlex
import shutil
from glob import glob
from pathlib import Path

import numpy as np
import pytest
import torch
from faces import draw_points, draw_values, save_photos, write_list, write_points
from helpers import ROOT, call
from oracles import Arbitrary, state_of
from PIL import Image
from text_encoders import save_encoder

import configs
import degradations
from configs import compose, construct, registry
from configs.overrides import ask_signals, merge_overrides
from degradations.randomness import BatchStream, Streams
from diffusion.data.files import landmarks
from diffusion.data.files.attributes import LIST
from diffusion.data.sets.cifar10 import CLASSES
from models.conditioning import ConditionEncoder, LabelSignal
from models.context import Context
from models.unet import UNet
from samplers.guidance.base import Guided

pytestmark = pytest.mark.docs

PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
REPORTS = [page for page in PAGES if page.startswith("docs/results/")]
LIVE = [page for page in PAGES if page not in REPORTS]
SMALL = ["debug=fast", "run.root=runs", "trainer.threads=1", "callbacks.pictures.count=0"]
WIDTHS = {"base": 8, "emb_dim": 16, "head_dim": 8, "width": 8, "depth": 3}
GUEST = "docs/extending.md"
FOLDER = Path(configs.__file__).parent


def text(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """The arguments of every ``python ...`` line, without comments."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", "").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("python ")]


def listed(pages: list[str]) -> list:
    return [pytest.param(page, command, id=f"{page} {' '.join(command)[:70]}")
            for page in pages for command in commands(page)]


def single(arguments: list[str]) -> list[str]:
    """The overrides of the first job of a sweep."""
    sweep = "-m" in arguments
    arguments = [re.sub(r"=(interval|choice)\((.*)\)$", r"=\2", a) for a in arguments if not a.startswith("hydra")]
    return [re.sub(r"=([^,'\"\[{]+),.*", r"=\1", a) if sweep else a for a in arguments if "=" in a]


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    """A folder as a newcomer has it: photos as a folder, a zip and a single file, MNIST and CIFAR-10."""
    folder = tmp_path_factory.mktemp("desk")
    rng = np.random.default_rng(0)

    def save(path: Path, *shape: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*shape, 3), dtype=np.uint8)).save(path)

    for i in range(40):
        save(folder / "photos" / ("cats" if i % 2 else "dogs") / f"{i:03d}.png", 30, 40)
    save(folder / "photo.png", 50, 70)
    for split, count in (("train", 30), ("test", 20)):
        for i in range(count):
            save(folder / "data" / "cifar10" / split / CLASSES[i % 10] / f"{i}.png", 32, 32)
    shutil.make_archive(str(folder / "photos"), "zip", folder / "photos")
    shutil.make_archive(str(folder / "faces"), "zip", save_photos(folder / "faces", draw_values(20), 44, 54))
    write_list(folder / LIST, draw_values(20))
    write_points(folder / landmarks.LIST, draw_points(20))
    save_encoder(folder / "clip", "clip_text_model")
    (folder / "captions.txt").write_text("a red seven\na small blue zero\n")
    for i in range(20):
        save(folder / "birds" / f"{i}.png", 32, 32)
    (folder / "birds" / "captions.csv").write_text("".join(f"{i}.png,a red bird\n" for i in range(20)))
    (folder / "birds" / "vector.csv").write_text("file,size\n" + "".join(f"{i}.png,{i}\n" for i in range(20)))
    raw = folder / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 64), ("t10k", 32)):
        images, labels = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10
        header = np.array([2051, count, 28, 28], ">i4").tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(np.array([2049, count], ">i4").tobytes() + labels.tobytes())
    return folder


@pytest.fixture(scope="session")
def guest(tmp_path_factory):
    """The package that docs/extending.md writes, as pip would install it."""
    folder = tmp_path_factory.mktemp("site")
    for language in ("python", "yaml"):
        for block in blocks(GUEST, language):
            path = folder / re.match(r"# ([\w/.]+)", block)[1].rstrip(":")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block)
    for package in ("my_methods", "my_methods/configs"):
        (folder / package / "__init__.py").touch()
    (folder / "my_methods-1.dist-info").mkdir()
    (folder / "my_methods-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: my_methods\nVersion: 1\n")
    table = blocks(GUEST, "toml")[0].replace('[project.entry-points."thaw.configs"]', "[thaw.configs]")
    (folder / "my_methods-1.dist-info" / "entry_points.txt").write_text(table.replace('"', ""))
    return folder


@pytest.fixture
def at_desk(desk, guest, monkeypatch, request):
    """The desk, as working directory; the guest package is installed while its page is read."""
    monkeypatch.chdir(desk)
    monkeypatch.setenv("XDG_CACHE_HOME", str(desk / "cache"))
    if request.node.callspec.params.get("page") == GUEST:
        monkeypatch.syspath_prepend(guest)
    return desk


def run(arguments: list[str]) -> tuple[int, str]:
    """A command line, in this process: exit code and what it said."""
    files = [sorted(glob(a)) or [a] for a in arguments[1:]]  # as the shell does
    if "hydra/launcher=slurm" in arguments:  # which tests/slurm starts
        files = [[a] for [a] in files if not a.startswith(("hydra/launcher", "hydra.launcher"))]
    return call(arguments[0], *itertools.chain(*files))


def small(arguments: list[str]) -> list[str]:
    """A command with little to do: three steps of a narrow network, two steps of a sampler, few samples, few trials."""
    arguments = ["hydra.sweeper.n_trials=2" if a.startswith("hydra.sweeper.n_trials") else a for a in arguments]
    match arguments[0]:
        case "train.py":
            widths = compose("train", single(arguments)).model
            return [*arguments, *SMALL, *(f"model.{key}={value}" for key, value in WIDTHS.items() if key in widths)]
        case "sample.py" | "evaluate.py" if any(a.startswith("run=runs/autoencoder") for a in arguments):
            return arguments  # it samples nothing
        case "sample.py":
            arguments = [re.sub("^step=.*", "step=2", a) for a in arguments]
            fewer = {"samples=0-63": "samples=0-3", "samples=0-49999": "samples=0-69"}
            return [*(fewer.get(a, a) for a in arguments), "sampler.num_steps=2"]
        case "evaluate.py":
            return [*arguments, "sampler.num_steps=2", "count=70"]
        case "scripts/reproduce.py":
            return [*arguments, "budget=smoke", "run.root=tables"]
        case _:
            return arguments


def provide(words: str, desk: Path, monkeypatch) -> None:
    """Train the runs that are named and not there."""
    for experiment, name in re.findall(r"runs/(\w+)/(\w+)", words):
        if experiment != "custom" and not (desk / "runs" / experiment / name).exists():
            assert run(small(["train.py", f"experiment={experiment}", f"run.name={name}"]))[0] == 0


@pytest.mark.parametrize(("page", "arguments"), listed(LIVE))
def test_command(page, arguments, at_desk, monkeypatch):
    provide(" ".join(arguments), at_desk, monkeypatch)
    code, said = run(small(arguments))
    assert code == 0, said


@pytest.mark.parametrize(("page", "arguments"), listed(REPORTS))
def test_a_long_command_composes(page, arguments, monkeypatch, capsys):
    script, *rest = arguments
    overrides = single(rest)
    if script == "train.py":
        assert compose("train", overrides).run.name
    elif script in ("sample.py", "evaluate.py"):
        experiment = next(a.split("/")[1] for a in overrides if a.startswith("run=runs/"))
        defaults = compose("train", [f"experiment={experiment}"]).sampling
        assert compose(script[:-3], merge_overrides(defaults, ask_signals(overrides, ["label"]))).run
    elif script == "scripts/reproduce.py":
        assert compose("reproduce", rest).table.rows
    else:
        assert run([script, "--help"])[0] == 0
        offered = capsys.readouterr().out
        assert all(a in offered for a in rest if a.startswith("--"))


def execute(page: str, desk: Path, monkeypatch) -> dict:
    """The namespace that the python blocks of a page leave."""
    names: dict = {"__name__": page}
    for block in blocks(page, "python"):
        provide(block, desk, monkeypatch)
        # A thousand steps otherwise.
        exec(block.replace('"sampler=ddpm"', '"sampler=ddpm", "sampler.num_steps=2"'), names)
    return names


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page, "python")])
def test_python(page, at_desk, monkeypatch):
    execute(page, at_desk, monkeypatch)


def test_readme_python(desk, monkeypatch):
    monkeypatch.chdir(desk)
    names = execute("README.md", desk, monkeypatch)
    assert names["images"].shape == names["more"].shape == (16, 1, 16, 16)
    assert names["x_t"].shape == (4, 3, 32, 32)


def test_the_readme_shows_all_three_commands():
    shown = commands("README.md")
    assert {"train.py", "sample.py", "evaluate.py"} <= {c[0] for c in shown}
    assert any("-m" in c for c in shown)


@pytest.fixture
def extending(guest, monkeypatch):
    """The classes of docs/extending.md by name."""
    found: dict = {}
    for block in blocks(GUEST, "python"):
        assert len(block.splitlines()) < 30
        exec(block, found)
    return found


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
    from diffusion.objectives.evaluator import NetworkRestorer
    from diffusion.objectives.parameterization import V

    d = degradations.build("gaussian")
    torch.manual_seed(0)
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


def test_own_data(extending):
    shapes = extending["Shapes"](16, 1, False)
    images, signals = shapes.split("train").batch(np.arange(2000))
    labels = signals["label"]
    area = (images == 255).double().mean(dim=(1, 2, 3))
    torch.testing.assert_close(area[labels == 1].mean(), torch.tensor(0.4**2).double(), rtol=0.05, atol=0)
    torch.testing.assert_close(area[labels == 0].mean(), torch.tensor(torch.pi * 0.2**2).double(), rtol=0.05, atol=0)
    assert shapes.fingerprint() == extending["Shapes"](16, 1, False).fingerprint()


def test_own_times(extending):
    t = extending["Power"](2.0)(4000, degradations.build("gaussian"), BatchStream(0, 0, slice(0, 4000), 4000))
    assert t.min() > 0
    assert t.max() <= 1
    torch.testing.assert_close(t.sqrt().mean(), torch.tensor(0.5), rtol=0.05, atol=0)


def test_own_condition(extending):
    encoder = ConditionEncoder({"label": extending["Words"](3, 16)}, 16)
    net = UNet(1, base=8, multipliers=(1, 2), attention=(1,), emb_dim=16, head_dim=8, cross_dim=16)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    ctx = encoder.with_null({"label": torch.tensor([0, 2])})
    x, t = torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1), torch.full((2,), 0.5)
    first, second = net(x, t, ctx)
    null = net(x, t, ctx.null)
    assert (first - second).abs().max() > 1e-4
    assert (first - null[0]).abs().max() > 1e-4
    torch.testing.assert_close(null[0], null[1])


def test_the_objectives_of_the_papers():
    """The overrides of docs/concepts.md compose, and their parts fit each other."""
    rows = re.findall(r"^\| .*(?:\d{4}|Diffusion 3).* \| `(.+)` \|$", text("docs/concepts.md"), re.MULTILINE)
    assert len(rows) == 8
    for row in rows:
        cfg = compose("train", ["experiment=ddpm_digits", *shlex.split(row)])
        construct(cfg.objective).check(construct(cfg.degradation))


@pytest.mark.parametrize("page", PAGES)
def test_choices_exist(page):
    """``sampler=ddim`` in the text names an option of the config group ``sampler``."""
    groups = {str(path.parent.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml")}
    for code in re.findall(r"`([^`\n]+=[^`\n]+)`", text(page)):
        for group, name in re.findall(r"(?<!\S)([\w/]+)=([a-z]\w*)", code):
            assert group not in groups or name in registry.available(group), f"{group}={name}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", text(page)):
        if not link.startswith("http"):
            assert ((ROOT / page).parent / link).exists(), link
