"""A run in one file: what is drawn and measured from it is what the folder gives, and hostile files are refused."""

import hashlib
import json
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from helpers import NANO, ROOT, done, train
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from configs import UserError
from diffusion import load
from diffusion.runs import checkpoint, exported
from diffusion.runs.run import Run

RUNS = ROOT / "tests" / "format_2"
QUICK = ["samples=0-3", "sampler.num_steps=1", "device=cpu"]

pytestmark = pytest.mark.faults


def export(run: Run | Path, to: Path, *overrides: str) -> Path:
    done("scripts/export.py", f"run={run.folder if isinstance(run, Run) else run}", f"to={to}", *overrides)
    return to


@pytest.fixture(scope="module")
def model(hot, tmp_path_factory) -> Path:
    """The hot run as a file, the only one in its folder."""
    return export(hot, tmp_path_factory.mktemp("handed_on") / "model.safetensors")


@pytest.fixture(scope="module")
def gray(tmp_path_factory) -> Path:
    """A run with a fitted prior, which makes digits from one grey, as a file."""
    return export(RUNS / "generate_blur_mnist" / "cold", tmp_path_factory.mktemp("gray") / "gray.safetensors")


@pytest.fixture
def copy(model, tmp_path) -> Path:
    """The file, to be damaged."""
    return Path(shutil.copy(model, tmp_path / "copy.safetensors"))


def draw(run: Run | Path, **which) -> torch.Tensor:
    model = load(run.folder if isinstance(run, Run) else run, **which)
    return model.sample(range(2), recipe=model.recipe(["sampler.num_steps=1"]))


def pictures(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.rglob("*.png")}
    assert len(found) >= 4
    return found


class TestTheSame:
    @pytest.mark.parametrize(("weights", "step"), [("ema", 12), ("raw", 6)])
    def test_all_weights(self, hot, tmp_path, weights, step):
        """Read by the library alone, they are those of the checkpoint; drawn with, they give what the folder gives."""
        path = export(hot, tmp_path / "x.safetensors", f"weights={weights}", f"step={step}")
        content = checkpoint.read(checkpoint.list_checkpoints(hot.checkpoints)[step])
        wanted, found = {**content["frozen"], **content[weights]}, load_file(path)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
        assert torch.equal(draw(path), draw(hot, weights=weights, step=step))
        assert load(path).step == step

    def test_a_file_of_raw_weights_gives_them_and_one_of_averages_has_no_others(self, hot, model, tmp_path):
        path = export(hot, tmp_path / "x.safetensors", "weights=raw")
        mine, theirs = (load(path, weights=weights).weights.state_dict() for weights in ("ema", "raw"))
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())
        assert any(not torch.equal(mine[name], value) for name, value in load(model).weights.state_dict().items())
        with pytest.raises(UserError, match="averages alone"):
            load(model, weights="raw")

    def test_pictures_without_the_folder(self, hot, tmp_path):
        """Byte for byte, by the run's own way of sampling, which config.yaml says."""
        run = Path(shutil.copytree(hot.folder, tmp_path / "run"))
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("guidance.cfg.scale=2", "guidance.cfg.scale=7"))
        done("sample.py", f"run={run}", *QUICK, f"out={tmp_path / 'folder'}")
        done("sample.py", f"run={hot.folder}", *QUICK, f"out={tmp_path / 'scale2'}")
        path = export(run, tmp_path / "my model v1.2.safetensors").rename(tmp_path / "my model, v1.2.safetensors")
        shutil.rmtree(run)
        done("sample.py", f"run={path}", *QUICK)
        folder, = (tmp_path / "my model, v1.2" / "samples").iterdir()
        assert pictures(folder) == pictures(tmp_path / "folder") != pictures(tmp_path / "scale2")
        stamp = json.loads((folder / "manifest.json").read_text())["checkpoint"]
        assert stamp == {"step": 12, "checksum": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}

    def test_a_fitted_prior(self, gray, tmp_path):
        run = RUNS / "generate_blur_mnist" / "cold"
        assert checkpoint.read_latest(run / "checkpoints")["frozen"]
        done("sample.py", f"run={run}", *QUICK, f"out={tmp_path / 'folder'}")
        done("sample.py", f"run={gray}", *QUICK, f"out={tmp_path / 'file'}")
        assert pictures(tmp_path / "file") == pictures(tmp_path / "folder")

    def test_equal_runs_make_equal_files(self, hot, model, tmp_path):
        path = export(hot, tmp_path / "x.safetensors")
        assert path.read_bytes() == model.read_bytes() == export(path, tmp_path / "y.safetensors").read_bytes()

    def test_it_says_nothing_of_the_machine(self, hot, model):
        """The digits have no folder: no path is left."""
        assert str(hot.folder.parents[1]).encode() not in model.read_bytes()
        config = Run.open(model).config
        assert config.keys() & {"run", "trainer", "callbacks", "logger", "begin", "origin"} == set()


