"""A training on shards: conditions, held-out images, evaluation, and the same weights after a stop."""

import json
import shutil

import pytest
from helpers import DIGITS, call, done, equal, train
from pictures import samples, write_tar

from configs.errors import UserError
from diffusion.runs import checkpoint

pytestmark = pytest.mark.commands

FEW = [*DIGITS, "data=shards", "data.size=16", "data.channels=1", "data.flip=true", "augment=shift", "batch=7",
       "callbacks.pictures.count=0"]


@pytest.fixture
def root(tmp_path):
    for number in range(2):
        write_tar(tmp_path / "shards" / f"{number}.tar", samples(25 * number, 25 * number + 25,
                                                                 cls=lambda seed: b"ab"[seed % 2:seed % 2 + 1]))
    return tmp_path / "shards"


def test_ten_steps_are_five_and_five(root, tmp_path):
    settings = [*FEW, "max_steps=10", "callbacks.checkpoint.every=5", "run.name=x"]
    run = train(tmp_path, *settings, f"data.root={root}")
    whole = checkpoint.read_latest(run.checkpoints)
    checkpoint.list_checkpoints(run.checkpoints)[10].unlink()
    shutil.move(root, tmp_path / "moved")
    part = checkpoint.read_latest(train(tmp_path, *settings, f"data.root={tmp_path / 'moved'}/*.tar").checkpoints)
    assert whole["step"] == part["step"] == 10
    for name in ("raw", "ema", "optimizers", "data"):
        assert equal(whole[name], part[name])
    write_tar(tmp_path / "moved" / "1.tar", samples(25, 51, cls=lambda seed: b"a"))
    with pytest.raises(UserError, match="the images are not those"):
        train(tmp_path, *settings, f"data.root={tmp_path / 'moved'}", "max_steps=12")


def test_what_is_done_with_a_run(root, tmp_path):
    run = train(tmp_path / "a", *FEW, f"data.root={root}/0.tar", "data.test=1.tar", "max_steps=1", "run.name=x")
    place = shutil.move(root, tmp_path / "moved")
    arguments = [f"run={run.folder}", "sampler.num_steps=1"]
    done("evaluate.py", *arguments, f"data.root={place}/[0].tar", "reference=data", "count=20", "split=test")
    done("sample.py", *arguments, "label=b", "samples=0-1", f"out={tmp_path / 'drawn'}")
    manifest = json.loads((tmp_path / "drawn" / "manifest.json").read_text())
    assert manifest["words"] == {"label": ["a", "b"]}
    assert [one["condition"]["label"] for one in manifest["samples"]] == [1, 1]
    done("sample.py", *arguments, "start=0.5", "prior=degraded", "samples=0-1", f"data.root={place}/0.tar",
         f"out={tmp_path / 'restored'}")
    code, said = call("sample.py", *arguments, "start=0.5", "data.root=nowhere/*.tar", f"out={tmp_path / 'no'}")
    assert code == 2
    assert "there is nothing at data.root=nowhere/*.tar" in said


def test_a_classifier(root, tmp_path):
    run = train(tmp_path, "experiment=classifier_digits", "debug=fast", "model.base=8", "model.emb_dim=32",
                "trainer.threads=1", "trainer.accelerator=cpu", "data=shards", "data.size=16", "data.channels=1",
                f"data.root=[{root}/0.tar,{root}/1.tar]", "max_steps=1", "run.name=judge")
    assert checkpoint.read_latest(run.checkpoints)["config"]["model"]["classes"] == 2
    done("evaluate.py", f"run={run.folder}", "count=4")


def test_an_image_that_cannot_be_read_ends_the_training_in_words(root, tmp_path):
    write_tar(root / "2.tar", {"bad.png": b"x" * 900, "bad.cls": b"a"})
    said = done("train.py", *FEW, f"data.root={root}/2.tar", "data.test=0.tar", "max_steps=1", f"run.root={tmp_path}",
                "run.name=x", code=2)
    assert "the image of bad in" in said
    assert "Traceback" not in said
