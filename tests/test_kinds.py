"""Other kinds of trained models: an autoencoder with a discriminator, and a network that is changed after its training.
A guest package brings both; the commands do the rest."""

import csv
import json
import shutil

import pytest
import torch
from helpers import DIGITS, NANO, done, equal, installed, train, write_package
from PIL import Image

from configs import UserError, compose
from diffusion import commands, load
from diffusion.data import Digits
from diffusion.objectives.base import Losses, call_constant
from diffusion.runs import checkpoint
from diffusion.runs.defaults import add_run_defaults
from diffusion.runs.run import Run
from diffusion.training.optimization import AdamW

pytestmark = pytest.mark.commands

FILES = {
    "guest_kinds/__init__.py": "",
    "guest_kinds/configs/__init__.py": "",
    "guest_kinds/codec.py": '''
"""An autoencoder: the network, what it is trained for, and what the commands do with it."""

from dataclasses import dataclass

import torch
from torch import nn

from configs import UserError
from degradations.shapes import flatten_rows
from diffusion.data.pixels import to_float
from diffusion.evaluation.pair_scores import PairScores
from diffusion.evaluation.report import Report
from diffusion.evaluation.subjects import Subject
from diffusion.objectives.base import Criterion, Losses, call_constant
from diffusion.objectives.evaluator import Evaluator
from diffusion.pictures import Picture
from diffusion.sampling.inputs import find_inputs
from diffusion.sampling.job import Job
from diffusion.sampling.selection import choose_indices, list_samples
from diffusion.tasks.base import Task
from diffusion.training.optimization import AdamW


class Codec(nn.Module):
    def __init__(self, in_channels: int, width: int = 4):
        super().__init__()
        self.encoder = nn.Conv2d(in_channels, width, 4, 4)
        self.decoder = nn.ConvTranspose2d(width, in_channels, 4, 4)

    def forward(self, x):
        return self.decoder(self.encoder(x))


class NetworkCodec(Evaluator):
    task = "compress"
    example = "objective=codec model=codec"

    def __call__(self, x):
        with self.computing(x.device):
            return self.network(x).float()

    def try_out(self, x, ctx):
        if self(x).shape != x.shape:
            raise UserError("a codec of another shape", "the same shape", "model=codec")


class Reconstruction(Criterion[NetworkCodec]):
    """Squared error, and from a step on a hinge loss of a discriminator that is trained beside it."""

    def __init__(self, optimizer: AdamW, channels: int = 1, start: int = 2):
        self.networks = {"critic": nn.Conv2d(channels, 1, 4, 2)}
        self.optimizers, self.start = {"critic": optimizer}, start

    def __call__(self, evaluator, encoder, degradation, x0, condition, rng):
        critic, made, on = self.networks["critic"], evaluator(x0), float(rng.step >= self.start)
        error = flatten_rows((made - x0).square()).mean(1)
        fooled = -flatten_rows(call_constant(critic, made)).mean(1)
        hinge = flatten_rows(torch.relu(1 - critic(x0)) + torch.relu(1 + critic(made.detach()))).mean(1)
        return Losses(error + 0.1 * on * fooled, torch.ones(len(x0)), {"error": error}, {"critic": on * hinge})

    def use(self, network, degradation, precision):
        return NetworkCodec(network, precision)


@dataclass(frozen=True)
class Reconstructions(Job):
    title = "reconstruction"

    def batch(self, some, callbacks):
        x0 = to_float(self.inputs.images.batch(torch.tensor([entry["index"] for entry in some]))[0])
        with torch.no_grad():
            return {self.title: self.model.use(NetworkCodec)(x0.to(self.model.device)).cpu(), "original": x0}


class CodecSubject(Subject):
    def __init__(self, bench):
        self.bench, (self.images, stated) = bench, bench.reference()
        self.protocol = bench.protocol("reconstructions", len(self.images), stated, checkpoint=bench.checkpoint)

    def measure(self, folder):
        report = Report(self.protocol, ["reconstructions"])
        pairs = self.bench.pair_metrics(self.images.shape, report.skipped)
        scores = PairScores(pairs, self.images, keep=False)
        codec = self.bench.model.use(NetworkCodec)
        for rows in torch.arange(len(self.images)).split(64):
            with torch.no_grad():
                scores.add(codec(to_float(self.images.batch(rows)[0]).to(self.bench.model.device)).cpu(), rows)
        report.sets["reconstructions"] = scores.numbers()
        return report


class Compress(Task):
    hint = "reconstruct: python sample.py run={run} input=PHOTOS"

    def plan(self, cfg, model):
        if not cfg.input.root:
            raise UserError(f"{cfg.run}, an autoencoder, without images", "images to encode and decode", "input=PHOTOS")
        inputs = find_inputs(model, cfg, ())
        indices = choose_indices(cfg, inputs)
        return Reconstructions(cfg, model, list_samples(indices, cfg, inputs, [{}] * len(indices)), inputs)

    def choose_subject(self, context):
        return CodecSubject(context)

    def show(self, model, held_out, count, times, sampling):
        x0 = to_float(held_out.batch(torch.arange(min(count, len(held_out))))[0]).to(model.device)
        return {"pairs": Picture(torch.cat([x0, model.use(NetworkCodec)(x0)]).cpu(), len(x0), ["original", "made"])}
''',
    "guest_kinds/rounded.py": '''
"""A network whose weights have been rounded after its training."""

import torch
from torch import nn

from diffusion import load
from diffusion.derive import derive
from diffusion.model import Model
from diffusion.runs.run import Run
from diffusion.training.optimization import AdamW


class Rounded(nn.Module):
    def __init__(self, of: nn.Module, digits: int):
        super().__init__()
        self.of, self.digits = of, digits

    def forward(self, x, t, ctx, attn=None):
        return self.of(x, t, ctx, attn)


def make(run, folder, digits, overwrite=False):
    first = load(run, device="cpu")
    config = {**first.config, "model": {"_target_": "guest_kinds.rounded.Rounded", "of": first.config["model"],
                                        "digits": digits}}
    model = Model(config)
    state = {name.replace("net.", "net.of.", 1): value for name, value in first.weights.state_dict().items()}
    model.weights.load_state_dict(state)
    with torch.no_grad():
        for value in model.weights.net.parameters():
            value.copy_(value.round(decimals=digits))
    model.step = first.step
    return derive(Run(run), model, folder, {"rounded": digits}, overwrite)
''',
    "guest_kinds/configs/model/codec.yaml": "_target_: guest_kinds.codec.Codec\nin_channels: null\nwidth: 4\n",
    "guest_kinds/configs/objective/codec.yaml": '''# images from what is left of them
_target_: guest_kinds.codec.Reconstruction
start: 2
optimizer:
  _target_: diffusion.training.optimization.AdamW
  lr: 0.02
  warmup: 0
''',
    "guest_kinds/configs/kind/compress.yaml": "_target_: guest_kinds.codec.Compress\n",
    "guest_kinds-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: guest_kinds\nVersion: 1\n",
    "guest_kinds-1.dist-info/entry_points.txt": "[thaw.configs]\nkinds = guest_kinds.configs\n",
}
CODEC = ["data=digits", *(setting for setting in NANO if setting != "model=nano"), "model=codec", "objective=codec",
         "sampling=[]", "callbacks.checkpoint.keep=0", "callbacks.checkpoint.every=1"]