class TestWhereverARunGoes:
    def test_numbers(self, hot, model, tmp_path):
        """Judged by another file; of the folder and of the file, which do not differ."""
        judge = export(RUNS / "classifier_digits" / "classifier", tmp_path / "judge.safetensors")
        path = Path(shutil.copy(model, tmp_path / "model.safetensors"))
        run = Path(shutil.copytree(hot.folder, tmp_path / "runs" / "digits" / "run"))
        few = ["count=10", "metrics=quick", "baseline=false", "sampler.num_steps=1", f"judge={judge}", "device=cpu"]
        done("evaluate.py", f"run={run}", f"against={path}", *few)
        mine, theirs = (json.loads(next(folder.glob("evaluations/*/evaluation.json")).read_text())
                        for folder in (run, tmp_path / "model"))
        assert mine["rows"] == theirs["rows"]
        assert "agreement" in mine["rows"]["samples"]
        identity = mine["protocol"]["judge"]["identity"]
        assert identity == f"step 20, {hashlib.sha256(judge.read_bytes()).hexdigest()[:16]}"
        done("evaluate.py", f"run={judge}", "device=cpu")
        assert list((tmp_path / "judge").glob("evaluations/*/evaluation.json"))

    def test_a_judge_is_found_among_the_usual_runs(self, model, tmp_path, monkeypatch):
        """A file lies anywhere, the classifiers of the digits in ``runs``."""
        monkeypatch.chdir(tmp_path)
        shutil.copytree(RUNS / "classifier_digits", tmp_path / "runs" / "classifier_digits")
        path = Path(shutil.copy(model, tmp_path / "elsewhere.safetensors"))
        done("evaluate.py", f"run={path}", "count=4", "metrics=quick", "baseline=false", "sampler.num_steps=1",
             "device=cpu")
        result = next((tmp_path / "elsewhere").glob("evaluations/*/evaluation.json"))
        assert json.loads(result.read_text())["protocol"]["judge"]["name"] == "classifier"

    def test_guidance_by_it(self, hot, model, tmp_path):
        for name, weak in (("folder", hot.folder), ("file", model)):
            done("sample.py", f"run={hot.folder}", "guidance=autoguidance", f"guidance.autoguidance.weak.run={weak}",
                 "guidance.autoguidance.scale=3", *QUICK, f"out={tmp_path / name}")
        assert pictures(tmp_path / "file") == pictures(tmp_path / "folder")

    def test_a_run_begins_with_it(self, hot, model, tmp_path):
        """With its weights, and with the size of its network by ``${of:}``, as with those of the folder."""
        file = Path(shutil.copy(model, tmp_path / "file.safetensors"))
        made = {}
        for name, place in (("folder", hot.folder), ("file", file)):
            sizes = [f"model.{key}=${{of:{place},model.{key}}}" for key in ("base", "emb_dim")]
            made[name] = train(tmp_path / "runs", "experiment=ddpm_digits", *NANO, *sizes, "callbacks.pictures.count=0",
                               "begin=base", f"begin.base.run={place}", f"run.name={name}", "max_steps=1")
        mine, theirs = (checkpoint.read_latest(run.checkpoints) for run in made.values())
        assert all(torch.equal(value, theirs["raw"][name]) for name, value in mine["raw"].items())
        origin = made["file"].config["origin"]["base"]
        assert (origin["step"], origin["checksum"]) == (12, hashlib.sha256(file.read_bytes()).hexdigest()[:16])

    def test_a_prior_is_fitted_to_it(self, cold, tmp_path):
        path = export(cold, tmp_path / "x.safetensors")
        done("scripts/fit_prior.py", f"run={path}", "prior=mixture")
        assert load(tmp_path / "x,prior=mixture").prior.fitted


