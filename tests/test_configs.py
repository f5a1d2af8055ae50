"""Every config composes, builds, trains and samples: files are found by walking ``configs/``, not listed here."""

import struct
import subprocess
import sys
import tarfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from faces import draw_points, write_list, write_points
from helpers import FEW, NANO, ROOT, first_stage, small, train
from omegaconf import OmegaConf
from PIL import Image

import configs
import degradations
import models
import samplers
import samplers.guidance
from configs import UserError, compose, construct, registry
from configs.values import require_values, to_plain
from degradations.base import Degradation
from degradations.randomness import BatchStream
from diffusion.data.augment import Augmentation
from diffusion.data.files import landmarks
from diffusion.data.files.attributes import ATTRIBUTES, LIST
from diffusion.data.scenes.captions import WORDS
from diffusion.data.sets.cifar10 import CLASSES
from diffusion.data.sets.gallery import Gallery
from diffusion.metrics.base import Metric, ModelMetric, PairMetric
from diffusion.metrics.extractors.base import Extractor
from diffusion.model import Model
from diffusion.objectives.adversarial import Adversarial
from diffusion.objectives.autoencoder import NetworkAutoencoder
from diffusion.objectives.base import Criterion
from diffusion.objectives.classification import NetworkClassifier
from diffusion.objectives.embedding import NetworkEmbedder
from diffusion.objectives.evaluator import NetworkRestorer
from diffusion.objectives.parameterization import Parameterization
from diffusion.objectives.perceptual import Perceptual
from diffusion.objectives.times import TimeDistribution
from diffusion.objectives.weighting import Weighting
from diffusion.priors import Prior
from diffusion.problem import InverseProblem
from diffusion.recipe import Recipe
from diffusion.runs import checkpoint
from diffusion.spaces.base import Space
from diffusion.tasks.base import Task
from diffusion.training.fit import fill_signals
from diffusion.training.optimization import AdamW
from models.conditioning import ConditionEncoder
from samplers.base import Sampler, list_fitting
from samplers.grids import Grid
from samplers.guidance.pag import Perturbation
from samplers.guidance.schedules import ScaleSchedule

pytestmark = pytest.mark.commands

FOLDER = Path(configs.__file__).parent
FILES = sorted(path.relative_to(FOLDER).with_suffix("") for path in FOLDER.rglob("*.yaml"))
OPTIONS = [(str(path.parent), path.name) for path in FILES if len(path.parts) > 1 and path.parts[0] not in (
    "hydra", "experiment", "debug", "trainer", "extractor", "metrics", "table", "budget", "kind", "method")]
FROM_FOLDERS = [("space", "diffusers_kl"), ("condition", "text_pretrained")]
"""Made of files of the user."""
EXPERIMENTS = registry.available("experiment")
DESCRIBED = {"label": {"num_classes": 10}, "attributes": {"words": ["old"]}, "vector": {"in_dim": 3},
             "text": {"words": WORDS, "length": 12}, "answers": {"words": {"digit": ["0", "1"]}},
             "landmarks": {"side": 16}}
NESTED = {"guidance/schedule": ("cfg", "guidance.cfg.schedule"),
          "guidance/perturbation": ("pag", "guidance.pag.perturbation")}
"""Groups inside a keyed part of another: the choice with that part, and its place."""
PARENT = {"degradation/kernels": ["degradation=blur"], "degradation/flakes": ["degradation=snow"],
          "degradation/target_set": ["degradation=animorph"], "begin": ["begin.base.run=x"],
          "condition": ["model.cross_dim=16"],
          **{f"objective/{part}": ["objective=autoencoder"] for part in ("perceptual", "discriminator")}}
ROLES = {"data": object, "degradation": Degradation, "degradation/kernels": object, "degradation/schedule": object,
         "degradation/flakes": object, "degradation/target_set": Gallery,
         "prior": Prior, "space": Space, "condition": ConditionEncoder, "model": torch.nn.Module,
         "objective": Criterion, "augment": dict | Augmentation,
         "objective/parameterization": Parameterization, "objective/times": TimeDistribution,
         "objective/weighting": Weighting, "objective/perceptual": Perceptual,
         "objective/discriminator": Adversarial, "optimizer": AdamW, "sampler": Sampler,
         "sampler/grid": Grid, "guidance": dict,
         "guidance/schedule": ScaleSchedule,
         "guidance/perturbation": Perturbation, "callbacks": dict,
         "logger": dict, "begin": dict, "edit": dict, "task": InverseProblem}
EVALUATORS = {kind.task: kind for kind in (NetworkRestorer, NetworkClassifier, NetworkAutoencoder, NetworkEmbedder)}
SMALL = [*NANO, "model.base=8", "model.emb_dim=32"]


