"""A first stage of diffusers: an AutoencoderKL with random weights, saved in a folder as its users find one."""

import json
import shutil
import sys

import pytest
import torch
from helpers import DIGITS, done, train
from safetensors.torch import load_file, save_file

from configs import UserError, compose, construct
from degradations.randomness import BatchStream
from diffusion import commands, load
from diffusion.loading import rebuild
from diffusion.runs.defaults import add_run_defaults
from diffusion.runs.diffusers_folder import WEIGHTS, read_config
from models.autoencoder.diffusers_kl import DiffusersKL

pytest.importorskip("diffusers")

from diffusers import AutoencoderKL, UNet2DModel

pytestmark = pytest.mark.commands

GREY = {"in_channels": 1, "out_channels": 1, "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": [8, 16], "latent_channels": 4,
        "norm_num_groups": 4, "sample_size": 16, "scaling_factor": 0.5, "shift_factor": 0.25}
FAST = [*DIGITS, "callbacks.pictures.count=0", "space=diffusers_kl"]


def save(folder, seed=3, **settings):
    """A first stage with weights of its own, in a folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoencoderKL(**{**GREY, **settings}).save_pretrained(folder)
    return folder


def draw(model):
    return model.sample([0, 1], recipe=model.recipe(["sampler.num_steps=2"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("stages") / "vae")


@pytest.fixture(scope="module")
def original(folder):
    return AutoencoderKL.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """Two steps in the latents of a folder that is gone by now, and what it was then."""
    gone = shutil.copytree(folder, tmp_path_factory.mktemp("gone") / "vae")
    run = train(tmp_path_factory.mktemp("runs"), *FAST, f"space.folder={gone}", "max_steps=2", "run.name=ldm")
    before = draw(load(run.folder, device="cpu"))
    shutil.rmtree(gone)
    return run, gone, before


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def space_of(folder):
    """The space of a folder as a new training has it."""
    from configs.values import to_plain

    space = construct(to_plain(compose("train", ["space=diffusers_kl", f"space.folder={folder}"]))["space"]).eval()
    space.prepare()
    return space


class TestSpace:
    def test_it_is_diffusers_own(self, folder, original, images):
        stage = space_of(folder).first_stage
        posterior = original.encode(images).latent_dist
        moments = stage.encode(images)
        torch.testing.assert_close(moments.mean, posterior.mean, atol=1e-6, rtol=0)
        torch.testing.assert_close(moments.std, posterior.std, atol=1e-6, rtol=0)
        torch.testing.assert_close(stage.decode(posterior.mean), original.decode(posterior.mean).sample, atol=1e-6,
                                   rtol=0)
        assert (stage.in_channels, stage.latent_channels, stage.factor) == (1, 4, 2)

    def test_scale_and_shift_are_those_of_its_config(self, folder, original, images):
        """As StableDiffusion3Pipeline has it: (latents - shift_factor) * scaling_factor, and back."""
        space = space_of(folder)
        posterior = original.encode(images).latent_dist
        x = space.encode(images)
        torch.testing.assert_close(x, (posterior.mean - 0.25) * 0.5, atol=1e-6, rtol=0)
        torch.testing.assert_close(space.decode(x), original.decode(x / 0.5 + 0.25).sample, atol=1e-5, rtol=0)
        rng = BatchStream(0, 5, slice(0, 2), 2)
        noise, drawn = rng.normal("posterior", x.shape), space.draw(images, rng)
        expected = (posterior.mean + posterior.std * noise - 0.25) * 0.5
        torch.testing.assert_close(drawn, expected, atol=2e-3, rtol=0)  # moments are kept in half precision

    def test_without_a_shift_there_is_none(self):
        stage = DiffusersKL({**GREY, "shift_factor": None})
        assert (stage.latent_mean, stage.latent_std) == ([0] * 4, [2] * 4)

    def test_statistics_of_the_channels_are_used(self):
        """As StableDiffusionXLPipeline has it: z = x * latents_std / scaling_factor + latents_mean."""
        stage = DiffusersKL({**GREY, "latents_mean": [1, 2, 3, 4], "latents_std": [2, 1, 1, 4]})
        assert (stage.latent_mean, stage.latent_std) == ([1, 2, 3, 4], [4, 2, 2, 8])

    def test_gradients_flow(self, folder, images):
        space = space_of(folder)
        x = images.clone().requires_grad_()
        space.decode(space.encode(x)).sum().backward()
        assert x.grad.isfinite().all()
        assert x.grad.abs().sum() > 0

    def test_any_size_that_the_factor_divides(self, folder):
        space = space_of(folder)
        assert space.shape((1, 22, 22)) == (4, 11, 11)
        for image, fix in (((3, 16, 16), "data.channels=1"), ((1, 15, 15), "data.size=16")):
            with pytest.raises(UserError, match=fix):
                space.shape(image)

    def test_old_names_and_half_precision_are_read(self, folder, original, images, tmp_path):
        old = shutil.copytree(folder, tmp_path / "vae")
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        state = {}
        for name, value in load_file(old / WEIGHTS).items():
            for new, before in names.items():
                name = name.replace(f".{new}.", f".{before}.")
            state[name] = value.half()
        assert "encoder.mid_block.attentions.0.proj_attn.bias" in state
        save_file(state, old / WEIGHTS)
        mine = space_of(old).first_stage.encode(images).mean
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, original.encode(images).latent_dist.mean, atol=1e-2, rtol=1e-2)


class TestRun:
    def test_its_checkpoint_is_enough(self, run, original):
        trained, gone, before = run
        model = load(trained.folder, device="cpu")
        assert not gone.exists()
        assert model.shape == (4, 8, 8)
        assert torch.equal(draw(model), before)
        for name, value in original.state_dict().items():
            assert torch.equal(model.space.first_stage.vae.state_dict()[name], value)

    def test_what_it_is_does_not_hold_the_place(self, run, folder):
        from diffusion.runs.identity import extract_identity

        trained, gone, _ = run
        identity = extract_identity(trained.config)
        assert str(gone) not in json.dumps(identity)
        assert identity["space"]["checksum"] == space_of(folder).checksum
        assert identity["space"]["first_stage"]["config"] == {
            **dict.fromkeys(("latents_mean", "latents_std")), "act_fn": "silu", "force_upcast": True,
            "layers_per_block": 1, "mid_block_add_attention": True, "use_quant_conv": True,
            "use_post_quant_conv": True, **GREY}

    def test_it_is_sampled_and_evaluated(self, run):
        trained = run[0]
        pictures = commands.sample(compose("sample", add_run_defaults(
            [f"run={trained.folder}", "samples=0-1", "sampler.num_steps=2", "device=cpu"])))
        assert (pictures / "000001.png").is_file()
        result = commands.evaluate(compose("evaluate", add_run_defaults(
            [f"run={trained.folder}", "metrics=quick", "judge=none", "count=8", "sampler.num_steps=2", "device=cpu",
             "baseline=false"])))
        assert result["rows"]["samples"]

    def test_it_goes_on_without_the_folder(self, run, folder, tmp_path):
        trained, gone, _ = run
        runs = shutil.copytree(trained.folder.parents[1], tmp_path / "runs")
        same = [*FAST, "run.name=ldm", "max_steps=4"]
        resumed = train(runs, *same, f"space.folder={gone}")
        whole = train(tmp_path / "whole", *same, f"space.folder={folder}")
        mine, other = (load(each.folder, device="cpu").weights.state_dict() for each in (resumed, whole))
        assert all(torch.equal(mine[name], value) for name, value in other.items())
        with pytest.raises(UserError, match="cannot be read"):  # a new one needs the weights
            train(runs, *FAST, f"space.folder={gone}", "run.name=new")

    def test_other_weights_are_another_run(self, run, tmp_path):
        runs = shutil.copytree(run[0].folder.parents[1], tmp_path / "runs")
        with pytest.raises(UserError, match=r"space\.checksum"):
            train(runs, *FAST, f"space.folder={save(tmp_path / 'vae', seed=4)}", "run.name=ldm", "max_steps=4")

    def test_another_run_brings_the_weights(self, run, tmp_path, original):
        """Its config is a stranger's: the folder that it names is not read."""
        cfg = compose("train", [*DIGITS, f"run.root={tmp_path}", "callbacks.pictures.count=0", "max_steps=1"])
        cfg.space = {"_target_": "diffusion.spaces.diffusers_kl.DiffusersLatent",
                     **{name: f"${{of:{run[0].folder},space.{name}}}" for name in ("first_stage", "checksum")}}
        with pytest.raises(UserError, match="without the folder of its weights"):
            commands.train(cfg, "test")
        cfg.begin = {"base": {"run": str(run[0].folder), "map": {"space": "space"}}}
        stage = load(commands.train(cfg, "test").folder, device="cpu").space.first_stage
        assert torch.equal(stage.vae.decoder.conv_out.weight, original.decoder.conv_out.weight)

    @pytest.mark.faults
    @pytest.mark.parametrize(("config", "said"), [
        ({"block_out_channels": [2**20, 2**20]}, "more than the"), ({"layers_per_block": 10**6}, "more than the"),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 2}, "CrossAttnDownBlock2D"), ({"pickle": "x"}, "pickle"),
        ({"act_fn": {"_target_": "os.system"}}, "_target_"), ({"scaling_factor": 0}, "a positive scale")])
    def test_a_strangers_config_makes_nothing_else(self, run, config, said):
        model = load(run[0].folder, device="cpu")
        space = model.config["space"]
        stage = {**space["first_stage"], "config": {**space["first_stage"]["config"], **config}}
        with pytest.raises(UserError, match=said):
            rebuild({**model.config, "space": {**space, "first_stage": stage}}, model.weights.state_dict(), "a file",
                    ("degradations", "models", "samplers", "diffusion"))


