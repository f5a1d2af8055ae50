"""Conditions of every kind, from the data to the manifest, as somebody else's package brings them: captions and low
resolutions. Through the commands."""

import json
from pathlib import Path

import pytest
import torch
from helpers import DIGITS, done, installed, write_package
from scipy.stats import chisquare

from configs import UserError
from degradations.randomness import BatchStream
from diffusion.objectives.parameterization import X0
from diffusion.objectives.restoration import Objective
from diffusion.objectives.times import UniformTimes
from diffusion.objectives.weighting import ConstantWeighting
from models.conditioning import ConditionEncoder, LabelSignal, VectorSignal

pytestmark = pytest.mark.commands

FILES = {
    "guest_signals/__init__.py": "",
    "guest_signals/configs/__init__.py": "",
    "guest_signals/captions.py": '''
import torch

from diffusion.data.base import ImageSet
from diffusion.data.sets.digits import Digits

WORDS = ["", "a", "digit", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class Captions(Digits):
    """Digits with captions such as "a seven", and "a seven digit" of the odd ones; no classes."""

    @property
    def class_names(self):
        return None

    @property
    def described(self):
        return {"text": {"words": WORDS, "length": 3}}

    def load(self, name):
        images = super().load(name)
        label = images.labels
        text = torch.stack([torch.ones_like(label), label + 3, 2 * (label % 2)], dim=1)
        return ImageSet(images.pixels, {"text": text})
''',
    "guest_signals/text.py": '''
import torch
from torch import nn

from configs import UserError
from configs.registry import closest
from models.conditioning import Context, Signal


class Text(Signal):
    """The mean of the vectors of the words; number 0 is a pad."""

    def __init__(self, dim, words: list | None = None, length: int | None = None):
        super().__init__(dim)
        self.words, self.length = words, length
        self.table = nn.Embedding(len(words), dim)
        self.missing = nn.Parameter(torch.zeros(dim))

    def read(self, values):
        rows = []
        for value in values:
            words = str(value).split()
            for word in words:
                if word not in self.words:
                    raise UserError(f"{self.name}={value}: the word {word}", "a word of the captions",
                                    f"{self.name}={closest(word, self.words[1:])}")
            if len(words) > self.length:
                raise UserError(f"{self.name}={value}", f"at most {self.length} words", "a shorter text")
            rows.append([self.words.index(word) for word in words] + [0] * (self.length - len(words)))
        return torch.tensor(rows)

    def write(self, raw):
        return [" ".join(self.words[i] for i in row if i) for row in raw.tolist()]

    def forward(self, value):
        real = (value > 0)[..., None]
        return Context(emb=(self.table(value) * real).sum(1) / real.sum(1))

    def null(self, n):
        return Context(emb=self.missing.expand(n, -1))
''',
    "guest_signals/low.py": '''
import torch.nn.functional as F

from models.conditioning import Source


class Quarter(Source):
    """A quarter of the resolution."""

    def forward(self, images, condition, rng):
        return F.interpolate(F.avg_pool2d(images, 4), images.shape[-2:])
''',
    "guest_signals/configs/data/captions.yaml": '''# digits with captions
_target_: guest_signals.captions.Captions
size: 16
channels: 1
flip: false
''',
    "guest_signals/configs/condition/guest_text.yaml": '''# a text
_target_: models.conditioning.ConditionEncoder
signals:
  text:
    _target_: guest_signals.text.Text
    words: null
    length: null
    dim: ${model.emb_dim}
dim: ${model.emb_dim}
''',
    "guest_signals/configs/condition/low.yaml": '''# a low resolution beside the class
_target_: models.conditioning.ConditionEncoder
signals:
  label:
    _target_: models.conditioning.LabelSignal
    num_classes: null
    dim: ${model.emb_dim}
  low:
    _target_: models.conditioning.ImageSignal
    channels: ${data.channels}
    side: ${data.size}
    dim: ${model.emb_dim}
sources:
  low:
    _target_: guest_signals.low.Quarter
dim: ${model.emb_dim}
''',
    "guest_signals-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: guest_signals\nVersion: 1\n",
    "guest_signals-1.dist-info/entry_points.txt": "[thaw.configs]\nsignals = guest_signals.configs\n",
}
TRAIN = [*DIGITS, "max_steps=12", "optimizer.lr=0.01", "ema=0.5", "callbacks.pictures.count=3"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return write_package(tmp_path_factory.mktemp("site"), FILES)


@pytest.fixture(autouse=True)
def guest(site):
    with installed(site, "guest_signals"):
        yield


@pytest.fixture(scope="module")
def runs(site, tmp_path_factory):
    """A run that is told captions, and one that is told classes and low resolutions."""
    root = tmp_path_factory.mktemp("runs")
    with installed(site, "guest_signals"):
        done("train.py", *TRAIN, "data=captions", "condition=guest_text", "run.name=text", f"run.root={root}",
             "objective.drop={text: 0.05, all: 0.05}")
        done("train.py", *TRAIN, "condition=low", "model.spatial_channels=1", "run.name=low", f"run.root={root}")
    return {name: root / "ddpm_digits" / name for name in ("text", "low")}


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def conditions(folder: Path) -> list:
    return [entry["condition"] for entry in manifest(folder)["samples"]]


FEW = ["device=cpu", "sampler.num_steps=2"]


def test_pictures_by_words(runs, tmp_path):
    run = f"run={runs['text']}"
    out = f"out={tmp_path / 'one'}"
    done("sample.py", run, "text=a seven digit", "samples=0-1", *FEW, out)
    assert conditions(tmp_path / "one") == [{"text": "a seven digit"}] * 2
    said = done("sample.py", run, "text=a seven digit", "samples=0-1", *FEW, out)
    assert "0 of 2" in said
    done("sample.py", run, "text=[a seven digit,a two]", *FEW, f"out={tmp_path / 'two'}")
    assert conditions(tmp_path / "two") == [{"text": "a seven digit"}, {"text": "a two"}]
    first, second = ((tmp_path / "two" / f"00000{i}.png").read_bytes() for i in (0, 1))
    assert first == (tmp_path / "one" / "000000.png").read_bytes()
    assert second != (tmp_path / "one" / "000001.png").read_bytes()
    done("sample.py", run, "text=none", "samples=0", *FEW, f"out={tmp_path / 'none'}")
    assert conditions(tmp_path / "none") == [{}]


@pytest.mark.parametrize(("asked", "words"), [
    ("text=a sevn", "text=seven"), ("text=[a two]", ""), ("text=[a two,a one,a six]", "3 values of text for 2 samples"),
    ("label=3", "knows text"), ("+txt=a two", "a setting that sample.py does not have"),
    ("++condition.txt=a two", "knows text"), ("text.of=photos", "sources: none")])
def test_what_cannot_be_asked(runs, tmp_path, asked, words):
    out = f"out={tmp_path / 'out'}"
    assert words in done("sample.py", f"run={runs['text']}", asked, "samples=0-1", *FEW, out, code=2)
    assert not (tmp_path / "out").exists()


def test_nothing_asked_takes_the_captions_of_held_out_images(runs, tmp_path):
    run = done("sample.py", f"run={runs['text']}", "samples=0-2", *FEW, f"out={tmp_path / 'out'}")
    assert "held-out images" in run
    from guest_signals.captions import Captions
    from guest_signals.text import Text

    from diffusion import load

    model, held_out = load(runs["text"], device="cpu"), Captions().split("test")
    signal = model.weights.encoder.signals["text"]
    assert isinstance(signal, Text)
    captions = signal.write(held_out.signals["text"][:3])
    assert conditions(tmp_path / "out") == [{"text": caption} for caption in captions]
    # From Python, what cannot be guessed is left out.
    recipe = model.recipe(["sampler.num_steps=2"])
    assert torch.equal(model.sample([0], recipe=recipe), model.sample([0], recipe=recipe, text="none"))
    assert not torch.equal(model.sample([0], recipe=recipe), model.sample([0], recipe=recipe, text="a two"))


def test_evaluation_of_a_model_that_is_told_captions(runs):
    done("evaluate.py", f"run={runs['text']}", "count=40", "metrics=all", *FEW)
    (path,) = runs["text"].glob("evaluations/*/evaluation.json")
    report = json.loads(path.read_text())
    assert report["protocol"]["condition"] == {}
    assert any(name.startswith("vendi") for name in report["rows"]["samples"]), "by caption"
    assert "agreement" in report["skipped"]
    samples = next(runs["text"].glob("samples/*/manifest.json")).parent
    assert len({one["text"] for one in conditions(samples)}) == 10


def test_the_low_resolution_is_in_every_branch_and_has_to_be_given(runs, tmp_path):
    from diffusion import load

    run = runs["low"]
    model = load(run, device="cpu")
    low = torch.rand(2, 1, 16, 16)
    ctx = model.context({"label": torch.tensor([1, 2]), "low": low}, 2)
    assert ctx.null is not None
    assert torch.equal(ctx.null.spatial, low)
    with pytest.raises(UserError, match="no low"):
        model.sample([0, 1])
    done("sample.py", f"run={run}", "samples=0-3", *FEW, f"out={tmp_path / 'held'}")
    assert [one["label"] for one in conditions(tmp_path / "held")] == [0, 1, 2, 3]
    for name, asked in (("of", "low.of"), ("raw", "low")):
        done("sample.py", f"run={run}", f"{asked}={tmp_path / 'held'}", "label=3", "samples=0-1", *FEW,
             f"out={tmp_path / name}")
    assert conditions(tmp_path / "of") != conditions(tmp_path / "raw")
    assert (tmp_path / "of" / "000000.png").read_bytes() != (tmp_path / "raw" / "000000.png").read_bytes()
    for asked, words in (("low=none", "no low"), ("low=3", "low="), (f"low={tmp_path / 'nowhere'}", "nowhere"),
                         ("label.of=photos", "sources: low")):
        assert words in done("sample.py", f"run={run}", asked, "samples=0-1", *FEW, f"out={tmp_path / 'no'}", code=2)


def test_restorations_take_the_images_own_signals(runs, tmp_path):
    photos = runs["low"].parent / "photos"
    done("sample.py", f"run={runs['low']}", "samples=0-1", *FEW, f"out={photos}")
    done("sample.py", f"run={runs['low']}", f"input={photos}", "input.t=0.5", *FEW, f"out={tmp_path / 'out'}")
    assert all(set(one) == {"low"} for one in conditions(tmp_path / "out")), "photos have no classes"


def test_a_name_that_the_commands_use_is_refused(site, tmp_path):
    said = done("train.py", *TRAIN, "data=captions", "condition=guest_text", "run.name=x", f"run.root={tmp_path}",
                "~condition.signals.text", "+condition.signals.seed={_target_: guest_signals.text.Text, words: null, "
                "length: null, dim: 32}", code=2)
    assert "called seed" in said


def test_images_without_the_signal(site, tmp_path):
    """One that may be left out is, and one that has to be given is refused."""
    run = done("train.py", *TRAIN, "condition=guest_text", "run.name=x", f"run.root={tmp_path}", "max_steps=1")
    assert "the images have no text" in run
    again = done("train.py", *TRAIN, "condition=guest_text", "run.name=x", f"run.root={tmp_path}", "max_steps=2")
    assert "resuming at step 1" in again
    root = f"run.root={tmp_path}"
    said = done("train.py", *TRAIN, "condition=label", "run.name=x", root, "max_steps=2", code=2)
    assert "condition.signals.label" in said
    said = done("train.py", *TRAIN, "condition=low", "model.spatial_channels=1", "~condition.sources", "run.name=y",
                root, code=2)
    assert "images without low" in said


def test_flip_needs_a_word_of_the_signal(site, tmp_path):
    said = done("train.py", *TRAIN, "data=captions", "data.flip=true", "condition=guest_text", "run.name=x",
                f"run.root={tmp_path}", code=2)
    assert "mirrored image" in said


def objective(drop) -> Objective:
    return Objective(X0(), UniformTimes(), ConstantWeighting(), drop=drop)


def encoder() -> ConditionEncoder:
    return ConditionEncoder({"label": LabelSignal(10, 4), "tags": VectorSignal(3, 4)}, 4)


def test_drops_are_disjoint_events_with_these_shares():
    """And the same for any number of processes."""
    n = 20000
    condition = {"label": torch.zeros(n, dtype=torch.long), "tags": torch.zeros(n, 3)}
    drops = objective({"tags": 0.4, "label+tags": 0.05, "all": 0.1}).draw_drops(
        condition, n, BatchStream(0, 3, slice(0, n), n))
    assert drops is not None
    label, tags = drops["label"], drops["tags"]
    counts = [int(x.sum()) for x in (label & tags, label & ~tags, ~label & tags, ~label & ~tags)]
    assert counts[1] == 0
    shares = [0.15, 0.4, 0.45]
    assert chisquare([counts[0], *counts[2:]], [n * share for share in shares]).pvalue > 1e-3
    half = objective({"tags": 0.4, "label+tags": 0.05, "all": 0.1}).draw_drops(
        {name: raw[n // 2:] for name, raw in condition.items()}, n // 2, BatchStream(0, 3, slice(n // 2, n), n))
    assert half is not None
    assert torch.equal(half["tags"], tags[n // 2:])
    alone = objective(0.1).draw_drops(condition, n, BatchStream(0, 3, slice(0, n), n))
    expected = BatchStream(0, 3, slice(0, n), n).uniform("drop", (n,)) < 0.1
    assert alone is not None
    assert torch.equal(alone["label"], expected)
    assert torch.equal(alone["tags"], expected)


@pytest.mark.parametrize("drop", [1.5, -0.1, {"label": 0.7, "all": 0.7}, {"label": True}])
def test_impossible_shares(drop):
    with pytest.raises(UserError, match=r"objective\.drop"):
        objective(drop)


def test_drops_of_signals_that_are_not_there():
    objective({"label": 0.1, "label+tags": 0.1, "all": 0.1}).check_encoder(encoder())
    with pytest.raises(UserError, match="no signal text"):
        objective({"label+text": 0.1}).check_encoder(encoder())