class TestMistakes:
    @pytest.mark.parametrize(("overrides", "words"), [
        (["to=x.pt"], "to=x.pt.safetensors"), (["to={folder}"], "there already"), (["to={model}"], "overwrite=true"),
        (["to=x.safetensors", "step=5"], "one of 6, 12"), (["to=x.safetensors", "weights=emma"], "ema or raw"),
        ([], "to=..."), (["to=x.safetensors", "run=nowhere"], "no run in nowhere"),
        (["to={model}/x.safetensors"], "cannot write"), (["to="], "to is empty")])
    def test_of_writing(self, hot, model, tmp_path, monkeypatch, overrides, words):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "folder.safetensors").mkdir()
        before = model.read_bytes()
        overrides = [o.format(model=model, folder="folder.safetensors") for o in overrides]
        run = [] if any(o.startswith("run=") for o in overrides) else [f"run={hot.folder}"]
        assert words in done("scripts/export.py", *run, *overrides, code=2)
        assert model.read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]

    def test_a_file_that_is_there_is_replaced_if_asked(self, hot, copy, model):
        copy.write_bytes(b"old")
        assert export(hot, copy, "overwrite=true").read_bytes() == model.read_bytes()

    def test_a_way_of_sampling_that_needs_another_run(self, hot, tmp_path):
        """It is taken where the file may name that run."""
        run = Path(shutil.copytree(hot.folder, tmp_path / "runs" / "digits" / "run"))
        weak = shutil.copytree(hot.folder, tmp_path / "runs" / "digits" / "weak")
        text = (run / "config.yaml").read_text()
        text = text.replace("- guidance=cfg\n", f"- guidance=autoguidance\n- guidance.autoguidance.weak.run={weak}\n")
        (run / "config.yaml").write_text(text.replace("- guidance.cfg.scale=2\n", ""))
        said = done("scripts/export.py", f"run={run}", f"to={tmp_path / 'elsewhere' / 'x.safetensors'}", code=2)
        assert "a path outside of" in said
        assert "in the folder of both runs" in said
        done("sample.py", f"run={export(run, tmp_path / 'runs' / 'x.safetensors')}", *QUICK)

    @pytest.mark.parametrize("arguments", [
        ["experiment=ddpm_digits", "run={file}"], ["run={file}", "model=nano"],
        ["experiment=ddpm_digits", "run.root={root}", "run.name=x.safetensors"]])
    def test_it_is_not_trained_on(self, model, tmp_path, arguments):
        file = tmp_path / "ddpm_digits" / "x.safetensors"
        file.parent.mkdir()
        shutil.copy(model, file)
        said = done("train.py", *[a.format(file=file, root=tmp_path) for a in arguments], code=2)
        assert f"begin.base.run={file}" in said
        assert file.read_bytes() == model.read_bytes()

    def test_it_has_one_step(self, model):
        assert "wanted: one of 12" in done("sample.py", f"run={model}", "step=6", code=2)

    @pytest.mark.parametrize("script", ["sample.py", "evaluate.py"])
    def test_wrong_places(self, model, script, tmp_path):
        (tmp_path / "folder.safetensors").mkdir()
        for place in (model.with_name("modle.safetensors"), tmp_path / "folder.safetensors"):
            said = done(script, f"run={place}", code=2)
            assert f"no run in {place}" in said
            assert "scripts/export.py" in said

    def test_a_run_folder_may_be_called_like_a_file(self, hot, tmp_path):
        run = Run.open(shutil.copytree(hot.folder, tmp_path / "run.safetensors"))
        assert type(run) is Run
        assert (run.config, run.steps) == (hot.config, hot.steps)

    def test_no_place_for_the_pictures(self, copy):
        copy.with_suffix("").touch()
        assert "cannot write" in done("sample.py", f"run={copy}", *QUICK, code=2)


def parts(path: Path) -> tuple[dict, bytes]:
    """Header and numbers, by the format's definition."""
    data = path.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    return json.loads(data[8:8 + length]), data[8 + length:]


def assemble(path: Path, header: dict | bytes, numbers: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)


def rewrite(path: Path, change) -> None:
    """The file with a changed record."""
    header, numbers = parts(path)
    record = json.loads(header["__metadata__"]["thaw"])
    change(record)
    assemble(path, {**header, "__metadata__": {"thaw": json.dumps(record)}}, numbers)


def refused(path: Path, words: str | None = None) -> None:
    with pytest.raises(UserError, match=words):
        load(path, device="cpu")


NAMES = ["encoder.signals.label.table.weight", "net.decoder.exit.bias"]