def change(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def refuse(tmp_path, *overrides) -> str:
    """What train.py says, which ends with 2 and leaves nothing behind."""
    said = done("train.py", *FAST, f"run.root={tmp_path / 'runs'}", *overrides, code=2)
    assert not (tmp_path / "runs").exists()
    return said


@pytest.mark.faults
class TestRefusals:
    @pytest.mark.parametrize(("settings", "said"), [
        ({"_class_name": "VQModel"}, "a VQModel"), ({"_class_name": None}, "nothing of diffusers"),
        ({"act_fn": "${oc.env:HOME}"}, "act_fn"), ({"act_fn": {"_target_": "os.system"}}, "act_fn"),
        ({"scaling_factor": float("inf")}, "scaling_factor"), ({"layers_per_block": 2**30}, "layers_per_block"),
        ({"sample_size": [[8]]}, "sample_size"), ({"act_fn": "x" * 2**20}, "more than 1048576 bytes")])
    def test_a_config_that_is_none(self, folder, tmp_path, settings, said):
        vae = shutil.copytree(folder, tmp_path / "vae")
        change(vae, **settings)
        with pytest.raises(UserError, match=said):
            read_config(vae)

    @pytest.mark.parametrize(("settings", "said"), [
        ({"later": 1}, "later in the config"), ({"layers_per_block": 2}, "tensors there"),
        ({"block_out_channels": [8, 12]}, "conv"), ({"out_channels": 3}, "3 channels")])
    def test_a_config_that_does_not_fit(self, folder, tmp_path, settings, said):
        vae = shutil.copytree(folder, tmp_path / "vae")
        change(vae, **settings)
        with pytest.raises(UserError, match=said):
            space_of(vae)

    def test_a_folder_that_is_none(self, folder, tmp_path):
        assert "no folder" in refuse(tmp_path, f"space.folder={tmp_path / 'none'}")
        assert "space.folder=None" in refuse(tmp_path, "space.folder=null")
        inside = shutil.copytree(folder, tmp_path / "pipeline" / "vae").parent
        assert f"space.folder={inside / 'vae'}" in refuse(tmp_path, f"space.folder={inside}")
        (inside / "vae" / WEIGHTS).unlink()
        assert WEIGHTS in refuse(tmp_path, f"space.folder={inside / 'vae'}")
        (inside / "vae" / "config.json").write_text("[" * 100_000)
        with pytest.raises(UserError, match="cannot be read"):
            read_config(inside / "vae")

    def test_another_model(self, tmp_path):
        UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
                    down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2
                    ).save_pretrained(tmp_path / "unet")
        assert "a UNet2DModel" in refuse(tmp_path, f"space.folder={tmp_path / 'unet'}")

    def test_damaged_weights(self, folder, tmp_path):
        vae = shutil.copytree(folder, tmp_path / "vae")
        state = load_file(vae / WEIGHTS)
        save_file({**state, "decoder.conv_out.bias": torch.full((1,), torch.nan)}, vae / WEIGHTS)
        with pytest.raises(UserError, match="not finite"):
            space_of(vae)
        (vae / WEIGHTS).write_bytes((vae / WEIGHTS).read_bytes()[:1000])
        assert "cannot be read" in refuse(tmp_path, f"space.folder={vae}")

    def test_images_that_do_not_fit(self, folder, tmp_path):
        assert "data.size=16" in refuse(tmp_path, f"space.folder={folder}", "data.size=15")
        rgb = save(tmp_path / "vae", in_channels=3, out_channels=3)
        assert "data.channels=3" in refuse(tmp_path, f"space.folder={rgb}")

    def test_without_the_library(self, folder, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "diffusers", None)
        assert 'pip install "thaw[latent]"' in refuse(tmp_path, f"space.folder={folder}")
