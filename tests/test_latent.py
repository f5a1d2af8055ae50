"""Latent models: the same trainer, samplers and guidance in the space of a first stage."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import DIGITS, NANO, call, done, train

from configs import UserError, build, compose, construct
from configs.values import to_plain
from degradations.randomness import BatchStream
from diffusion import load
from diffusion.data import Digits
from diffusion.data.pixels import to_float
from diffusion.evaluation.cost import count_flops, count_sample_flops
from diffusion.runs import checkpoint
from diffusion.spaces import cache
from diffusion.spaces.latent import Latent, choose_mirrored
from models.autoencoder.kl import KLAutoencoder

pytestmark = pytest.mark.commands

STAGE = ["experiment=autoencoder_digits", *(setting for setting in NANO if setting != "model=nano"), "model.base=8",
         "callbacks.pictures.count=0", "max_steps=30"]
HOT = ["experiment=ldm_digits", *DIGITS[1:], "callbacks.pictures.count=0", "callbacks.log.every=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A first stage that has seen a few images, and a latent model of it, by name."""
    root = tmp_path_factory.mktemp("latent")
    first = train(root, *STAGE, "run.name=first", experiment="stage")
    latent = train(root, *hot(first), "run.name=latent", "max_steps=4", "space.cache=false", experiment="latent")
    return first, latent


def hot(first, *more):
    return [*HOT, f"begin.first_stage.run={first.folder}", *more]


def losses(run):
    return [float(row["loss"]) for row in csv.DictReader(run.metrics.open())]


class TestSpace:
    @pytest.fixture(scope="class")
    def model(self, runs):
        return load(runs[1].folder, device="cpu")

    def test_every_channel_has_mean_0_and_std_1(self, model):
        """Over the latents of the training set as they are drawn; held-out ones are near."""
        data = Digits()
        for split, tolerance in (("train", 1e-3), ("test", 0.15)):
            x = to_float(data.split(split).images)
            mean, std = model.space.scale(model.space.first_stage.encode(x))
            drawn = mean.double(), (mean.var((0, 2, 3), correction=0) + std.square().mean((0, 2, 3))).sqrt()
            torch.testing.assert_close(drawn[0].mean((0, 2, 3)), torch.zeros(2).double(), atol=tolerance, rtol=0)
            torch.testing.assert_close(drawn[1], torch.ones(2), atol=tolerance, rtol=0)

    def test_there_and_back_is_the_first_stage(self, model, runs):
        x = to_float(Digits().split("test").images[:5])
        stage = load(runs[0].folder, device="cpu").weights.net
        torch.testing.assert_close(model.space.decode(model.space.encode(x)), stage(x), atol=1e-5, rtol=1e-4)

    def test_chunks_make_no_difference(self, model):
        z = torch.randn(7, *model.shape)
        whole = model.space.decode(z)
        model.space.chunk = 2
        torch.testing.assert_close(model.space.decode(z), whole)
        model.space.chunk = 64

    def test_gradients_flow_both_ways(self, model):
        z = torch.randn(2, *model.shape, requires_grad=True)
        (there,) = torch.autograd.grad(model.space.decode(z).square().sum(), z)
        x = to_float(Digits().split("test").images[:2]).requires_grad_()
        (back,) = torch.autograd.grad(model.space.encode(x).square().sum(), x)
        for gradient in (there, back):
            assert gradient.isfinite().all()
            assert gradient.abs().max() > 0

    def test_the_posterior_is_drawn_from(self, model):
        """With the moments that the first stage gives, from the stream of the step."""
        x = to_float(Digits().split("test").images[:4])
        rng = BatchStream(0, 3, slice(0, 4), 4)
        mean, std = model.space.scale(model.space.first_stage.encode(x))
        expected = mean + std * rng.normal("posterior", mean.shape)
        torch.testing.assert_close(model.space.draw(x, rng), expected, atol=1e-2, rtol=1e-2)
        assert not torch.equal(model.space.draw(x, rng), model.space.draw(x, BatchStream(0, 4, slice(0, 4), 4)))
        part = model.space.draw(x[2:], BatchStream(0, 3, slice(2, 4), 4))
        torch.testing.assert_close(part, model.space.draw(x, rng)[2:], atol=2e-2, rtol=0)

    def test_it_follows_the_model(self, model, runs):
        moved = load(runs[1].folder, device="cpu").to("meta")
        assert moved.space.get_buffer("std").device.type == "meta"
        assert {p.device.type for p in moved.space.parameters()} == {"meta"}

    def test_decoding_is_counted_once(self, model):
        network = count_flops(lambda: model.evaluator.output(torch.zeros(1, *model.shape), torch.ones(1),
                                                         model.weights.encoder.null(1, "cpu")))
        decoder = count_flops(lambda: model.space.first_stage.decode(torch.zeros(1, *model.shape)))
        assert decoder > 0
        assert count_sample_flops(model, 50) == 50 * network + decoder

    def test_it_needs_a_quarter_of_the_operations_at_64_px(self):
        """Of the pixel model of equal width, for 50 evaluations, the decoder counted once."""
        from diffusion.evaluation.cost import count_flops as count
        from models.context import Context

        net = build("model", "small", in_channels=3, emb_dim=256)
        small = build("model", "small", in_channels=4, emb_dim=256)
        node = compose("train", ["experiment=autoencoder_celeba64", "data.root=x"]).model
        stage = construct({**to_plain(node), "in_channels": 3})
        pixels, latents = (count(lambda net=net, x=x: net(x, torch.ones(1), Context(emb=torch.zeros(1, 256)), None))
                           for net, x in ((net, torch.zeros(1, 3, 64, 64)), (small, torch.zeros(1, 4, 16, 16))))
        decoder = count(lambda: stage.decode(torch.zeros(1, 4, 16, 16)))
        assert 50 * latents + decoder <= 50 * pixels / 4


