"""Runs that are made of other runs: begun with their weights, with a part that is trained, in a space that is another
run. A guest package brings a ControlNet and a first stage; the commands do the rest."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import NANO, done, installed, train, write_package
from omegaconf import OmegaConf

from configs import UserError, compose
from configs.values import to_plain
from diffusion import load
from diffusion.begin import begin, select_trainable
from diffusion.model import Model
from diffusion.runs import checkpoint
from diffusion.runs.origins import find_origin, find_origins

pytestmark = pytest.mark.commands

FILES = {
    "guest_runs/__init__.py": "",
    "guest_runs/configs/__init__.py": "",
    "guest_runs/control.py": '''
import copy
from dataclasses import replace

import torch
from torch import nn

from models.conditioning import ImageSignal, Source
from models.context import Context


class Hint(ImageSignal):
    """An image for the control branch alone."""

    def forward(self, value):
        return Context(extra={"hint": value})

    def null(self, n):
        return Context(extra={"hint": self.get_buffer("missing").expand(n, -1, -1, -1)})


class Edges(Source):
    """Where the image changes from left to right."""

    def forward(self, images, condition, rng):
        return torch.diff(images, dim=-1, prepend=images[..., :1])


class ControlNet(nn.Module):
    """A trainable copy of encoder and middle sees a hint and adds to the features through zero layers."""

    def __init__(self, base: nn.Module, in_channels: int, emb_dim: int):
        super().__init__()
        self.base, self.emb_dim = base, emb_dim
        self.encoder, self.middle = copy.deepcopy(base.encoder), copy.deepcopy(base.middle)
        self.hint = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.zeros = nn.ModuleList(nn.Conv2d(c, c, 1) for c in (*base.skip_channels, base.mid_channels))
        for layer in self.zeros:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x, t, ctx=None, attn=None):
        features = self.base.middle(self.base.encode(x, t, ctx, attn), attn)
        seen = self.middle(self.encoder(x + self.hint(ctx.extra["hint"]), t, ctx))
        *skips, h = (zero(f) for zero, f in zip(self.zeros, (*seen.skips, seen.h)))
        added = tuple(a + b for a, b in zip(features.skips, skips))
        return self.base.decode(replace(features, h=features.h + h, skips=added), attn)
''',
    "guest_runs/latent.py": '''
import torch
from torch import nn

from diffusion.spaces.base import Space


class TinyAutoencoder(nn.Module):
    """Halves the side; as a network it answers with what it makes of its input."""

    def __init__(self, in_channels: int = 1, emb_dim: int = 32):
        super().__init__()
        self.emb_dim = emb_dim
        self.down, self.up = nn.Conv2d(in_channels, 4, 2, stride=2), nn.ConvTranspose2d(4, in_channels, 2, stride=2)

    def encode(self, x):
        return self.down(x)

    def decode(self, z):
        return self.up(z)

    def forward(self, x, t, ctx=None, attn=None):
        return self.decode(self.encode(x))


class Latent(Space):
    """What another run encodes, scaled to a standard deviation of one."""

    count = 256

    def __init__(self, first_stage: nn.Module):
        super().__init__()
        self.first_stage = first_stage
        self.register_buffer("scale", torch.ones(()))

    def fit(self, batches):
        self.scale.copy_(1 / torch.cat([self.first_stage.encode(x) for x in batches]).std())

    def encode(self, image):
        return self.first_stage.encode(image) * self.scale

    def decode(self, x):
        return self.first_stage.decode(x / self.scale)

    def shape(self, image):
        return 4, image[1] // 2, image[2] // 2
''',
    "guest_runs/guided.py": '''
from torch import nn

from degradations.base import Degradation
from degradations.shapes import flatten_rows
from diffusion.objectives.base import Losses
from diffusion.objectives.restoration import Objective
from models.conditioning import Source
from samplers.guidance.base import Guided
from samplers.guidance.cfg import CFG
from samplers.protocol import Restorer


class Scales(Source):
    """Guidance scales in [1, high], drawn."""

    def __init__(self, high: float = 4.0):
        super().__init__()
        self.high = high

    def forward(self, images, condition, rng):
        return 1 + (self.high - 1) * rng.uniform("scale", (len(images),))


class Student(Objective):
    """What a guided teacher says, in one evaluation (Meng et al. 2022, arXiv 2210.03142, stage one)."""

    def __init__(self, teacher: Restorer, **settings):
        super().__init__(**settings)
        self.teacher = teacher

    def __call__(self, evaluator, encoder, degradation, x0, condition, rng):
        t = self.times(len(x0), degradation, rng)
        state = degradation.draw(x0.shape, rng)
        x_t, ctx = degradation.forward(x0, t, state), encoder.with_null(condition, len(x0))
        told = Guided(self.teacher, degradation, [CFG(condition["w"])])(x_t, t, ctx, state=state, step=None)
        made = evaluator(x_t, t, ctx, state=state, step=None)
        return Losses(flatten_rows((made.x0 - told.x0.detach()).square()).mean(1), t)
''',
    "guest_runs/configs/objective/guided.yaml": '''# a student of a guided teacher
defaults:
  - ddpm
  - _self_
_target_: guest_runs.guided.Student
teacher:
  _target_: diffusion.sampling.guides.RunRestorer
  run: ${begin.base.run}
  step: null
''',
    "guest_runs/configs/condition/guided.yaml": '''# the teacher's label, and the scale of its guidance
_target_: models.conditioning.ConditionEncoder
signals:
  label: ${of:${begin.base.run},condition.signals.label}
  w:
    _target_: models.conditioning.ScalarSignal
    dim: ${model.emb_dim}
sources:
  w:
    _target_: guest_runs.guided.Scales
dim: ${model.emb_dim}
''',
    "guest_runs/configs/model/control.yaml": '''# a ControlNet on the network of another run
_target_: guest_runs.control.ControlNet
base: ${of:${begin.base.run},model}
in_channels: 1
emb_dim: ${of:${begin.base.run},model.emb_dim}
''',
    "guest_runs/configs/condition/hinted.yaml": '''# the other run's label, and a hint
_target_: models.conditioning.ConditionEncoder
signals:
  label: ${of:${begin.base.run},condition.signals.label}
  hint:
    _target_: guest_runs.control.Hint
    channels: ${data.channels}
    side: ${data.size}
    dim: ${model.emb_dim}
sources:
  hint:
    _target_: guest_runs.control.Edges
dim: ${model.emb_dim}
''',
    "guest_runs/configs/begin/control.yaml": '''# the base, and the copy of its encoder and middle
base:
  run: ???
  weights: ema
  step: null
  map:
    net: net.base
    net.encoder: net.encoder
    net.middle: net.middle
    encoder: encoder
''',
    "guest_runs/configs/experiment/control.yaml": '''# @package _global_
# a ControlNet: python train.py experiment=control begin.base.run=RUN
defaults:
  - ddpm_digits
  - override /model: control
  - override /condition: hinted
  - override /begin: control
trainable: [net.encoder.*, net.middle.*, net.hint.*, net.zeros.*]
''',
    "guest_runs/configs/model/tiny_autoencoder.yaml": '''# a first stage
_target_: guest_runs.latent.TinyAutoencoder
in_channels: 1
emb_dim: 32
''',
    "guest_runs/configs/space/tiny_latent.yaml": '''# what another run encodes
_target_: guest_runs.latent.Latent
first_stage: ${of:${begin.first_stage.run},model}
''',
    "guest_runs/configs/begin/first_stage.yaml": '''# the first stage
first_stage:
  run: ???
  map:
    net: space.first_stage
''',
    "guest_runs-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: guest_runs\nVersion: 1\n",
    "guest_runs-1.dist-info/entry_points.txt": "[thaw.configs]\nruns = guest_runs.configs\n",
}
SMALL = [*NANO, "callbacks.pictures.count=0", "optimizer.lr=0.01", "optimizer.decay=none",
         "ema=0.5"]
WIDTH = ["model.base=8", "model.emb_dim=32"]
FEW = ["device=cpu", "sampler.num_steps=2", "samples=0-1"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return write_package(tmp_path_factory.mktemp("site"), FILES)


@pytest.fixture(autouse=True)
def guest(site):
    with installed(site, "guest_runs"):
        yield


def control(root: Path, base: Path, *more: str) -> list[str]:
    return ["train.py", "experiment=control", *[s for s in SMALL if s != "model=nano"], f"run.root={root}",
            f"begin.base.run='{base}'", "max_steps=6", "run.name=control", *more]


def refuse(root: Path, base: Path, *more: str) -> str:
    """What the command would say, in this process."""
    with pytest.raises(UserError) as refused:
        train(root, *control(root, base, *more)[1:], experiment="control")
    return str(refused.value)


@pytest.fixture(scope="module")
def base(site, tmp_path_factory):
    """A run with labels, at two steps."""
    root = tmp_path_factory.mktemp("base")
    with installed(site, "guest_runs"):
        done("train.py", "experiment=ddpm_digits", *SMALL, *WIDTH, "max_steps=8", "callbacks.checkpoint.every=4",
             "callbacks.checkpoint.keep=9", f"run.root={root}", "run.name=base")
    return root / "ddpm_digits" / "base"


@pytest.fixture(scope="module")
def controlled(site, base, tmp_path_factory):
    root = tmp_path_factory.mktemp("controlled")
    with installed(site, "guest_runs"):
        done(*control(root, base))
    return root / "control" / "control"


def test_a_control_net_begins_as_its_base(base, controlled):
    """Bit for bit, guidance included; then its own part alone is trained."""
    first, theirs = checkpoint.read_latest(controlled / "checkpoints"), load(base, device="cpu")
    assert first is not None
    fresh = Model(first["config"])
    begin(fresh, first["config"]["begin"], first["config"]["origin"])
    recipe = theirs.recipe(["sampler.num_steps=3", "guidance.cfg.scale=3"])
    fresh.weights.eval()
    pictures = [model.sample(range(3), recipe=recipe, **more) for model, more in
                ((theirs, {}), (fresh, {"hint": torch.rand(3, 1, 16, 16)}))]
    assert torch.equal(*pictures)

    raw, ema = (checkpoint.merge_state(first, weights) for weights in ("raw", "ema"))
    for name, value in theirs.weights.state_dict().items():
        name = name.replace("net.", "net.base.", 1) if name.startswith("net.") else name
        assert torch.equal(raw[name], value), name
        assert torch.equal(ema[name], value), name
    assert not torch.equal(raw["net.zeros.0.weight"], torch.zeros_like(raw["net.zeros.0.weight"]))
    assert first["frozen"].keys() >= {"net.base.encoder.enter.weight"} & raw.keys()
    assert not any(name.startswith("net.base.") for name in first["raw"])
    trained = [name for name in raw if name.startswith(("net.encoder.", "net.middle.", "net.hint.", "net.zeros."))]
    assert len(first["optimizers"]["net"]["state"]) == len(trained) == len(first["raw"]) - sum(
        name not in trained for name in first["raw"])


def test_the_hint_is_asked_for_and_stays_in_every_branch(controlled, tmp_path):
    done("sample.py", f"run={controlled}", *FEW, f"out={tmp_path / 'photos'}")
    done("sample.py", f"run={controlled}", f"hint.of={tmp_path / 'photos'}", "label=3", *FEW, f"out={tmp_path / 'b'}")
    model = load(controlled, device="cpu", allow=["guest_runs"])
    hint = torch.rand(1, 1, 16, 16)
    ctx = model.context({"label": torch.tensor([3]), "hint": hint}, 1)
    assert ctx.null is not None
    assert torch.equal(ctx.null.extra["hint"], hint)
    with pytest.raises(UserError, match="no hint"):
        model.sample([0])


def test_killed_and_resumed_is_uninterrupted(base, controlled, tmp_path):
    done(*control(tmp_path, base, "max_steps=3"))
    assert "resuming at step 3" in done(*control(tmp_path, base))
    ours, theirs = (checkpoint.read_latest(folder / "checkpoints") for folder in
                    (tmp_path / "control" / "control", controlled))
    assert ours is not None
    assert theirs is not None
    for weights in ("raw", "ema", "frozen"):
        assert ours[weights].keys() == theirs[weights].keys()
        assert all(torch.equal(value, theirs[weights][name]) for name, value in ours[weights].items())


def test_what_a_run_begins_with_makes_it_what_it_is(base, controlled, tmp_path):
    root = controlled.parents[1]
    assert "complete" in done(*control(root, base))
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    assert "complete" in done(*control(root, moved))
    assert "complete" in done(*control(root, moved, "begin.base.step=8"))
    for more, words in ((["begin.base.step=4"], "begin.base.step"), (["trainable=[net.zeros.*]"], "trainable"),
                        (["begin.base.weights=raw"], "begin.base.weights")):
        said = done(*control(root, base, *more), code=2)
        assert "holds another run" in said
        assert words in said
    done("train.py", "experiment=ddpm_digits", *SMALL, *WIDTH, "max_steps=9", f"run.root={tmp_path / 'more'}",
         "run.name=base", "seed=0")
    assert "begin.base.checksum" in done(*control(root, tmp_path / "more" / "ddpm_digits" / "base"), code=2)


def test_it_goes_on_without_the_other_run(base, site, tmp_path):
    gone = tmp_path / "gone"
    shutil.copytree(base, gone)
    done(*control(tmp_path, gone, "max_steps=2"))
    shutil.rmtree(gone)
    assert "resuming at step 2" in done(*control(tmp_path, gone, "max_steps=4"))
    said = refuse(tmp_path / "elsewhere", gone)
    assert "no run in" in said
    assert "has moved" in said


@pytest.mark.parametrize(("more", "words"), [
    (["trainable=[net.encodr.*]"], "net.encodr"), (["trainable=net.zeros.*"], "a list of patterns"),
    (["trainable=[]"], "nothing would be trained"), (["begin.base.step=5"], "one of 4, 8"),
    (["begin.base.weights=best"], "ema or raw"), (["begin.base.map={net: net}"], "tensors there"),
    (["+begin.base.map.nett=net.base"], "0 tensors there"), (["+begin.base.from=1"], "run and map"),
    (["begin.base.run=nowhere"], "no run in nowhere")])
def test_what_cannot_be_begun(base, tmp_path, more, words):
    assert words in refuse(tmp_path, base, *more)
    assert not list(tmp_path.glob("**/*.pt"))


@pytest.mark.parametrize(("key", "value", "words"), [
    ("model._target_", "os.system", "whom you do not trust"),
    ("model._target_", "torch.hub.load", "whom you do not trust"),
    ("model._target_", "diffusion.commands.sample", "a class"), ("model.base", "${oc.env:HOME}", "interpolation"),
    ("seed", "${of:x,y}", "interpolation"), ("condition.signals.label._target_", "guest_evil.Evil", "allow=")])
def test_a_stranger_has_no_say(base, tmp_path, monkeypatch, key, value, words):
    """Nothing of a foreign config is resolved, and what it names is of the trusted packages."""
    monkeypatch.setenv("HOME", "/secret/place")
    stranger = tmp_path / "stranger"
    shutil.copytree(base, stranger)
    config = OmegaConf.load(stranger / "config.yaml")
    OmegaConf.update(config, key, value, force_add=True)
    (stranger / "config.yaml").write_text(OmegaConf.to_yaml(config))
    said = done(*control(tmp_path, stranger), code=2) if value == "os.system" else refuse(tmp_path, stranger)
    assert words in said
    assert "/secret/place" not in said


def test_one_table_is_trained_and_nothing_else(base, tmp_path):
    """As textual inversion does: a parameter of its own, all others as they were."""
    done("train.py", "experiment=ddpm_digits", *SMALL, *WIDTH, "begin=base", f"begin.base.run={base}", "max_steps=3",
         "trainable=[encoder.signals.label.table.*]", f"run.root={tmp_path}", "run.name=table")
    content = checkpoint.read_latest(tmp_path / "ddpm_digits" / "table" / "checkpoints")
    assert content is not None
    state, theirs = checkpoint.merge_state(content, "raw"), load(base, device="cpu").weights.state_dict()
    assert state.keys() == theirs.keys()
    assert [name for name in state if not torch.equal(state[name], theirs[name])] == [
        "encoder.signals.label.table.weight"]


def test_a_latent_run_needs_its_first_stage_no_more(site, tmp_path):
    stage = ["train.py", "experiment=ddpm_digits", *[s for s in SMALL if s != "model=nano"], "model=tiny_autoencoder",
             "condition=none", f"run.root={tmp_path}"]
    done(*stage, "max_steps=60", "run.name=stage", "experiment=ddpm_digits", "objective/parameterization=x0")
    first = tmp_path / "ddpm_digits" / "stage"
    latent = ["train.py", "experiment=ddpm_digits", *SMALL, *WIDTH, "space=tiny_latent", "begin=first_stage",
              f"begin.first_stage.run={first}", f"run.root={tmp_path}", "run.name=latent"]
    assert "space: fitted to 256 images" in done(*latent, "max_steps=3")
    run = tmp_path / "ddpm_digits" / "latent"
    before = checkpoint.merge_state(checkpoint.read_latest(first / "checkpoints") or {}, "ema")
    shutil.move(first, tmp_path / "moved")
    assert "resuming at step 3" in done(*latent, "max_steps=6")
    done("sample.py", f"run={run}", *FEW, f"out={tmp_path / 'out'}")
    done("evaluate.py", f"run={run}", "count=4", "metrics=quick", "device=cpu", "sampler.num_steps=2")
    content = checkpoint.read_latest(run / "checkpoints")
    assert content is not None
    assert content["config"]["model"]["in_channels"] == 4
    for name in before:
        if name.startswith("net."):
            assert torch.equal(content["frozen"][name.replace("net.", "space.first_stage.", 1)], before[name])
    model = load(run, device="cpu", allow=["guest_runs"])
    from diffusion.data import Digits
    from diffusion.data.pixels import to_float

    x = to_float(Digits().split("train").images)
    assert abs(model.space.encode(x).std().item() - 1) < 0.05
    z = torch.randn(2, *model.shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.space.decode(z).square().sum(), z)
    assert gradient.isfinite().all()
    assert model.to("meta").space.get_buffer("scale").device.type == "meta"


@pytest.fixture(scope="module")
def student(site, base, tmp_path_factory):
    """A student of ``base``, which has moved away since."""
    root, teacher = tmp_path_factory.mktemp("student"), tmp_path_factory.mktemp("teacher") / "base"
    shutil.copytree(base, teacher)
    with installed(site, "guest_runs"):
        done(*guided(root, teacher))
    return root, teacher, root / "ddpm_digits" / "student"


def guided(root: Path, teacher: Path, *more: str) -> list[str]:
    return ["train.py", "experiment=ddpm_digits", *SMALL, *WIDTH, "objective=guided", "condition=guided", "begin=base",
            f"begin.base.run={teacher}", f"run.root={root}", "run.name=student", "max_steps=4", *more]


def test_a_student_begins_as_its_teacher(base, student):
    """Bit for bit, whatever the new signal says; then it learns the scale."""
    content = checkpoint.read_latest(student[2] / "checkpoints")
    assert content is not None
    fresh, theirs = Model(content["config"]), load(base, device="cpu")
    begin(fresh, content["config"]["begin"], content["config"]["origin"])
    fresh.weights.eval()
    recipe = theirs.recipe(["sampler.num_steps=3", "guidance=none"])
    assert torch.equal(fresh.sample(range(3), recipe=recipe, label=3, w=2.0),
                       theirs.sample(range(3), recipe=recipe, label=3))
    trained = load(student[2], device="cpu", allow=["guest_runs"])
    one, other = (trained.sample(range(3), recipe=recipe, label=3, w=w) for w in (1.0, 4.0))
    assert not torch.equal(one, other)


def test_the_scale_is_asked_for_and_the_teacher_is_not_needed(student, tmp_path):
    root, teacher, run = student
    content = checkpoint.read_latest(run / "checkpoints")
    assert content is not None
    assert content["config"]["objective"]["teacher"]["step"] == 8
    assert not any("teacher" in name for name in checkpoint.merge_state(content, "ema"))
    away = teacher.with_name("away")
    teacher.rename(away)
    try:
        done("sample.py", f"run={run}", "label=3", "w=2", "guidance=none", *FEW, f"out={tmp_path / 'out'}")
        samples = json.loads((tmp_path / "out" / "manifest.json").read_text())["samples"]
        assert [one["condition"] for one in samples] == [{"label": 3, "w": 2.0}] * 2
        assert "complete" in done(*guided(root, teacher))
    finally:
        away.rename(teacher)


def test_a_teacher_is_part_of_what_a_run_is(base, student):
    """By its content: one that has moved is the same, another step is another."""
    root, teacher, _ = student
    assert "complete" in done(*guided(root, base))
    said = done(*guided(root, teacher, "objective.teacher.step=4"), code=2)
    assert "holds another run" in said
    assert "objective.teacher.run" in said
    said = done(*guided(root, teacher, "objective.teacher.run=nowhere"), code=2)
    assert "objective.teacher.run=WHERE" in said


def test_origins_are_noted(base, controlled):
    config = to_plain(OmegaConf.load(controlled / "config.yaml"))
    origin = config["origin"]["base"]
    assert (origin["run"], origin["step"]) == (str(base), 8)
    assert origin["checksum"] in checkpoint.list_checkpoints(base / "checkpoints")[8].name
    assert find_origin(str(base), 4, "nowhere")["step"] == 4
    assert "${" not in json.dumps(config)
    with pytest.raises(UserError, match="run and map"):
        find_origins({"begin": {"base": 3}, "run": {"root": "runs"}})


def test_the_default_trains_all_but_spaces_and_sources(controlled):
    content = checkpoint.read_latest(controlled / "checkpoints")
    assert content is not None
    model = Model({**content["config"], "trainable": None})
    select_trainable(model.weights, None)
    assert {name for name, p in model.weights.named_parameters() if not p.requires_grad} == {
        name for name, _ in model.weights.named_parameters() if name.startswith(("space.", "encoder.sources."))}


def test_composing_says_what_is_missing():
    cfg = compose("train", ["experiment=ddpm_digits", "begin=base"])
    from configs.values import require_values

    with pytest.raises(UserError, match=r"begin\.base\.run"):
        require_values(cfg)
