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
from faces import draw_points, draw_values, save_photos, write_list, write_points
from helpers import FEW, GUEST, ROOT, call, command, read_blocks, read_commands, write_guest
from omegaconf import OmegaConf
from PIL import Image
from text_encoders import save_encoder

import configs
from configs import compose, construct, registry
from configs.overrides import ask_signals, merge_overrides
from diffusion.data.files import landmarks
from diffusion.data.files.attributes import LIST
from diffusion.data.sets.cifar10 import CLASSES

pytestmark = pytest.mark.docs

PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
REPORTS = [page for page in PAGES if page.startswith("docs/results/")]
LIVE = [page for page in PAGES if page not in REPORTS]
SMALL = ["debug=fast", "run.root=runs", "trainer.threads=1", "callbacks.pictures.count=0"]
WIDTHS = {"base": 8, "emb_dim": 16, "head_dim": 8, "width": 8, "depth": 3}
FOLDER = Path(configs.__file__).parent


def text(page: str) -> str:
    return (ROOT / page).read_text()


def commands(page: str) -> list[list[str]]:
    """The arguments of every ``python ...`` line, without comments."""
    return [words[1:] for words in read_commands(page, "python")]


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
    save(folder / "mask.png", 16, 16)
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
    return write_guest(tmp_path_factory.mktemp("site"))


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
            cfg = compose("train", single(arguments))
            of_run = isinstance(OmegaConf.to_container(cfg.model).get("base"), str)
            inside = "model.base" if "hint" in cfg.model else "model"
            widths = [] if of_run else [f"{inside}.{key}={value}" for key, value in WIDTHS.items()
                                        if key in OmegaConf.select(cfg, inside)]
            return [*arguments, *SMALL, *widths, *(FEW if "count_test" in cfg.data else [])]
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


@pytest.mark.parametrize(("page", "words"), [pytest.param(page, words, id=f"{page} {words[2]}")
                                             for page in LIVE for words in read_commands(page, "torchrun")])
def test_torchrun(page, words, at_desk, monkeypatch):
    """With two processes; SLURM's commands are in tests/slurm."""
    provide(" ".join(words), at_desk, monkeypatch)
    words = [re.sub(r"^(--nproc-per-node|trainer\.devices)=\d+$", r"\1=2", word) for word in words]
    words = ["data.root=data/cifar10" if word == "data.root=FOLDER" else word for word in words]
    start, script, more = words[1:2], words[2], words[3:]
    cpu = "trainer.accelerator=cpu" if script == "train.py" else "device=cpu"
    done = command("-m", "torch.distributed.run", *start, str(ROOT / script), *small([script, *more])[1:], cpu,
                   cwd=at_desk, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("page", "arguments"), listed(REPORTS))
def test_a_long_command_composes(page, arguments, monkeypatch, capsys):
    script, *rest = arguments
    overrides = single(rest)
    if script == "train.py":
        assert compose("train", overrides).run.name
    elif script in ("sample.py", "evaluate.py"):
        experiment = next(a.split("/")[1] for a in overrides if a.startswith("run=runs/"))
        cfg = compose("train", [f"experiment={experiment}"])
        asked = ask_signals(overrides, cfg.condition.get("signals", {}))
        assert compose(script[:-3], merge_overrides(cfg.sampling, asked)).run
    elif script == "scripts/reproduce.py":
        assert compose("reproduce", rest).table.rows
    else:
        assert run([script, "--help"])[0] == 0
        offered = capsys.readouterr().out
        assert all(a in offered for a in rest if a.startswith("--"))


def execute(page: str, desk: Path, monkeypatch) -> dict:
    """The namespace that the python blocks of a page leave."""
    names: dict = {"__name__": page}
    for block in read_blocks(page, "python"):
        provide(block, desk, monkeypatch)
        # A thousand steps otherwise.
        exec(block.replace('"sampler=ddpm"', '"sampler=ddpm", "sampler.num_steps=2"'), names)
    return names


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if read_blocks(page, "python")])
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
