"""How attributes are asked for: by names, and by ``NAME=1,NAME=0``, from Python and through ``sample.py``."""

import json

import pytest
import torch
from faces import draw_values, save_photos, write_list
from helpers import done, small, train

from configs import UserError
from configs.overrides import ask_signals
from diffusion import load
from diffusion.data.files.attributes import ATTRIBUTES, LIST
from diffusion.runs.run import Run
from models.attributes import AttributeSignal

pytestmark = pytest.mark.commands

FEW = ["device=cpu", "sampler.num_steps=2"]
SIGNAL = AttributeSignal(["Smiling", "Young", "Male", "a=b, c"], 8)
SIGNAL.name = "attributes"


@pytest.mark.parametrize(("value", "true"), [
    ("Smiling=1,Male=0", {"Smiling"}), ("Smiling=1, Male = true", {"Smiling", "Male"}), ("Smiling=FALSE", set()),
    ("Smiling,Young=0", {"Smiling"}), (["Smiling=0", "Male=1"], {"Male"}), ("Male=1,Male=true", {"Male"}),
    ("Smiling", {"Smiling"}), (["Smiling", "Young"], {"Smiling", "Young"}), ([], set()),
    ("a=b, c", {"a=b, c"}), (["a=b, c", "Male"], {"a=b, c", "Male"})])
def test_what_is_not_named_is_not_true(value, true):
    raw = SIGNAL.read([value])
    assert raw.tolist() == [[float(word in true) for word in SIGNAL.words]]
    assert torch.equal(SIGNAL.read(SIGNAL.write(raw)), raw)


@pytest.mark.parametrize(("value", "got", "fix"), [
    ("Yuong=1", "attributes=Yuong=1", 'attributes="Young=1"'), ("Smilng=0,Male=1", "attributes=Smilng=0", "Smiling=0"),
    ("Yuong", "attributes=Yuong", "attributes=[Young]"), ("Smiling=2", "attributes=Smiling=2", "Smiling=1"),
    ("Smiling=yes", "attributes=Smiling=yes", "Smiling=1"), ("Smiling=-1", "Smiling=-1", "Smiling=1"),
    ("Smiling=", "attributes=Smiling=", "Smiling=1"), ("Smiling=1=0", "Smiling=1=0", "Smiling=1"),
    ("Male=1,Male=0", "Male is 1 and 0", '["Male=1","Male=0"]'), ("=1", "attributes==1", "Smiling=1"),
    ("Smiling=1,", "attributes=", "[Smiling]"), (3, "attributes=3", "[Smiling]"), (True, "=True", "[Smiling]"),
    ([["Male"]], "Male", "[Male]"), ({"Male": 1}, "Male", "attributes=[")])
def test_what_means_nothing_is_refused(value, got, fix):
    with pytest.raises(UserError) as error:
        SIGNAL.read(["Smiling", value])
    assert got in error.value.got
    assert fix in error.value.fix


def test_texts_in_a_list_are_for_each_sample():
    for single in ("Smiling=1,Male=0", ["Smiling", "Male"], [], ["a=b, c"]):
        assert SIGNAL.is_single(single)
    for each in (["Smiling=1,Male=0", "Male"], [["Smiling"], []], [["Smiling=1", "Male=0"], ["Male=1"]]):
        assert not SIGNAL.is_single(each)


@pytest.mark.parametrize(("typed", "passed"), [
    ("attributes=Smiling=1,Male=0", "++condition.attributes='Smiling=1,Male=0'"),
    ("attributes='Male=1'", "++condition.attributes='Male=1'"), ("attributes=Male", "++condition.attributes=Male"),
    ("attributes=[Smiling,Male]", "++condition.attributes=[Smiling,Male]"), ("out=a=b", "out=a=b"),
    ('attributes=["Male=0","Male=1"]', '++condition.attributes=["Male=0","Male=1"]')])
def test_hydra_lets_it_through(typed, passed):
    assert ask_signals([typed], ["attributes"]) == [passed]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A small ``attributes_celeba64`` after three steps."""
    desk = tmp_path_factory.mktemp("desk")
    values = draw_values(12)
    write_list(desk / LIST, values)
    return train(desk, *small("attributes_celeba64"), f"data.root={save_photos(desk / 'faces', values)}", "data.size=8",
                 "data.cache=false", "callbacks.pictures.count=0", experiment="attributes_celeba64")


def test_on_the_command_line_and_from_python(run, tmp_path):
    def ask(name, *settings):
        done("sample.py", f"run={run.folder}", *settings, *FEW, f"out={tmp_path / name}")
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        return [entry["condition"]["attributes"] for entry in manifest["samples"]]

    assert ask("named", "attributes=[Smiling,Young]", "samples=0-1") == [["Smiling", "Young"]] * 2
    assert ask("spelled", "attributes=Young=true,Smiling=1,Male=0", "samples=0-1") == [["Smiling", "Young"]] * 2
    for file in ("000000.png", "000001.png"):
        assert (tmp_path / "named" / file).read_bytes() == (tmp_path / "spelled" / file).read_bytes()
    assert ask("each", 'attributes=["Smiling=1,Male=0","Male=1"]') == [["Smiling"], ["Male"]]
    assert ask("twins", 'attributes=["Male=1","Male=0"]', "twins=2", "samples=0") == [["Male"], []]
    assert len(ask("all", "attributes=[Smiling,Young]")) == 16, "one sample for each name"
    model = load(run.folder, device="cpu")
    recipe = model.recipe(["sampler.num_steps=2"])
    assert model.readers()["attributes"].read(["Male=1"])[0, ATTRIBUTES.index("Male")] == 1
    assert torch.equal(model.sample([0], recipe=recipe, attributes="Smiling=1,Male=0"),
                       model.sample([0], recipe=recipe, attributes=["Smiling"]))


@pytest.mark.parametrize(("asked", "words"), [
    ("attributes=Smilin=1", 'attributes="Smiling=1"'), ("attributes=Smiling=maybe", "1, 0, true or false"),
    ('attributes=["Male=1","Male=0"]', "2 values of attributes for 3 samples"),
    ("attributes=Male=1,Male=0", "Male is 1 and 0")])
def test_refused_before_any_sample_is_drawn(run, tmp_path, asked, words):
    assert words in done("sample.py", f"run={run.folder}", asked, "samples=0-2", *FEW, f"out={tmp_path / 'x'}", code=2)
    assert not (tmp_path / "x").exists()