@pytest.fixture(scope="module", autouse=True)
def guest(tmp_path_factory):
    with installed(write_package(tmp_path_factory.mktemp("site"), FILES), "guest_kinds"):
        yield


@pytest.fixture(scope="module")
def codec(guest, tmp_path_factory):
    """Four steps without a break, the discriminator from the third on."""
    return train(tmp_path_factory.mktemp("runs"), *CODEC, "max_steps=4", "callbacks.pictures.count=4", "run.name=ae",
                 experiment="codec")


def content(run, step):
    return checkpoint.read(checkpoint.list_checkpoints(run.checkpoints)[step])


class TestTraining:
    def test_the_pictures_are_the_kinds_own(self, codec):
        assert {path.name for path in codec.pictures.iterdir()} == {"pairs-00000004.png"}

    def test_what_the_criterion_says_is_logged(self, codec):
        rows = list(csv.DictReader(codec.metrics.open()))
        assert list(rows[0])[-2:] == ["error", "critic"]
        assert float(rows[0]["error"]) == pytest.approx(float(rows[0]["loss"]))
        assert float(rows[0]["critic"]) == 0
        assert float(rows[-1]["critic"]) > 0

    def test_each_network_has_its_own_optimizer(self, codec):
        optimizers = content(codec, 4)["optimizers"]
        assert set(optimizers) == {"net", "critic"}
        assert optimizers["critic"]["param_groups"][0]["lr"] == 0.02
        assert optimizers["net"]["param_groups"][0]["lr"] != 0.02
        assert [len(optimizers[name]["state"]) for name in ("net", "critic")] == [4, 2]

    def test_it_starts_when_it_should(self, codec):
        weights = {step: content(codec, step)["raw"]["critics.critic.weight"] for step in (1, 2, 3, 4)}
        assert torch.equal(weights[1], weights[2])
        assert not torch.equal(weights[2], weights[3])

    @pytest.mark.parametrize("stop", [1, 3])
    def test_stopped_and_resumed_equals_uninterrupted(self, codec, tmp_path, stop):
        again = [*CODEC, "run.name=ae"]
        train(tmp_path, *again, f"max_steps={stop}", "callbacks.pictures.count=0", experiment="codec")
        run = train(tmp_path, *again, "max_steps=4", "callbacks.pictures.count=0", experiment="codec")
        mine, whole = content(run, 4), content(codec, 4)
        for name in ("raw", "ema", "optimizers", "tally"):
            assert equal(mine[name], whole[name]), name

    def test_parts_of_a_batch_make_no_difference(self, codec, tmp_path):
        run = train(tmp_path, *CODEC, "max_steps=4", "accumulate=2", "callbacks.pictures.count=0")
        mine, whole = content(run, 4)["raw"], content(codec, 4)["raw"]
        for name, value in whole.items():
            torch.testing.assert_close(mine[name], value, atol=1e-5, rtol=1e-4)

    def test_names_that_change_are_refused(self, codec):
        from diffusion.training.module import BINS, LOGGED, Training

        training = Training(load(codec.folder, device="cpu"), Digits().split("train"), False, AdamW(), fingerprint="",
                            batch=2, accumulate=1, max_steps=1, seed=0, decay=0.9)
        losses = [Losses(torch.ones(2), torch.ones(2), {name: torch.ones(2)}) for name in ("a", "b")]
        assert training._add(losses[0]).shape == (2, BINS + 1)
        assert training.logged == (*LOGGED, "a")
        with pytest.raises(ValueError, match="logged a so far, and now b"):
            training._add(losses[1])


