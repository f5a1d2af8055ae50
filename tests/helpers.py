"""Small runs for the tests, made by the same functions as the commands use."""

import atexit
import contextlib
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from configs import compose
from diffusion.runs.run import Run

ROOT = Path(__file__).parents[1]
GUEST = "docs/extending.md"
NANO = ["debug=fast", "model=nano", "precision=32", "trainer.threads=1", "trainer.accelerator=cpu"]
DIGITS = ["experiment=ddpm_digits", *NANO, "model.base=8", "model.emb_dim=32"]
COLD = ["experiment=cold_blur_digits", *NANO, "model.base=8", "model.emb_dim=32"]

LEARNED = ["max_steps=12", "optimizer.lr=0.01", "ema=0.5", "callbacks.pictures.count=0"]
"""Steps after which weights, averages and classes differ."""
CLASSIFIER = ["experiment=classifier_digits", "debug=fast", "model.base=8", "model.emb_dim=32", "precision=32",
              "trainer.threads=1", "trainer.accelerator=cpu"]


def read_blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page, such as ``docs/clusters.md``."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def read_commands(page: str, *programs: str) -> list[list[str]]:
    """The words of every command of a page that calls one of these programs, such as ``python``."""
    lines = "".join(read_blocks(page, "bash")).replace("\\\n", "").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.split(" ")[0] in programs]


def write_guest(folder: Path) -> Path:
    """The package that docs/extending.md writes, as pip would install it, into a folder for the path."""
    for language in ("python", "yaml"):
        for block in read_blocks(GUEST, language):
            found = re.match(r"# ([\w/.]+)", block)
            assert found is not None
            path = folder / found[1].rstrip(":")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block)
    table = read_blocks(GUEST, "toml")[0].replace('[project.entry-points."thaw.configs"]', "[thaw.configs]")
    about = folder / "my_methods-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my_methods\nVersion: 1\n")
    (about / "entry_points.txt").write_text(table.replace('"', ""))
    for package in ("my_methods", "my_methods/configs"):
        (folder / package / "__init__.py").touch()
    return folder


