"""Many samples: in parts, by several processes, into one file; the result does not depend on how."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from test_sample import draw, photo, read, stamps

from configs import UserError, compose
from diffusion import commands, load
from diffusion.data.base import CHUNK
from diffusion.evaluation import together
from diffusion.evaluation.folders import find_images
from diffusion.metrics.extractors.base import Extractor
from diffusion.sampling import parts
from diffusion.sampling.parts import FOLDER
from diffusion.sampling.selection import Conditions

pytestmark = pytest.mark.commands

ENVIRONMENT = ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_ARRAY_TASK_ID", "RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of three samples, and no launcher."""
    monkeypatch.setattr(parts, "MOST", 3)
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def content(folder):
    """The files of a folder, hidden ones too; of the manifest without what is measured."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    manifest = json.loads(found.pop("manifest.json"))
    for key in ("seconds", "peak_memory_gb"):
        manifest.pop(key)
    manifest["settings"].pop("out")
    return found, json.dumps(manifest)


def copy(run, place):
    """The run alone, in a folder of runs of its own."""
    return shutil.copytree(run.folder, place / "x" / "hot", ignore=shutil.ignore_patterns("evaluations", "samples"))


def draw_in_parts(run, n, *overrides, out):
    for i in range(n):
        draw(run, *overrides, f"shard={i + 1}/{n}", out=out)
    return content(out)


@pytest.fixture(scope="module")
def whole(hot, cold, tmp_path_factory):
    """What one process leaves, by format."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MOST", 3)
        return {form: draw(hot, "samples=3-12", "batch=2", f"format={form}", out=root / form)
                for form in ("png", "zip", "npz")}


@pytest.mark.parametrize(("form", "n"), [("png", 2), ("png", 5), ("zip", 3), ("npz", 2)])
def test_any_split_is_the_same(hot, whole, tmp_path, form, n):
    assert draw_in_parts(hot, n, "samples=3-12", "batch=2", f"format={form}", out=tmp_path) == content(whole[form])


def test_the_archives_hold_the_same_as_the_folder(whole):
    """The zip the very files, with one date; the npz the array that evaluators read, in the order of the manifest."""
    files = [entry["file"] for entry in json.loads((whole["png"] / "manifest.json").read_text())["samples"]]
    assert len(files) == 10
    with zipfile.ZipFile(whole["zip"] / "samples.zip") as archive:
        assert archive.namelist() == files
        assert all(archive.read(name) == (whole["png"] / name).read_bytes() for name in files)
        assert {(info.compress_type, info.date_time) for info in archive.infolist()} == {(0, (1980, 1, 1, 0, 0, 0))}
    with np.load(whole["npz"] / "samples.npz") as archive:
        assert archive.files == ["arr_0"]
        assert archive["arr_0"].dtype == np.uint8
        assert archive["arr_0"].shape == (10, 16, 16, 1)
        assert (archive["arr_0"].transpose(0, 3, 1, 2) == np.stack([read(whole["png"] / name) for name in files])).all()
    for form in ("zip", "npz"):
        assert sorted(path.name for path in whole[form].iterdir()) == ["grid.png", "manifest.json", f"samples.{form}"]
        assert (whole[form] / "grid.png").read_bytes() == (whole["png"] / "grid.png").read_bytes()
        assert json.loads((whole[form] / "manifest.json").read_text())["archive"] == f"samples.{form}"