def test_a_constant_network_passes_gradients_on():
    net, x = torch.nn.Linear(3, 1), torch.ones(2, 3, requires_grad=True)
    call_constant(net, x).sum().backward()
    assert torch.equal(x.grad, net.weight.expand(2, 3))
    assert net.weight.grad is None


class TestCommands:
    def test_without_images_it_says_what_it_is(self, codec):
        said = done("sample.py", f"run={codec.folder}", code=2)
        assert "an autoencoder" in said
        assert "input=" in said

    def test_with_images_it_reconstructs(self, codec, tmp_path):
        for i, image in enumerate(Digits().split("test").images[:3]):
            (tmp_path / "in").mkdir(exist_ok=True)
            Image.fromarray(image[0].numpy()).save(tmp_path / "in" / f"{i}.png")
        asked = compose("sample", add_run_defaults([f"run={codec.folder}", f"input={tmp_path / 'in'}", "device=cpu",
                                                    f"out={tmp_path / 'out'}"]))
        folder = commands.sample(asked)
        assert {path.name for path in folder.iterdir()} == {"0.png", "1.png", "2.png", "grid.png", "manifest.json"}
        manifest = json.loads((folder / "manifest.json").read_text())
        assert [entry["source"] for entry in manifest["samples"]] == ["0.png", "1.png", "2.png"]
        before = (folder / "0.png").stat().st_mtime_ns
        commands.sample(asked)
        assert (folder / "0.png").stat().st_mtime_ns == before
        with pytest.raises(UserError, match="in one step"):
            commands.sample(compose("sample", add_run_defaults(
                [f"run={codec.folder}", f"input={tmp_path / 'in'}", "animate=true", f"out={tmp_path / 'film'}"])))

    def test_it_is_evaluated(self, codec):
        result = commands.evaluate(compose("evaluate", add_run_defaults(
            [f"run={codec.folder}", "metrics=quick", "judge=none", "device=cpu"])))
        rows = result["rows"]["reconstructions"]
        assert 0 < rows["rmse"]["value"] < 1

    def test_it_restores_and_classifies_nothing(self, codec):
        model = load(codec.folder, device="cpu")
        for ask, wanted in ((lambda: model.sample([0]), "restore"), (lambda: model.classifier, "classify")):
            with pytest.raises(UserError, match="which can compress images") as error:
                ask()
            assert f"one that can {wanted}" in error.value.wanted


class TestDerivedRuns:
    def test_a_changed_network_is_a_run(self, hot, tmp_path):
        from guest_kinds.rounded import make

        source = tmp_path / "runs" / "ddpm" / "first"
        shutil.copytree(hot.folder, source)
        made = make(source, source.with_name("rounded"), 2)
        assert Run.open(made.folder).config["derived"]["rounded"] == 2
        shutil.rmtree(source)
        model = load(made.folder, device="cpu", allow=["guest_kinds"])
        assert all(torch.equal(value, value.round(decimals=2)) for value in model.weights.net.parameters())
        plain = load(hot.folder, device="cpu")
        one, other = (each.sample([0, 1], recipe=each.recipe(["sampler.num_steps=2"])) for each in (model, plain))
        assert 0 < (one - other).abs().max() < 0.5
        folder = commands.sample(compose("sample", add_run_defaults(
            [f"run={made.folder}", "samples=0-1", "sampler.num_steps=2", "device=cpu"])))
        assert (folder / "000001.png").is_file()
        result = commands.evaluate(compose("evaluate", add_run_defaults(
            [f"run={made.folder}", "metrics=quick", "judge=none", "count=16", "sampler.num_steps=2", "device=cpu",
             "baseline=false"])))
        assert result["rows"]["samples"]

    def test_it_is_not_trained_on(self, hot, tmp_path):
        from guest_kinds.rounded import make

        make(hot.folder, tmp_path / "test" / "rounded", 2)
        with pytest.raises(UserError, match="holds another run"):
            train(tmp_path, *DIGITS, "run.name=rounded")