@pytest.fixture(scope="session")
def roots(tmp_path_factory) -> dict[str, Path]:
    """Small data of every kind, by the class that reads it."""
    photos, mnist = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("mnist")
    random = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(random.integers(0, 256, (30, 24, 3), np.uint8)).save(photos / f"{i + 1:06d}.png")
    write_points(photos / landmarks.LIST, draw_points(20))
    write_list(photos / LIST, random.random((20, len(ATTRIBUTES))) < 0.5)
    raw = mnist / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 12), ("t10k", 10)):
        pixels = random.integers(0, 256, (count, 28, 28), np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    cifar10 = tmp_path_factory.mktemp("cifar10")
    for split, name in product(("train", "test"), CLASSES):
        (cifar10 / split / name).mkdir(parents=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(cifar10 / split / name / "0.png")
    shards = tmp_path_factory.mktemp("shards")
    with tarfile.open(shards / "0.tar", "w") as tar:
        for photo in sorted(photos.glob("*.png")):
            tar.add(photo, photo.name)
    return {"Folder": photos, "CelebA": photos, "MNIST": mnist, "Scenes": mnist, "CIFAR10": cifar10, "Shards": shards}


def placed(overrides: list[str], roots: dict[str, Path]) -> list[str]:
    """The overrides, with the places of the data that they name."""
    cfg, more = compose("train", overrides), []
    more += FEW if "count_test" in cfg.data else []
    for place in ("data", "data.sets.subject", "data.sets.others", "degradation.target_set.data"):
        reader = OmegaConf.select(cfg, f"{place}._target_", default="").split(".")[-1]
        more += [f"{place}.root={roots[reader]}"] if reader in roots else []
    return [*overrides, *more]


def test_every_kind_of_trained_model_has_a_task():
    assert set(EVALUATORS) == set(registry.available("kind"))
    for name in EVALUATORS:
        task = registry.build("kind", name)
        assert isinstance(task, Task)
        assert "run=x" in task.hint.format(run="x")


@pytest.mark.parametrize(("group", "name"), [option for option in OPTIONS if option not in FROM_FOLDERS],
                         ids=lambda v: v)
def test_every_option_composes_and_builds(group, name, roots, tmp_path):
    place = group.replace("/", ".")
    if group in NESTED:
        whole, place = NESTED[group]
        cfg = compose("sample", ["run=x", f"guidance={whole}", f"{group}@{place}={name}"])
    elif group.split("/")[0] in ("sampler", "guidance", "edit", "task"):
        cfg = compose("sample", ["run=x", f"{group}={name}"])
    else:
        needed = [f"begin.first_stage.run={first_stage(16, 1)}"] if name == "latent" else \
            [] if name == "none" else PARENT.get(group, [])
        overrides = placed([*needed, f"{group}={name}", "model.in_channels=1"], roots)
        cfg = OmegaConf.create(fill_signals(to_plain(compose("train", overrides)), DESCRIBED))
    require_values(cfg)
    made = {"save_dir": str(tmp_path)} if group == "logger" and name != "csv" else {}
    node = OmegaConf.select(cfg, place)
    if made:
        node = OmegaConf.merge(node, dict.fromkeys(node, made))
    with torch.device("meta" if group == "model" else "cpu"):
        built = construct(node or {})
    assert isinstance(built, ROLES[group])


@pytest.mark.parametrize("name", registry.available("metrics"))
def test_every_choice_of_metrics_builds(name):
    metrics = construct(compose("evaluate", ["run=x", f"metrics={name}"]).metrics)
    assert metrics
    assert registry.build("metrics", name).keys() == metrics.keys(), "alone as well, from Python"
    assert all(isinstance(metric, Metric | ModelMetric | PairMetric) for metric in metrics.values())


@pytest.mark.parametrize("name", registry.available("extractor"))
def test_every_extractor_composes(name):
    """Those that need files of weights, or a run, are built in their own tests."""
    node = compose("evaluate", ["run=x", f"extractor={name}"]).extractor
    assert issubclass(registry.locate(node["_target_"]), Extractor)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains(name, roots, tmp_path):
    """Its own levels, schedule, objective, prior and sampler, or what its classifier is measured by, at nano width, on
    small data."""
    overrides = placed(small(name), roots)
    cfg = compose("train", overrides)
    size = cfg.data.size
    run = train(tmp_path, *overrides, f"data.size={min(size, 32)}", experiment=name)
    assert list(checkpoint.list_checkpoints(run.checkpoints)) == [2, 3]
    rows = run.metrics.read_text().splitlines()
    assert rows[0].startswith("step,loss")
    assert len(rows) == 4
    if "classes" in cfg.model:
        assert [row.split(",")[0] for row in (run.folder / "accuracy.csv").read_text().splitlines()] == ["step", "3"]
    else:
        pictures = sorted(path.name for path in run.pictures.iterdir())
        shown = ["pairs"] if "latent_channels" in cfg.model else ["nearest"] if "length" in cfg.model else \
            ["estimates", "samples"]
        assert pictures == [f"{name}-00000003.png" for name in shown]
    content = checkpoint.read_latest(run.checkpoints)
    assert content is not None
    assert run.config["sampling"] == content["config"]["sampling"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_how_to_run_it(name):
    lines = (FOLDER / "experiment" / f"{name}.yaml").read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert lines[0] == "# @package _global_"
    assert any(f"python train.py experiment={name}" in line for line in comments)


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] != "hydra"], ids=str)
def test_every_file_begins_with_what_it_is(path):
    first, *rest = (FOLDER / path).with_suffix(".yaml").read_text().splitlines()
    words = rest[0] if first.startswith("# @package") else first
    assert words.startswith("# ")