@pytest.mark.parametrize("form", ["png", "zip", "npz"])
def test_interrupted(hot, whole, tmp_path, form, monkeypatch, caplog):
    """What is whole stays, for one process or another number of them; nothing is drawn twice."""
    draw_part, drawn = parts.draw_part, []

    def interrupt(job, block, *more):
        if len(drawn) == 1:
            raise KeyboardInterrupt
        drawn.append([entry["index"] for entry in block])
        return draw_part(job, block, *more)

    asked = ["samples=3-12", "batch=2", f"format={form}"]
    monkeypatch.setattr(parts, "draw_part", interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw(hot, *asked, "shard=1/1" if form != "png" else "shard=1/2", out=tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    drawn.append([])
    with caplog.at_level("INFO"):
        draw(hot, *asked, "shard=2/2", out=tmp_path)
    assert "whoever draws the last one joins them" in caplog.text or not (tmp_path / FOLDER).exists()
    draw(hot, *asked, out=tmp_path)
    assert sorted(index for block in drawn for index in block) == list(range(3, 13))
    assert content(tmp_path) == content(whole[form])


def test_again_nothing_is_drawn(hot, whole, caplog):
    for form, n in (("zip", 1), ("npz", 2), ("png", 2)):
        before = stamps(whole[form])
        with caplog.at_level("INFO"):
            draw(hot, "samples=3-12", "batch=4", f"format={form}", f"shard={n}/{n}", out=whole[form])
        assert "samples to draw: 0 of 10" in caplog.text
        assert stamps(whole[form]) == before
        caplog.clear()


def test_a_picture_that_was_removed_is_made_again(hot, whole):
    grid = whole["zip"] / "grid.png"
    there = grid.read_bytes()
    before = stamps(whole["zip"])
    grid.unlink()
    draw(hot, "samples=3-12", "batch=2", "format=zip", out=whole["zip"])
    assert grid.read_bytes() == there
    assert stamps(whole["zip"])["samples.zip"] == before["samples.zip"]


def test_other_settings_are_refused(hot, whole, tmp_path, monkeypatch):
    """In a folder that is complete, and in one that is not yet."""
    for form, wrong, words in (("zip", "samples=3-13", "samples: '3-12' there, '3-13' here"),
                               ("zip", "seed=1", "seed: 0 there, 1 here"), ("png", "seed=1", "seed: 0 there"),
                               ("npz", "format=zip", "format: 'npz' there, 'zip' here")):
        with pytest.raises(UserError, match=words):
            draw(hot, "samples=3-12", f"format={form}", "shard=1/2", wrong, out=whole[form])
    draw(hot, "samples=0-5", "format=zip", "shard=1/2", out=tmp_path)
    with pytest.raises(UserError, match="seed: 0 there, 1 here"):
        draw(hot, "samples=0-5", "format=zip", "shard=2/2", "seed=1", out=tmp_path)
    with pytest.raises(UserError, match="overwrite=true with part 2 of 2"):
        draw(hot, "samples=0-5", "format=zip", "shard=2/2", "overwrite=true", out=tmp_path)
    draw(hot, "samples=0-5", "format=zip", "seed=1", "overwrite=true", out=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "manifest.json", "samples.zip"]
    for wrong in ("format=tar", "shard=3/2", "shard=true"):
        with pytest.raises(UserError):
            draw(hot, "samples=0-5", wrong, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_two_that_end_at_once(hot, whole, tmp_path, monkeypatch, caplog):
    """One process has the lock when the other has drawn the last part, too."""
    lock, asked = parts.Lock, ["samples=3-12", "batch=2", "format=zip"]

    class Late(lock):
        """Another process comes when this one is about to join."""

        def take(self):
            monkeypatch.setattr(parts, "Lock", lock)
            super().take()
            draw(hot, *asked, "shard=1/2", out=tmp_path)

    draw(hot, *asked, "shard=1/2", out=tmp_path)
    monkeypatch.setattr(parts, "Lock", Late)
    with caplog.at_level("INFO"):
        draw(hot, *asked, "shard=2/2", out=tmp_path)
    assert "another process joins them" in caplog.text
    assert content(tmp_path) == content(whole["zip"])


@pytest.mark.parametrize("form", ["png", "zip"])
def test_restorations_and_their_film(cold, tmp_path, form):
    for i in range(3):
        photo(tmp_path / "photos" / f"{i}.png", seed=i)
    asked = [f"input={tmp_path / 'photos'}", "batch=2", f"format={form}", "animate=true", "animation.count=2"]
    whole = draw(cold, *asked, out=tmp_path / "whole")
    png = draw(cold, *asked[:2], *asked[3:], out=tmp_path / "png")
    assert draw_in_parts(cold, 2, *asked, out=tmp_path / "out") == content(whole)
    for name in ("trajectory.webp", "grid.png")[:2 if form == "png" else 0]:
        assert (whole / name).read_bytes() == (png / name).read_bytes()


def test_by_an_array(hot, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "6")
    for name, value in (("MIN", 5), ("MAX", 7), ("COUNT", 3), ("STEP", 1)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    with caplog.at_level("INFO"):
        draw(hot, "samples=0-8", "format=zip", "shard=auto", out=tmp_path)
    assert "part 2 of 3 (SLURM array)" in caplog.text
    assert "samples to draw: 3 of 9" in caplog.text
    assert "parts that are there: 1 of 3" in caplog.text
    (part,) = (tmp_path / FOLDER).glob("*.part")
    with zipfile.ZipFile(part) as archive:
        assert archive.namelist() == ["000003.png", "000004.png", "000005.png", "costs.json"]


def test_damaged_parts(hot, tmp_path):
    """They are named, and drawn again when they have been removed."""
    asked = ["samples=0-5", "format=zip"]
    draw(hot, *asked, "shard=1/2", out=tmp_path)
    (part,) = (tmp_path / FOLDER).glob("*.part")
    whole = part.read_bytes()
    for damaged in (whole[:-30], b"", whole.replace(b"costs.json", b"other.json")):
        part.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{part.name} is damaged"):
            draw(hot, *asked, out=tmp_path)
    part.unlink()
    (tmp_path / FOLDER / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="overwrite=true, or remove"):
        draw(hot, *asked, out=tmp_path)
    (tmp_path / FOLDER / "manifest.json").unlink()
    draw(hot, *asked, out=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "manifest.json", "samples.zip"]


def test_twins_stay_together(hot, tmp_path):
    asked = ["samples=[7,2]", "twins=4", "label=[1,2,3,4]", "batch=2", "format=zip"]
    whole = draw(hot, *asked, out=tmp_path / "whole")
    with zipfile.ZipFile(whole / "samples.zip") as archive:
        assert archive.namelist() == [f"{i:06d}-{k}.png" for i in (2, 7) for k in range(4)]
    entries = json.loads((whole / "manifest.json").read_text())["samples"]
    assert [entry["condition"]["label"] for entry in entries] == [1, 2, 3, 4] * 2
    assert draw_in_parts(hot, 2, *asked, out=tmp_path / "out") == content(whole)


def test_conditions_are_read_in_chunks(hot):
    """Any rows, of any chunks; a list with one for each is cut alike."""
    model = load(hot.folder, device="cpu")
    n = 2 * CHUNK + 5
    labels = [i * i % 10 for i in range(n)]
    for asked, expected in (({}, [i % 10 for i in range(n)]), ({"label": labels}, labels), ({"label": 3}, [3] * n)):
        conditions = Conditions(model, model.recipe(), range(n), asked, None, lambda: None)
        assert conditions.write() == [{"label": label} for label in expected]
        rows = [0, CHUNK - 1, CHUNK, n - 1, 1]
        assert conditions.take(rows)["label"].tolist() == [expected[row] for row in rows]
    with pytest.raises(UserError, match="7 values of label"):
        Conditions(model, model.recipe(), range(n), {"label": [1] * 7}, None, lambda: None)


def test_evaluate_reads_archives(hot, tmp_path):
    """A folder, a zip and an npz of the same samples have the same numbers; the manifest says the classes."""
    numbers, run = {}, copy(hot, tmp_path / "runs")
    for form, place in (("png", "."), ("zip", "samples.zip"), ("npz", "samples.npz")):
        folder = draw(hot, "samples=0-19", f"format={form}", out=tmp_path / form)
        cfg = compose("evaluate", [f"images='{folder / place}'", "reference=data", f"run='{run}'", "metrics=quick",
                                   "judge=none", "extractor=random", "device=cpu", "baseline=false"])
        numbers[form] = commands.evaluate(cfg)["rows"]
        for root in (folder, folder / place):
            files, manifest = find_images(str(root))
            assert files.labels.tolist() == [i % 10 for i in range(20)]
            assert manifest["run"] == str(hot.folder)
    assert numbers["png"] == numbers["zip"] == numbers["npz"]


def test_evaluated_together(hot, tmp_path, monkeypatch, caplog):
    """Each process draws and looks at its part, the last one measures: the very numbers of one process."""
    monkeypatch.setattr(Extractor, "chunk", 4)
    monkeypatch.setattr(together, "PIECE", 4)
    found = []
    for seed, shares in ((3, ["none"]), (3, ["none"]), (4, ["none"]), (4, ["1/3", "3/3", "2/3", "2/3"])):
        run = copy(hot, tmp_path / str(len(found)))
        for share in shares:
            cfg = compose("evaluate", [f"run='{run}'", "count=30", "batch=4", "metrics=quick", "judge=none", "step=12",
                                       f"seed={seed}", "extractor=random", "device=cpu", "baseline=false",
                                       "sampler.num_steps=2", f"shard={share}"])
            with caplog.at_level("INFO"):
                result = commands.evaluate(cfg)
            assert bool(result) == (share != "1/3" and share != "3/3")
        found.append(result["rows"])
        (folder,) = (run / "evaluations").iterdir()
        left = ["evaluation.json", "gallery", "parts.pt", "report.html"]
        assert sorted(path.name for path in folder.iterdir()) == left
    assert found[0] == found[1]
    assert found[0] != found[2] == found[3]
    assert caplog.text.count("the others are not done yet; whoever is last measures") == 2
    assert "measured before" in caplog.text


def test_what_is_not_divided(hot, cold, tmp_path):
    for more, words in ((["metrics=quick", f"run='{cold.folder}'"], "restorations"),
                        (["images=x", f"run='{hot.folder}'"], "images="),
                        ([f"against='{cold.folder}'", f"run='{hot.folder}'"], "against="),
                        (["overwrite=true", f"run='{hot.folder}'"], "overwrite=true")):
        before = {*cold.folder.rglob("*"), *hot.folder.rglob("*")}
        with pytest.raises(UserError, match=words):
            commands.evaluate(compose("evaluate", [*more, "shard=1/2", "judge=none", "device=cpu"]))
        assert {*cold.folder.rglob("*"), *hot.folder.rglob("*")} == before
