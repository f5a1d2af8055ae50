"""Guidance of two signals, through the commands: what a run may say, what is refused, what is drawn."""

import json
from pathlib import Path

import pytest
import torch
from helpers import DIGITS, done, installed, write_package

from configs import UserError
from configs.overrides import drop_condition_guidance, merge_overrides
from diffusion import load
from diffusion.model import Model
from diffusion.sampling.manifest import describe_part, order_tables
from samplers.guidance.cads import CADS
from samplers.guidance.cfg import CFG
from samplers.guidance.multi_cfg import MultiCFG

pytestmark = pytest.mark.commands

FILES = {
    "guest_marks/__init__.py": '''
import torch

from diffusion.data.base import ImageSet
from diffusion.data.sets.digits import Digits


class Marked(Digits):
    """Digits with their parity as a vector beside the class."""

    @property
    def described(self):
        return {**super().described, "mark": {"in_dim": 2}}

    def load(self, name):
        images = super().load(name)
        mark = torch.nn.functional.one_hot(images.labels % 2, 2).float()
        return ImageSet(images.pixels, {**images.signals, "mark": mark})
''',
    "guest_marks/configs/__init__.py": "",
    "guest_marks/configs/data/marked.yaml": """# digits with their parity
_target_: guest_marks.Marked
size: 16
channels: 1
flip: false
""",
    "guest_marks/configs/condition/marked.yaml": """# the class and the parity
_target_: models.conditioning.ConditionEncoder
signals:
  label:
    _target_: models.conditioning.LabelSignal
    num_classes: null
    dim: ${model.emb_dim}
  mark:
    _target_: models.conditioning.VectorSignal
    in_dim: null
    dim: ${model.emb_dim}
dim: ${model.emb_dim}
""",
    "guest_marks-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: guest_marks\nVersion: 1\n",
    "guest_marks-1.dist-info/entry_points.txt": "[thaw.configs]\nmarks = guest_marks.configs\n",
}
TRAIN = [*DIGITS, "data=marked", "condition=marked", "max_steps=2", "optimizer.lr=0.05", "callbacks.pictures.count=0"]
TABLE = 'sampling=["guidance=multi_cfg","guidance.multi_cfg.scales={mark: 1.5, label: 3.0}"]'


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return write_package(tmp_path_factory.mktemp("site"), FILES)


@pytest.fixture(autouse=True)
def guest(site):
    with installed(site, "guest_marks"):
        yield


