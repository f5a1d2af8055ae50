"""Run folders that were edited, damaged, or written by somebody with bad intentions: words, and no hang."""

import copy
import json
import pickle
import shutil
import zipfile

import pytest
import torch
from helpers import DIGITS, LEARNED, done
from omegaconf import OmegaConf

from configs import UserError
from configs.overrides import check_recipe
from configs.values import MOST_NODES, require_plain
from diffusion import load
from diffusion.evaluation.folders import find_images
from diffusion.loading import rebuild
from diffusion.runs import checkpoint
from diffusion.runs.run import Run, read_yaml
from diffusion.sampling.manifest import Manifest, find_fault

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def content(hot):
    return checkpoint.read(list(checkpoint.list_checkpoints(hot.checkpoints).values())[-1])


@pytest.fixture
def own(hot, tmp_path):
    """A copy of a run, to be damaged."""
    folder = tmp_path / "runs" / "ddpm_digits" / "own"
    shutil.copytree(hot.folder, folder, ignore=shutil.ignore_patterns("samples", "evaluations"))
    return Run(folder)


def put(*path):
    """Changes plain data: the value at the end of the path, or removes the key before it if that is ``...``."""
    *keys, last, value = path

    def change(content):
        for key in keys:
            content = content[key]
        if value is ...:
            del content[last]
        else:
            content[last] = value

    return change


def nest(times, make):
    node = "x"
    for _ in range(times):
        node = make(node)
    return node


NAN = float("nan")
INSIDES = {
    **{f"no {key}": put(key, ...) for key in ("raw", "ema", "frozen", "step", "config", "data")},
    **{f"{key} is {value!r}": put(key, value) for key in ("raw", "ema", "frozen", "config", "data")
       for value in (None, 5, [], "x") if (key, value) != ("data", "x")},
    "step of another": put("step", 10**6), "step below 0": put("step", -1), "step True": put("step", True),
    "step a tensor": put("step", torch.tensor(3)), "config {}": put("config", {}),
    **{f"config without {key}": put("config", key, ...) for key in
       ("model", "condition", "data", "degradation", "objective", "space", "prior", "seed", "precision", "sampling")},
    **{f"config {key} is {value!r}": put("config", key, value) for key in
       ("model", "condition", "data", "degradation", "objective", "space", "prior")
       for value in (None, 5, "x", [], [{"_target_": "models.unet.UNet"}])},
    **{f"target {value!r}": put("config", "model", "_target_", value) for value in
       (5, None, [], {}, "", "x", "models", "models.unet", "models.unet.", ".UNet", "models..UNet", "os.system",
        "builtins.eval", "models.unet.UNet.forward", "models.unet.nn.Module", "diffusion.model.Model", "models.\0x")},
    **{f"base {value!r}": put("config", "model", "base", value) for value in
       (0, -4, 10**6, 10**9, 10**30, "16", [], NAN, 1.5, None, {})},
    **{f"emb_dim {value!r}": put("config", "model", "emb_dim", value) for value in
       (-4, 10**6, 10**9, "16", [], NAN, 1.5)},
    **{f"multipliers {value!r}": put("config", "model", "multipliers", value) for value in
       (0, [], [-1], [10**6, 1], ["x"], [0], [NAN], [1] * 5000, None, {})},
    **{f"size {value!r}": put("config", "data", "size", value) for value in
       (0, -1, "16", 16384, 10**12, None, [], 1.5)},
    **{f"channels {value!r}": put("config", "data", "channels", value) for value in (0, "3", 10**6, None)},
    **{f"classes {value!r}": put("config", "condition", "signals", "label", "num_classes", value) for value in
       (0, -1, 10**7, 10**12, "10", None, 1.5)},
    "weights of another shape": lambda c: c["ema"].update({k: torch.zeros(3) for k in c["ema"]}),
    "weights that are expanded": lambda c: c["ema"].update({k: torch.zeros(1).expand(10**6, 10**6) for k in c["ema"]}),
    "weights without one": lambda c: c["ema"].pop(next(iter(c["ema"]))),
    "weights and one more": lambda c: c["ema"].update(more=torch.zeros(3)),
    "weights of words": lambda c: c["ema"].update(dict.fromkeys(c["ema"], "x")),
    "weights by numbers": lambda c: c["ema"].update({5: torch.zeros(3)}),
    "laughs": put("config", "model", "laugh", nest(12, lambda node: [node] * 10)),
    "laughing mappings": put("config", "model", "laugh", nest(12, lambda node: {str(i): node for i in range(10)})),
    "depth": put("config", "model", "deep", nest(200, lambda node: [node])),
    "a long word": put("config", "model", "word", "x" * 10**6),
    "many": put("config", "model", "many", list(range(MOST_NODES + 1))),
    "a tensor in the config": put("config", "model", "base", torch.tensor(8)),
    "blocks without end": put("config", "model", "blocks", 10**6),
    "sampling 5": put("config", "sampling", 5), "sampling [5]": put("config", "sampling", [5]),
    "sampling [None]": put("config", "sampling", [None]), "sampling x": put("config", "sampling", "x"),
    "sampling {}": put("config", "sampling", {"sampler": "ddim"}),
    "endless steps": put("config", "sampling", ["sampler=ddim", "sampler.num_steps=1000000000"]),
}