def write_package(folder: Path, files: Mapping[str, str]) -> Path:
    """A package of somebody else, as pip would install it, into a folder for the path."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@contextlib.contextmanager
def installed(site: Path, package: str) -> Iterator[None]:
    """The package that lies there, for the commands and for this process; its modules are forgotten afterwards."""
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        patch.syspath_prepend(site)
        yield
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]


def call(*arguments: str) -> tuple[int, str]:
    """A command line, in this process: its exit code, and what it said."""
    import pytest
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(sys, "argv", [str(ROOT / arguments[0]), *arguments[1:]])
        try:
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    return 0, said.getvalue()


def done(*arguments: str, code: int = 0) -> str:
    """What a command says that ends with this code."""
    ended, said = call(*arguments)
    assert ended == code, said
    assert code == 0 or "Traceback" not in said
    return said


def equal(a: Any, b: Any, but: Collection[str] = ()) -> bool:
    """Whether two contents of checkpoints are the same to the last bit.

    :param but: keys whose values may differ
    """
    import torch

    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key], but) for key in a if key not in but)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(one, other, but) for one, other in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@lru_cache
def first_stage(size: int, channels: int) -> str:
    """The folder of a small first stage for images of this size, of one step."""
    root = Path(tempfile.mkdtemp(prefix="thaw-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    own = [setting for setting in NANO if setting != "model=nano"]
    run = train(root, "experiment=autoencoder_digits", *own, "model.base=4", "model.latent_channels=4", "max_steps=1",
                f"run.name={size}-{channels}", f"data.size={size}", f"data.channels={channels}",
                "callbacks.pictures.count=0")
    return str(run.folder)


FEW = ["data.count=40", "data.count_test=24"]
"""Scenes, which are made when they are asked for."""


@lru_cache
def text_base() -> str:
    """The folder of a small model of captioned scenes, of one step."""
    root = Path(tempfile.mkdtemp(prefix="thaw-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    run = train(root, *small("text_scenes_digits"), *FEW, "max_steps=1", "run.name=base", "callbacks.pictures.count=0")
    return str(run.folder)


@lru_cache
def scene_judge() -> str:
    """The folder of a small judge of scenes, of one step."""
    root = Path(tempfile.mkdtemp(prefix="thaw-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    run = train(root, *small("judge_scenes_digits"), *FEW, "max_steps=1", "run.name=judge")
    return str(run.folder)


@lru_cache
def face_runs(size: int) -> tuple[str, str]:
    """The folders of a small unconditional model and a small judge of attributes, of one step on photos of this
    size."""
    from faces import draw_values, save_photos, write_list

    from diffusion.data.files.attributes import LIST

    root = Path(tempfile.mkdtemp(prefix="thaw-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    photos = save_photos(root / "photos", draw_values(20))
    write_list(photos / LIST, draw_values(20))
    base, judge = (train(root, *small(name), f"data.root={photos}", f"data.size={size}", "max_steps=1",
                         f"run.name={name}", *more).folder
                   for name, more in (("ddpm_celeba64", ["callbacks.pictures.count=0"]), ("classifier_celeba64", [])))
    return str(base), str(judge)


@lru_cache
def embedding(size: int = 16) -> str:
    """The folder of a small embedding of scenes of this size, of one step."""
    root = Path(tempfile.mkdtemp(prefix="thaw-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    run = train(root, *small("embed_scenes"), "data.count=40", "data.count_test=24", f"data.size={size}",
                "model.length=8", "max_steps=1", f"run.name={size}", "callbacks.pictures.count=0")
    return str(run.folder)


def small(experiment: str, size: int = 32, channels: int | None = None) -> list[str]:
    """The experiment with a small network of its kind, for a few steps.

    :param size: of the images, at most; it matters to latent models, as do the channels
    """
    if experiment.startswith("control_"):
        return [f"experiment={experiment}", *(override for override in NANO if override != "model=nano"),
                f"begin.base.run={text_base()}", "model.hint.widths=[4,8]"]
    if experiment.startswith("asyrp_"):
        base, judge = (text_base(), scene_judge()) if experiment == "asyrp_scenes" else face_runs(size)
        return [f"experiment={experiment}", *(override for override in NANO if override != "model=nano"),
                f"begin.base.run={base}", f"objective.goal.run={judge}", "objective.goal.source=null",
                "objective.num_steps=2"]
    cfg = compose("train", [f"experiment={experiment}"])
    own = not {"classes", "latent_channels", "length"}.isdisjoint(cfg.model)  # a network of another kind
    kind = cfg.degradation._target_.split(".")[-1]
    known = cfg.model if own else ("base", "emb_dim")
    inside = "model.base" if isinstance(cfg.model.get("base"), Mapping | DictConfig) else "model"
    own = own or inside != "model"
    widths = [f"{inside}.{key}={value}" for key, value in (("base", 8), ("emb_dim", 32))
              if key in known or inside != "model"]
    # What lets images of 16 px be halved, and a gallery that is there.
    fitting = {"Downsample": ["degradation.levels=3"], "Animorph": ["degradation/target_set=digits"]}.get(kind, [])
    stage = [f"begin.first_stage.run={first_stage(min(size, cfg.data.size), channels or cfg.data.channels)}"] \
        if "first_stage" in cfg.begin else []
    if "identity" in cfg.begin:
        stage = [f"begin.identity.run={embedding()}"]
    if cfg.objective.get("discriminator"):  # patches within the images
        fitting = ["objective.discriminator.network.layers=1", "objective.discriminator.network.base=4"]
    return [f"experiment={experiment}", *(override for override in NANO if override != "model=nano" or not own),
            *widths, *fitting, *stage]


def train(root: Path, *overrides: str, experiment: str = "test") -> Run:
    """Train a run in this process."""
    from diffusion import commands

    return commands.train(compose("train", [f"run.root={root}", *overrides]), experiment)


def command(*arguments: str, cwd: Path = ROOT, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run one of the commands as a user does."""
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout)


@contextlib.contextmanager
def process(*arguments: str, cwd: Path = ROOT):
    """A command in the background, ended at the end."""
    child = subprocess.Popen([sys.executable, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