@pytest.fixture(scope="module")
def run(site, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    with installed(site, "guest_marks"):
        done("train.py", *TRAIN, "run.name=both", f"run.root={root}", "objective.drop={label: 0.1, all: 0.1}", TABLE)
    return root / "ddpm_digits" / "both"


@pytest.fixture
def model(run) -> Model:
    return load(run, device="cpu")


def test_a_run_says_its_chain(model):
    (term,) = model.recipe().parts
    assert isinstance(term, MultiCFG)
    assert {group: weight.scales for group, weight in term.weights.items()} == {("mark",): (1.5,), ("label",): (3.0,)}


def test_a_table_is_replaced_and_not_mixed(model):
    (term,) = model.recipe(["guidance.multi_cfg.scales={label: 3.0, mark: 1.0}"]).parts
    assert isinstance(term, MultiCFG)
    assert list(term.weights) == [("label",), ("mark",)], "in the order that was asked for"
    own = ["guidance=cfg", "guidance.cfg.scale=2", "start=1"]
    assert merge_overrides(own, ["guidance.cfg.scale=3"]) == ["guidance=cfg", "start=1", "guidance.cfg.scale=3"]


def test_pictures(run, model, tmp_path):
    few = ["samples=0-1", "mark=[1,0]", "device=cpu", "sampler.num_steps=2"]
    for name, own in (("own", []), ("cfg", ["guidance=cfg", "guidance.cfg.scale=3"]),
                      ("equal", ["guidance.multi_cfg.scales={mark: 3, label: 3}"]),
                      ("cads", ["guidance=[multi_cfg,cads]", "guidance.cads.signals=[mark]",
                                "guidance.multi_cfg.scales={mark: 3, label: 3}"])):
        done("sample.py", f"run={run}", *few, *own, f"out={tmp_path / name}")
    own, cfg, equal, cads = ((tmp_path / name / "000001.png").read_bytes() for name in ("own", "cfg", "equal", "cads"))
    assert equal == cfg
    assert own != cfg
    assert cads != cfg


def test_the_order_is_a_setting(run, tmp_path):
    """Another order is another set of samples, and another evaluation."""
    few = [f"run={run}", "samples=0", "label=3", "mark=[1,0]", "device=cpu", "sampler.num_steps=1"]
    tables = [f"guidance.multi_cfg.scales={{{table}}}" for table in ("mark: 2, label: 2.0", "label: 2.0, mark: 2")]
    for table in tables:
        assert "samples to draw: 1 of 1" in done("sample.py", *few, table)
    assert "0 of 1" in done("sample.py", *few, tables[0])
    done("sample.py", *few, tables[0], f"out={tmp_path / 'out'}")
    assert "holds other samples" in done("sample.py", *few, tables[1], f"out={tmp_path / 'out'}", code=2)
    words = json.loads((tmp_path / "out" / "manifest.json").read_text())["guidance"]
    assert words == "MultiCFG (scales (mark 2, label 2.0))"
    assert describe_part({"a": {"_target_": "x.A", "b": None}, "c": {"_target_": "x.C"}}) == "A, C"
    node = {"cfg": {"_target_": "x.A", "scales": {"text": 2, "hint": 3}, "schedule": None}}
    assert order_tables(node) == {"cfg": {**node["cfg"], "scales": [["text", 2], ["hint", 3]]}}
    assert order_tables({}) == {}


@pytest.mark.parametrize(("asked", "words"), [
    (["guidance.multi_cfg.scales={label: 3, mark: 2}"], "event mark"),
    (["guidance.multi_cfg.scales={mark: 3, lable: 2}"], "lable"),
    (["guidance.multi_cfg.scales={mark: 3}"], "without label"),
    (["guidance=[cfg,cads]", "guidance.cads.signals=[text]"], "signals with text"),
    (["guidance=[cfg,cads]", "guidance.cads.signals=mark"], "signals=mark")])
def test_what_is_refused(run, tmp_path, asked, words):
    out = tmp_path / "out"
    assert words in done("sample.py", f"run={run}", *asked, "samples=0", "device=cpu", f"out={out}", code=2)
    assert not out.exists()


@pytest.mark.parametrize(("drop", "sampling", "words"), [
    ("0.1", TABLE, "event label"), ("0", 'sampling=["guidance=cfg"]', "event all"),
    ("{label: 0.1, mark: 0.1}", 'sampling=["guidance=cfg"]', "event all")])
def test_a_run_whose_training_would_not_see_its_nulls(tmp_path, drop, sampling, words):
    said = done("train.py", *TRAIN, "run.name=x", f"run.root={tmp_path}", f"objective.drop={drop}", sampling, code=2)
    assert words in said
    assert "objective.drop=" in said


def test_what_another_run_has_trained_may_have_seen_more(model):
    part = MultiCFG({"label": 2.0, "mark": 3.0})
    with pytest.raises(UserError, match="event mark"):
        model.guided([part])
    for begin in ({"base": {"map": {"net": "net"}}}, None):
        model.config["begin"] = begin
        model.guided([part])
    model.config["begin"] = {"first_stage": {"map": {"net": "space.net"}}}
    with pytest.raises(UserError, match="event mark"):
        model.guided([part])


def test_one_label_is_disturbed_as_the_whole_embedding(hot):
    """Runs of one class are drawn as they always were: the noise is that of the first embedding."""
    model = load(hot.folder, device="cpu")
    ctx = model.context(model.condition(range(3), {"label": 3}), 3)
    assert torch.equal(ctx.parts["label"].emb, ctx.emb)
    recipe = model.recipe(["guidance=[cfg,cads]", "sampler.num_steps=3"])
    assert isinstance(recipe.parts[1], CADS)
    whole = model.sample(range(2), recipe=recipe, label=3)
    recipe.parts[1] = CADS(signals=["label"])
    assert torch.equal(model.sample(range(2), recipe=recipe, label=3), whole)
    recipe.parts[1:] = []
    assert not torch.equal(model.sample(range(2), recipe=recipe, label=3), whole)
    recipe.parts[0] = MultiCFG({"label": 2.0})
    guided = model.sample(range(2), recipe=recipe, label=3)
    recipe.parts[0] = CFG(2.0)
    assert torch.equal(model.sample(range(2), recipe=recipe, label=3), guided)


def test_an_unconditional_run_keeps_no_chain():
    own = ["guidance=[multi_cfg,pag]", "guidance.multi_cfg.scales={text: 2}", "guidance.pag.scale=2"]
    assert drop_condition_guidance(own) == ["guidance=[pag]", "guidance.pag.scale=2"]