def variant(*overrides) -> Model:
    cfg = compose("train", ["data=digits", *SMALL, *overrides])
    return Model(fill_signals(to_plain(cfg), {"label": {"num_classes": 10}}))


def one_step(model: Model) -> None:
    """A gradient that is finite and reaches the network."""
    x0 = torch.rand(4, *model.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    condition = {"label": torch.arange(4)} if "label" in model.readers() else {}
    losses = model.objective(model.restorer, model.weights.encoder, model.degradation, x0, condition,
                             BatchStream(0, 0, slice(0, 4), 4))
    assert losses.values.shape == losses.t.shape == (4,)
    losses.values.mean().backward()
    gradients = [p.grad for p in model.weights.net.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert sum(g.abs().sum() for g in gradients) > 0


HOT = [*product(registry.available("degradation/schedule"), registry.available("objective/parameterization"),
                ["uniform"], ["constant"]),
       *product(["cosine", "rectified"], ["v"], registry.available("objective/times"), ["constant"]),
       *product(["cosine", "rectified"], ["flow"], ["uniform"], registry.available("objective/weighting"))]
COLD = list(product(registry.available("degradation/kernels"), ["antithetic", "levels", "uniform"]))


@pytest.mark.parametrize(("schedule", "parameterization", "times", "weighting"), HOT)
def test_every_hot_variant_takes_a_step(schedule, parameterization, times, weighting):
    choice = ["degradation=gaussian", f"degradation/schedule={schedule}", f"objective/times={times}",
              f"objective/parameterization={parameterization}", f"objective/weighting={weighting}", "condition=label"]
    choice += ["prior=degraded"] if schedule == "additive" else []
    if (schedule, parameterization) in (("zero_snr", "eps"), ("rectified", "eps")):
        with pytest.raises(UserError, match="parameterization=v"):
            variant(*choice)
    elif (schedule, times) == ("rectified", "levels"):
        with pytest.raises(UserError, match="times=uniform"):
            variant(*choice)
    else:
        one_step(variant(*choice))


@pytest.mark.parametrize(("kernels", "times"), COLD)
def test_every_cold_variant_takes_a_step(kernels, times):
    one_step(variant("degradation=blur", f"degradation/kernels={kernels}", "objective=cold", f"objective/times={times}",
                     "prior=degraded"))


@pytest.mark.parametrize("overrides", [["degradation=blur", "objective=cold"],
                                       *[["degradation=blur", "prior=degraded", "objective=cold", wrong] for wrong in (
                                           "objective/times=log_normal", "objective/weighting=min_snr")],
                                       ["degradation=blur", "prior=degraded", "objective=ddpm"]])
def test_what_does_not_fit_is_refused(overrides):
    with pytest.raises(UserError):
        variant(*overrides)


@pytest.mark.parametrize("degradation", degradations.available())
def test_every_sampler_and_grid_samples(degradation):
    affine = degradation in ("gaussian", "animorph")
    rest = ["objective/parameterization=v"] if affine else ["objective=cold", "prior=degraded"]
    model = variant(f"degradation={degradation}", *rest, *(["data.channels=3"] if degradation == "desaturate" else []))
    images = torch.rand(2, *model.image_shape)
    names = list_fitting(model.degradation)
    assert names
    for name, grid in product(names, registry.available("sampler/grid")):
        recipe = model.recipe([f"sampler={name}", f"sampler/grid={grid}", "sampler.num_steps=2"])
        if not isinstance(model.degradation, recipe.sampler.grid.requires):
            with pytest.raises(UserError, match="sampler/grid=uniform"):
                model.sample(range(2), recipe=recipe, images=images)
            continue
        assert model.sample(range(2), recipe=recipe, images=None if affine else images).isfinite().all()


class TestTheTwoWaysAgree:
    """Python's ``build`` and the command line read the same files."""

    @pytest.mark.parametrize("name", samplers.available())
    def test_samplers(self, name):
        assert registry.node("sampler", name) == compose("sample", ["run=x", f"sampler={name}"]).sampler
        assert isinstance(samplers.build(name), Sampler)

    @pytest.mark.parametrize("name", degradations.available())
    def test_degradations(self, name):
        assert registry.node("degradation", name) == compose("train", [f"degradation={name}"]).degradation
        assert isinstance(degradations.build(name), Degradation)

    @pytest.mark.parametrize("name", models.available())
    def test_models(self, name):
        mine = registry.node("model", name, in_channels=None)  # train.py takes those of the space
        assert mine == compose("train", [f"model={name}"]).model

    def test_nested_choices_and_values(self):
        mine = registry.node("degradation", "gaussian", schedule="linear", **{"schedule.end": 0.01})
        assert mine == compose("train", ["degradation/schedule=linear", "degradation.schedule.end=0.01"]).degradation

    def test_a_list_of_guidance_is_its_parts_in_order(self):
        cfg = compose("sample", ["run=x", "guidance=[cfg,pag,cads,clip]", "guidance.pag.scale=2"])
        assert list(cfg.guidance) == ["cfg", "pag", "cads", "clip"]
        assert cfg.guidance.pag == registry.node("guidance", "pag", **{"pag.scale": 2}).pag
        assert [type(part).__name__ for part in Recipe.build(cfg).parts] == ["CFG", "PAG", "CADS", "Clip"]

    def test_groups_inside_a_keyed_part(self):
        mine = registry.node("guidance", "cfg", **{"cfg.schedule": "interval", "cfg.schedule.low": 0.1})
        overrides = ["guidance/schedule@guidance.cfg.schedule=interval", "guidance.cfg.schedule.low=0.1"]
        assert mine == compose("sample", ["run=x", "guidance=cfg", *overrides]).guidance

    def test_the_lists_are_the_files(self):
        for group in {group for group, _ in OPTIONS}:
            assert registry.available(group) == sorted(name for g, name in OPTIONS if g == group)


class TestMistakes:
    @pytest.mark.parametrize(("group", "name"), [o for o in OPTIONS if len(o[1]) > 2], ids=lambda v: v)
    def test_a_mistyped_name_is_answered_with_the_nearest(self, group, name):
        with pytest.raises(UserError) as error:
            registry.build(group, name[:-1] + "_")
        assert error.value.fix.startswith(f"{group}=")
        assert name in str(error.value)

    @pytest.mark.parametrize("build", [lambda: samplers.build("ddim", num_stepz=3),
                                       lambda: degradations.build("blur", **{"kernels.stdd": 1.0}),
                                       lambda: models.build("tiny", bass=3),
                                       lambda: samplers.guidance.build("cfg", **{"cfg.scal": 3})])
    def test_a_mistyped_key_is_answered_with_the_keys(self, build):
        with pytest.raises(UserError, match="one of"):
            build()

    @pytest.mark.parametrize("override", ["sampler=ddmi", "nonsense=1", "+sampler=ddim=x", "sampler.num_stepz=3"])
    def test_overrides_that_cannot_be_composed(self, override):
        with pytest.raises(UserError, match="cannot be composed"):
            compose("sample", ["run=x", override])


def test_the_top_level_configs_compose():
    sample, evaluate = compose("sample", ["run=x"]), compose("evaluate", ["run=x"])
    assert {"sampler", "guidance", "prior", "start", "seed", "weights", "step"} <= set(sample) & set(evaluate)
    assert sample.sampler == evaluate.sampler
    with pytest.raises(UserError, match="run"):
        require_values(compose("sample", []))


def test_someone_elses_package_joins_by_an_entry_point(tmp_path, monkeypatch):
    """Its YAML is listed, built from Python, composed for the commands, and its classes are trusted."""
    package = tmp_path / "guest_samplers"
    (package / "configs" / "sampler").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from samplers.cold import Algorithm1\n\nclass Guest(Algorithm1):\n    pass\n")
    (package / "configs" / "__init__.py").write_text("")
    (package / "configs" / "sampler" / "guest.yaml").write_text(
        "# a guest\n_target_: guest_samplers.Guest\nnum_steps: 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "plugins", lambda: {"guest": "guest_samplers.configs"})
    assert "guest" in samplers.available()
    assert samplers.build("guest", num_steps=3).num_steps == 3
    model = variant("degradation=blur", "objective=cold", "prior=degraded")
    model.packages = registry.trusted()
    assert type(model.recipe(["sampler=guest"]).sampler).__name__ == "Guest"
    assert "guest" in list_fitting(model.degradation)


def test_imports_go_downwards_only():
    tool = Path(sys.executable).parent / "lint-imports"
    result = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout
    assert "2 kept, 0 broken" in result.stdout