@pytest.mark.parametrize("name", INSIDES)
def test_a_wrong_inside_of_a_checkpoint(own, content, name):
    """Its checksum is right: somebody has written it so."""
    inside = copy.deepcopy({key: value for key, value in content.items() if key not in ("format", "optimizers")})
    INSIDES[name](inside)
    step, torn = content["step"], {"format": content["format"], **inside}
    shutil.rmtree(own.checkpoints)
    own.checkpoints.mkdir()
    data = checkpoint.dump(torn)
    (own.checkpoints / f"step-{step:08d}.{checkpoint._checksum(data)}.pt").write_bytes(data)
    with pytest.raises(UserError) as error:
        load(own.folder).sample([0], recipe=None)
    assert "allow=" not in str(error.value)
    assert len(str(error.value)) < 5000


def test_a_checkpoint_that_grows_when_it_is_read(own):
    path = list(checkpoint.list_checkpoints(own.checkpoints).values())[-1]
    with zipfile.ZipFile(path) as there, zipfile.ZipFile(own.folder / "x.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in there.namelist():
            bomb.writestr(name, bytes(10**6) if "/data/" in name else there.read(name))
    with pytest.raises(UserError, match="its parts are longer than the file"):
        checkpoint.read(own.folder / "x.pt")


def test_a_fault_of_a_class_names_its_place(content):
    state = {**checkpoint.merge_state(content, "ema"), "extra": torch.zeros(3)}
    with pytest.raises(UserError, match=r"a run cannot be rebuilt: \w+: .* \(\w+\.py, line \d+\)"):
        rebuild(content["config"], state, "a run", ("models", "diffusion", "degradations"))


class TestConfigFile:
    @pytest.mark.parametrize("damage", [None, "", "[1, 2]", "5", "a: [", "\t", "x: \x00", "{" * 3000,
                                        "a: &a [1]\nb: *a", "a: !!python/object/apply:os.system [ls]", "x" * 2**21])
    def test_the_checkpoint_has_it_too(self, own, damage, tmp_path):
        path = own.folder / "config.yaml"
        before = read_yaml(path)
        path.unlink() if damage is None else path.write_text(damage)
        done("sample.py", f"run={own.folder}", "samples=0", "sampler.num_steps=1", f"out={tmp_path / 'out'}")
        assert read_yaml(path) == before
        assert (damage is None) or (own.folder / "config.yaml.damaged").read_text() == damage

    def test_without_a_checkpoint_it_is_refused(self, own):
        shutil.rmtree(own.checkpoints)
        (own.folder / "config.yaml").write_text("[1]")
        assert "holds no mapping" in done("sample.py", f"run={own.folder}", "samples=0", code=2)
        (own.folder / "config.yaml").unlink()
        assert "no run in" in done("sample.py", f"run={own.folder}", "samples=0", code=2)

    def test_training_goes_on_without_it(self, own, hot):
        config = hot.config
        (own.folder / "config.yaml").unlink()
        overrides = ["run.name=own", f"run.root={own.root}", f"max_steps={config['max_steps']}"]
        said = done("train.py", *DIGITS, *LEARNED, *overrides)
        assert "this run is complete" in said or "done" in said

    @pytest.mark.parametrize("sampling", [5, [5], [None], "x", {"a": 1}, [["sampler=ddim"]]])
    @pytest.mark.parametrize("command", [["sample.py", "samples=0"], ["evaluate.py", "count=2"]])
    def test_sampling_of_another_kind(self, own, sampling, command):
        config = read_yaml(own.folder / "config.yaml")
        OmegaConf.save(OmegaConf.create({**config, "sampling": sampling}), own.folder / "config.yaml")
        assert "sampling" in done(*command, f"run={own.folder}", code=2)

    @pytest.mark.parametrize("sampling", [None, ...])
    def test_no_sampling(self, own, sampling, tmp_path):
        config = read_yaml(own.folder / "config.yaml")
        config = {key: value for key, value in config.items() if key != "sampling"} | \
            ({} if sampling is ... else {"sampling": sampling})
        OmegaConf.save(OmegaConf.create(config), own.folder / "config.yaml")
        done("sample.py", f"run={own.folder}", "samples=0", "sampler=ddim", "sampler.num_steps=1", f"out={tmp_path}")

    def test_checkpoints_that_are_a_file(self, own):
        shutil.rmtree(own.checkpoints)
        own.checkpoints.write_text("")
        said = done("train.py", *DIGITS, *LEARNED, "run.name=own", f"run.root={own.root}", code=2)
        assert "is no folder" in said


@pytest.mark.parametrize("change", [put("optimizers", 5), put("optimizers", {}), put("optimizers", "net", []),
                                    put("tally", "x"), put("logged", 5), put("optimizers", ...),
                                    put("raw", {})])
def test_a_training_does_not_go_on_from_a_wrong_inside(own, content, change):
    inside = copy.deepcopy({key: value for key, value in content.items() if key not in ("format", "step")})
    change(inside)
    shutil.rmtree(own.checkpoints)
    checkpoint.save(own.checkpoints, content["step"], inside)
    said = done("train.py", *DIGITS, *LEARNED, "run.name=own", f"run.root={own.root}", "max_steps=20", code=2)
    assert "Traceback" not in said


SAMPLE = {"file": "000000.png", "index": 0, "condition": {"label": 3}, "seed": 0}
GOOD = {"run": "x", "checkpoint": {}, "settings": {"input": {}}, "pictures": {}, "samples": [SAMPLE]}


class TestManifest:
    """``manifest.json`` of a stranger: its words are about files in its own folder."""

    @pytest.mark.parametrize("change", [
        *(put("samples", value) for value in (5, None, {}, "x", [{}], ["x"], [None], [[]], ...)),
        *(put("samples", 0, "file", value) for value in
          (5, None, "", "..", ".", "../../../etc/passwd", "/etc/passwd", "/dev/zero", "a/b.png", "a\\b.png", "a\0b",
           [])),
        *(put("samples", 0, "index", value) for value in ("x", None, 1.5, True)),
        *(put("samples", 0, "condition", value) for value in (5, None, [], {"label": "x"}, {"label": None})),
        put("samples", 0, "source", 5), *(put("settings", value) for value in (5, None, [], {"input": 5}, ...)),
        *(put("pictures", value) for value in (5, [], {"../x": 1}, {"/x": 1})), put("run", 5), put("seconds", "x"),
        *(put("checkpoint", value) for value in (5, None, ...))])
    def test_what_is_not_as_it_should_be(self, tmp_path, change):
        manifest = copy.deepcopy(GOOD)
        assert find_fault(manifest) is None
        change(manifest)
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        for read in (lambda: find_images(str(tmp_path)), lambda: Manifest(tmp_path, {**GOOD, "settings": {}}),
                     lambda: Manifest(tmp_path, GOOD, overwrite=True)):
            with pytest.raises(UserError, match=r"manifest\.json was not written by this version"):
                read()

    @pytest.mark.parametrize("text", ["", "x", "[]", "5", "null", "[" * 100_000, '{"samples": [' * 50_000, "\xff"])
    def test_no_manifest_at_all(self, tmp_path, text):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json was not written by this version"):
            find_images(str(tmp_path))

    def test_nothing_else_is_removed(self, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "victim.png").write_text("x")
        manifest = copy.deepcopy(GOOD)
        manifest["samples"][0]["file"] = "../victim.png"
        (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError):
            Manifest(tmp_path / "out", GOOD, overwrite=True)
        assert (tmp_path / "victim.png").exists()


def test_plain_data():
    require_plain({"a": [1, 2.5, None, True, {"b": "c"}]}, "x")
    for content in ({"a": object()}, {("a",): 1}, [pickle.PickleBuffer(b"")]):
        with pytest.raises(UserError, match="x: "):
            require_plain(content, "x")


def test_a_recipe_is_a_list():
    for value in (5, None, {}, "x"):
        with pytest.raises(UserError):
            check_recipe(value)