class TestFit:
    @pytest.fixture
    def space(self):
        torch.manual_seed(0)
        return Latent(KLAutoencoder(1, 2, 8, (1, 2), 1), 16)

    def test_statistics_are_those_of_all_batches(self, space):
        x = torch.rand(30, 1, 16, 16) * 2 - 1
        space.fit(x.split(7))
        moments = space.first_stage.encode(x)
        mean = moments.mean.double().mean((0, 2, 3))
        var = (moments.mean.double().square() + moments.std.double().square()).mean((0, 2, 3)) - mean.square()
        torch.testing.assert_close(space.get_buffer("mean").flatten().double(), mean, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(space.get_buffer("std").flatten().double(), var.sqrt(), atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
    def test_statistics_that_mean_nothing(self, space, value, monkeypatch):
        from models.autoencoder.base import Moments

        def encode(self, x):
            return Moments(torch.full((len(x), 2, 8, 8), value), torch.zeros(len(x), 2, 8, 8))

        monkeypatch.setattr(KLAutoencoder, "encode", encode)
        with pytest.raises(UserError, match="was not trained, or has collapsed"):
            space.fit([torch.zeros(3, 1, 16, 16)])

    @pytest.mark.parametrize(("shape", "words"), [((3, 16, 16), "3 channels"), ((1, 32, 32), "32 px")])
    def test_other_images_are_refused(self, space, shape, words):
        assert space.shape((1, 16, 16)) == (2, 8, 8)
        with pytest.raises(UserError, match=words):
            space.shape(shape)


class TestCache:
    @pytest.mark.parametrize("flip", [False, True])
    def test_training_from_it_equals_encoding_on_the_fly(self, runs, tmp_path, flip):
        settings = [*hot(runs[0]), f"data.flip={flip}".lower(), "max_steps=5", "batch=16"]
        fly = train(tmp_path / "a", *settings, "space.cache=false")
        kept = train(tmp_path / "b", *settings, f"space.cache={tmp_path / 'cache'}")
        np.testing.assert_allclose(losses(kept), losses(fly), rtol=0, atol=1e-5)
        [file] = (tmp_path / "cache").glob("*.moments")
        images = len(Digits().split("train"))
        assert file.stat().st_size == images * (2 if flip else 1) * 2 * 2 * 8 * 8 * 2
        before = file.stat().st_mtime_ns
        train(tmp_path / "c", *settings, f"space.cache={tmp_path / 'cache'}")
        assert file.stat().st_mtime_ns == before, "it is used again"

    def test_it_holds_the_moments_of_images_and_mirror_images(self, runs):
        model = load(runs[1].folder, device="cpu")
        images = Digits().split("train")
        kept = torch.cat(list(cache.encode_images(model.space, images, True)))
        x = to_float(images.images[100:140])
        for m, each in enumerate((x, x.flip(-1))):
            fresh = torch.stack(model.space.first_stage.encode(each), dim=1)
            torch.testing.assert_close(kept[100:140, m].float(), fresh, atol=1e-2, rtol=1e-2)
            assert (kept[100:140, m].float() - fresh).abs().max() < 1e-2 * fresh[:, 0].std()
        mirrored = torch.arange(40) % 3 == 0
        chosen = choose_mirrored(kept[100:140], mirrored)
        assert torch.equal(chosen[mirrored], kept[100:140, 1][mirrored])
        assert torch.equal(chosen[~mirrored], kept[100:140, 0][~mirrored])

    @pytest.fixture
    def space(self):
        torch.manual_seed(0)
        return Latent(KLAutoencoder(1, 2, 8, (1, 2), 1), 16, cache=None)

    @pytest.fixture
    def add(self, space, tmp_path):
        space.cache = str(tmp_path)
        images = Digits().split("train").choose(torch.arange(70))

        def run(data="data", flip=False, augmented=False):
            return cache.add_moments(space, images, data, flip, augmented).signals.get("space.moments")

        return run

    def test_other_weights_and_other_images_are_other_files(self, space, add, tmp_path):
        first = add()
        assert len(list(tmp_path.glob("*.moments"))) == 1
        with torch.no_grad():
            next(space.first_stage.parameters()).view(-1)[0] += 0.1
        second = add()
        assert not torch.equal(first, second)
        add(data="others")
        add(flip=True)
        assert len(list(tmp_path.glob("*.moments"))) == len(list(tmp_path.glob("*.json"))) == 4

    @pytest.mark.parametrize("harm", ["flip a bit", "cut", "no record", "another record", "no json"])
    def test_a_damaged_one_is_made_again(self, add, tmp_path, harm, caplog):
        first = add().clone()
        [file], [record] = tmp_path.glob("*.moments"), tmp_path.glob("*.json")
        data = bytearray(file.read_bytes())
        if harm == "flip a bit":
            data[100] ^= 1
            file.write_bytes(data)
        elif harm == "cut":
            file.write_bytes(data[:-7])
        elif harm == "no record":
            record.unlink()
        elif harm == "no json":
            record.write_text("{")
        else:
            record.write_text(json.dumps({**json.loads(record.read_text()), "key": "x"}))
        assert torch.equal(add(), first)
        assert ("will be made again" in caplog.text) == (harm != "no record")

    def test_augmented_images_have_none(self, space, add):
        with pytest.raises(UserError, match="augmented otherwise"):
            add(augmented=True)
        space.cache = None
        assert add(augmented=True) is None
        space.cache = False
        assert add() is None

    def test_a_script_encodes_beforehand(self, runs, tmp_path):
        settings = [*hot(runs[0]), f"space.cache={tmp_path / 'cache'}"]
        assert "1501 images encoded" in done("scripts/cache_latents.py", *settings)
        assert "latents: those of 1501 images" in done("scripts/cache_latents.py", *settings)
        assert "latents: those of 1501 images" in done("train.py", *settings, "max_steps=1", f"run.root={tmp_path}")
        assert "nothing is cached" in done("scripts/cache_latents.py", *DIGITS, code=2)
        assert "cannot write" in done("scripts/cache_latents.py", *settings, "space.cache=/proc/nowhere", code=2)
        assert "augmented" in done("scripts/cache_latents.py", *settings, "augment=shift", code=2)

    def test_a_place_that_cannot_be_written(self, space, add, caplog):
        space.cache = "/proc/nowhere"
        assert add() is None
        assert "encoded at every step" in caplog.text


class TestRuns:
    def test_it_needs_its_first_stage_no_more(self, runs, tmp_path):
        """Sampled, evaluated and resumed after its folder was deleted, with the same pictures; its weights are in the
        checkpoint, bit for bit, and not trained."""
        first = tmp_path / "stage" / "first"
        shutil.copytree(runs[0].folder, first)
        settings = [*HOT, f"begin.first_stage.run={first}", f"run.root={tmp_path}", "run.name=latent"]
        done("train.py", *settings, "max_steps=2")
        run = tmp_path / "ldm_digits" / "latent"
        few = ["device=cpu", "samples=0-3", "sampler.num_steps=3"]
        done("sample.py", f"run={run}", *few, f"out={tmp_path / 'a'}")
        theirs = load(first, device="cpu").weights.net.state_dict()
        shutil.rmtree(first)
        done("sample.py", f"run={run}", *few, f"out={tmp_path / 'b'}")
        pictures = sorted(path.name for path in (tmp_path / "a").glob("*.png"))
        assert pictures
        for name in pictures:
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert "resuming at step 2" in done("train.py", *settings, "max_steps=3")
        done("evaluate.py", f"run={run}", "count=4", "metrics=quick", "device=cpu", "sampler.num_steps=2")
        content = checkpoint.read_latest(run / "checkpoints")
        assert content is not None
        assert content["step"] == 3
        for name, value in theirs.items():
            assert torch.equal(content["frozen"][f"space.first_stage.{name}"], value)
        assert not any(name.startswith("space.") for name in content["raw"])

    def test_stopped_and_resumed_equals_uninterrupted(self, runs, tmp_path):
        part = ["run.name=x", f"space.cache={tmp_path / 'cache'}"]
        train(tmp_path, *hot(runs[0]), *part, "max_steps=2", experiment="e")
        run = train(tmp_path, *hot(runs[0]), *part, "max_steps=4", "space.chunk=7", experiment="e")
        mine, whole = (checkpoint.read_latest(each.checkpoints) for each in (run, runs[1]))
        assert mine is not None
        assert whole is not None
        for name in ("raw", "ema", "frozen"):
            assert mine[name].keys() == whole[name].keys()
            for key, value in whole[name].items():
                torch.testing.assert_close(mine[name][key], value, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("settings", [
        ["sampler=ddpm"], ["sampler=heun"], ["guidance=cfg", "guidance.cfg.scale=3"], ["guidance=pag"],
        ["guidance=cads"], ["guidance=apg"], ["guidance=clip"], ["guidance=threshold"]], ids=" ".join)
    def test_samplers_and_guidance_are_the_same(self, runs, settings):
        model = load(runs[1].folder, device="cpu")
        recipe = model.recipe(["sampler.num_steps=4", *settings])
        images = model.sample(range(3), recipe=recipe, label=[1, 2, 3])
        assert images.shape == (3, 1, 16, 16)
        assert images.isfinite().all()

    def test_clamps_to_pixels_are_off(self, runs):
        model = load(runs[1].folder, device="cpu")
        plain, clipped = (model.sample(range(3), recipe=model.recipe(["sampler.num_steps=4", *more]))
                          for more in (["guidance=none"], ["guidance=clip"]))
        assert torch.equal(plain, clipped)

    def test_photos_are_edited_in_latents(self, runs, tmp_path):
        """Degraded and restored: encoded and decoded on the way."""
        model = load(runs[1].folder, device="cpu")
        x = to_float(Digits().split("test").images[:3])
        recipe = model.recipe(["sampler.num_steps=4", "prior=degraded", "start=0.01", "guidance=none"])
        near = model.sample(range(3), recipe=recipe, images=x)
        plain = model.space.decode(model.space.encode(x))
        assert (near - plain).square().mean() < 0.05

    @pytest.mark.parametrize("network", [["model=dit", "model.width=16", "model.depth=3", "model.emb_dim=32",
                                          "model.head_dim=8", "model.patch=2"]])
    def test_other_networks_work_in_latents(self, runs, tmp_path, network):
        settings = [setting for setting in hot(runs[0]) if not setting.startswith("model")]
        run = train(tmp_path, *settings, *network, "max_steps=2", "space.cache=false")
        assert load(run.folder, device="cpu").sample(range(2)).shape == (2, 1, 16, 16)

    def test_the_pixels_of_flow_and_hot_experiments_become_latents(self, runs, tmp_path):
        run = train(tmp_path, *DIGITS, "callbacks.pictures.count=0", "space=latent", "objective=flow",
                    "degradation/schedule=rectified", f"begin.first_stage.run={runs[0].folder}", "max_steps=2")
        assert load(run.folder, device="cpu").sample(range(2)).shape == (2, 1, 16, 16)

    def test_pictures_are_decoded(self, runs, tmp_path):
        settings = [setting for setting in hot(runs[0]) if not setting.startswith("callbacks.pictures")]
        run = train(tmp_path, *settings, "max_steps=1", "callbacks.pictures.count=2", "space.cache=false")
        assert list(run.pictures.glob("*.png"))


@pytest.mark.parametrize(("settings", "words"), [
    (["degradation=blur"], "in the space Latent"), (["data.size=32"], "a first stage of 1 and 16"),
    (["data.channels=3"], "a first stage of 1 and 16"), (["begin.first_stage.step=5"], "no checkpoint of step 5"),
    (["begin.first_stage.weights=best"], "ema or raw"), (["space.count=0"], "at least 1"),
    (["space.chunk=-1"], "at least 1"), (["begin.first_stage.run=nowhere"], "no run in nowhere"),
    (["augment=shift", "space.cache=true"], "augmented otherwise")])
def test_what_cannot_be(runs, tmp_path, settings, words):
    if settings == ["degradation=blur"]:
        settings = ["degradation=blur", "objective=cold", "prior=noise"]
    code, said = call("train.py", *hot(runs[0]), *settings, f"run.root={tmp_path}", "max_steps=1")
    assert code == 2, said
    assert words in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.pt"))


def test_a_run_that_is_no_first_stage(hot_run, tmp_path):
    said = done("train.py", *HOT, f"begin.first_stage.run={hot_run}", f"run.root={tmp_path}", code=2)
    assert "Autoencoder" in said
    assert not list(tmp_path.iterdir())


@pytest.fixture
def hot_run(hot):
    return hot.folder


def test_a_first_stage_has_to_be_named(tmp_path):
    code, said = call("train.py", *HOT, f"run.root={tmp_path}")
    assert code in (1, 2)
    assert "begin.first_stage.run" in said
    assert "Traceback" not in said