class TestStrangers:
    @pytest.mark.parametrize(("command", "damage"), [
        (["sample.py", "run={}"], lambda path: path.write_bytes(b"")),
        (["evaluate.py", "run={}"], lambda path: path.write_bytes(path.read_bytes()[:-1])),
        (["sample.py", "run={}"], lambda path: rewrite(path, lambda record: record.update(config=None))),
        (["sample.py", "run={}"], lambda path: rewrite(path, lambda r: r["config"].update(sampling=["sampler=../x"]))),
        (["sample.py", "run={}"], lambda path: rewrite(path, lambda r: r["config"]["model"].update(base=16))),
        (["scripts/export.py", "run={}", "to={}.safetensors"],
         lambda path: rewrite(path, lambda r: r["config"]["model"].update(base=16)))],
        ids=["empty", "cut", "no config", "another sampler", "another network", "exported again"])
    def test_the_commands_stop_in_words(self, copy, command, damage):
        damage(copy)
        assert "  try:  " in done(*[part.format(copy) for part in command], code=2)
        assert [path.name for path in copy.parent.iterdir()] == [copy.name]

    def test_a_rival_that_is_damaged_stops_the_first_before_the_work(self, model, copy):
        copy.write_bytes(b"")
        assert "header" in done("evaluate.py", f"run={model}", f"against={copy}", code=2)
        assert not model.with_suffix("").exists()

    def test_an_unchanged_file_is_taken_after_it_was_taken_apart(self, copy):
        """So that what is refused below is refused for what was changed."""
        rewrite(copy, lambda record: None)
        assert load(copy, device="cpu").step == 12

    @pytest.mark.parametrize("damage", [
        lambda d: b"", lambda d: d[:5], lambda d: d[:100], lambda d: d[:-1], lambda d: d + b"x",
        lambda d: b"\xff" * 8 + d[8:], lambda d: struct.pack("<q", -1) + d[8:],
        lambda d: struct.pack("<Q", len(d)) + d[8:], lambda d: struct.pack("<Q", 90_000_000) + d[8:],
        lambda d: struct.pack("<Q", 1) + d[8:], lambda d: d[:8] + b"\xff" + d[9:], lambda d: b"PK\x03\x04" + d],
        ids=["empty", "five bytes", "in the header", "cut", "more", "unsigned", "negative", "beyond", "huge", "short",
             "no text", "zip"])
    def test_damage(self, copy, damage):
        copy.write_bytes(damage(copy.read_bytes()))
        with pytest.raises(UserError, match="cannot be used"):
            _ = Run.open(copy).config
        refused(copy, "cannot be used")

    @pytest.mark.parametrize("change", [
        {"data_offsets": [0, 4]}, {"data_offsets": [0, 10**15]}, {"data_offsets": [-4, 0]}, {"shape": [10**15]},
        {"shape": [2**62, 8]}, {"shape": [-1]}, {"shape": [1] * 100}, {"shape": []}, {"shape": "x"}, {"dtype": "F64"},
        {"dtype": "I32"}, {"dtype": "F33"}, {"dtype": "F16", "shape": [2]}, {"data_offsets": None}], ids=str)
    def test_tensors_that_are_not_what_they_were(self, copy, change):
        """Overlaps, places outside of the file, other types and shapes."""
        header, numbers = parts(copy)
        assert header[NAMES[1]]["shape"] == [1]
        header[NAMES[1]] |= change
        assemble(copy, header, numbers)
        refused(copy)

    def test_a_tensor_too_many_too_few_or_called_otherwise(self, copy):
        header, numbers = parts(copy)
        last = max((name for name in header if name != "__metadata__"), key=lambda n: header[n]["data_offsets"])
        more = {"extra": {"dtype": "F32", "shape": [1], "data_offsets": [len(numbers), len(numbers) + 4]}}
        assemble(copy, header | more, numbers + bytes(4))
        refused(copy, "extra")
        assemble(copy, {key: value for key, value in header.items() if key != last},
                 numbers[:header[last]["data_offsets"][0]])
        refused(copy, f"{re.escape(last)}|describes more")
        assemble(copy, {key if key != last else "other": value for key, value in header.items()}, numbers)
        refused(copy, "other")

    @pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
    def test_numbers_that_are_not_finite(self, copy, value):
        header, numbers = parts(copy)
        at = header[NAMES[0]]["data_offsets"][0]
        assemble(copy, header, numbers[:at] + struct.pack("<f", float(value)) + numbers[at + 4:])
        refused(copy, f"{NAMES[0]} in .* not finite")

    @pytest.mark.parametrize("text", [
        None, "", "[]", "5", "{", "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, "9" * 5000, "[" + "0," * 2**20 + "0]",
        "NaN"], ids=["none", "empty", "list", "number", "open", "nested", "nested less", "long number", "long", "nan"])
    def test_metadata_that_are_no_record(self, copy, text):
        header, numbers = parts(copy)
        assemble(copy, {**header, "__metadata__": {} if text is None else {"thaw": text}}, numbers)
        refused(copy, "metadata")

    def test_metadata_that_are_nested_where_the_format_has_words(self, copy):
        _, numbers = parts(copy)
        assemble(copy, b'{"__metadata__":{"thaw":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", numbers)
        refused(copy, "JSON")

    @pytest.mark.parametrize("change", [
        {"format": "2"}, {"format": True}, {"format": None}, {"step": -1}, {"step": 1.5}, {"step": 2**70},
        {"weights": "all"}, {"weights": ["ema"]}, {"data": 5}, {"config": None}, {"config": []}, {"config": {}}],
        ids=str)
    def test_a_record_of_other_types(self, copy, change):
        rewrite(copy, lambda record: record.update(change))
        refused(copy, "metadata")

    def test_another_format(self, copy):
        rewrite(copy, lambda record: record.update(format=3, config=None))
        refused(copy, "format 3")

    @pytest.mark.parametrize("change", [
        *({part: value} for part in exported.PARTS for value in (None, {})), {"seed": "x"},
        {"sampling": "sampler=ddim"}, {"sampling": [1]}, {"sampling": ["sampler=\ud800"]},
        {"sampling": ["sampler=../../x"]}, {"precision": []},
        {"sampling": ["start=${oc.env:HOME}"]}, {"sampling": ["guidance.autoguidance.weak.run=/etc"]},
        {"condition": {"signals": [1]}}, {"augment": 5}, {"x": json.loads('{"a":' * 70 + "1" + "}" * 70)}], ids=str)
    def test_a_config_that_makes_no_model(self, copy, change):
        rewrite(copy, lambda record: record["config"].update(change))
        refused(copy)

    @pytest.mark.parametrize("change", [{"base": -8}, {"base": "x"}, {"base": 16}, {"blocks": 0}, {"depth": 3}],
                             ids=str)
    def test_a_network_that_is_another(self, copy, change):
        rewrite(copy, lambda record: record["config"]["model"].update(change))
        refused(copy)

    @pytest.mark.parametrize("change", [{"size": "x"}, {"size": 0}, {"size": None}, {"channels": True}], ids=str)
    def test_images_that_are_none(self, copy, change):
        rewrite(copy, lambda record: record["config"]["data"].update(change))
        refused(copy, r"config\.data")

    @pytest.mark.parametrize("target", [
        "os.system", "subprocess.Popen", "builtins.exec", "degradations.base.torch.save", "diffusion.runs.run.Run",
        "diffusion.runs.exported.write", "models.blocks.zero"])
    @pytest.mark.parametrize("part", ["model", "space", "degradation"])
    def test_a_class_that_is_no_part_of_a_model(self, copy, target, part, tmp_path):
        mark = tmp_path / "mark"
        rewrite(copy, lambda record: record["config"].update({part: {"_target_": target, "command": f"touch {mark}"}}))
        with pytest.raises(UserError, match="_target_"):
            load(copy, device="cpu")
        assert not mark.exists()

    @pytest.mark.parametrize("change", [
        {"means": None}, {"weights": None}, {"factors": torch.ones(1, 1)}, {"means": torch.ones(1, 1)},
        {"means": torch.ones(2, 1).double()}, {"weights": torch.ones(3).double()}, {"means": torch.ones(()).double()},
        {"means": torch.ones(1, 3).double(), "factors": torch.eye(3)[None].double()}],
        ids=["no means", "no weights", "two axes", "float", "two", "three weights", "a number", "three channels"])
    def test_a_prior_that_was_not_fitted(self, gray, tmp_path, change):
        """Its buffers have the shapes that the file says; what was never fitted is refused, at the latest if drawn."""
        path = tmp_path / "x.safetensors"
        with safe_open(gray, "pt") as opened:
            metadata = opened.metadata()
        state = load_file(gray) | {f"prior.{name}": value for name, value in change.items()}
        save_file({name: value for name, value in state.items() if value is not None}, path, metadata)
        with pytest.raises(UserError):
            draw(path, device="cpu")
