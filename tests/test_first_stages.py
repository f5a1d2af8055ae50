"""What the commands do with autoencoders, against the same by hand. Two tiny networks of a guest package, one of them
with a codebook, stand for all."""

import json
import logging

import numpy as np
import pytest
import torch
from helpers import CLASSIFIER, done, installed, train, write_package
from omegaconf import OmegaConf
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from stages import CODES, FILES, STAGE

from configs import UserError, compose, registry
from diffusion import commands, load
from diffusion.data import Digits
from diffusion.data.pixels import to_float, to_uint8
from diffusion.metrics.frechet import frechet
from diffusion.objectives.autoencoder import NetworkAutoencoder
from diffusion.objectives.evaluator import NetworkRestorer
from diffusion.runs.defaults import add_run_defaults

pytestmark = pytest.mark.commands

COUNT, HELD_OUT = 40, 296


@pytest.fixture(scope="module", autouse=True)
def guest(tmp_path_factory):
    with installed(write_package(tmp_path_factory.mktemp("site"), FILES), "guest_stages"):
        yield


@pytest.fixture(scope="module")
def stages(guest, tmp_path_factory):
    """A few steps of each network, by its name."""
    root = tmp_path_factory.mktemp("runs")
    return {name: train(root, *STAGE, f"model={name}", f"run.name={name}", experiment="stage")
            for name in ("plain", "quantized")}


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return train(tmp_path_factory.mktemp("judges"), *CLASSIFIER, "run.name=judge", experiment="classifier_digits")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five digits in two folders, and a photo that has to be cropped."""
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(Digits().split("test").images[:5]):
        path = folder / ("even" if i % 2 == 0 else "odd") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    Image.fromarray(np.full((20, 30), 99, np.uint8)).save(folder / "wide.png")
    return folder


def draw(run, *overrides):
    return commands.sample(compose("sample", add_run_defaults([f"run={run.folder}", "device=cpu", *overrides])))


def evaluate(run, *overrides):
    return commands.evaluate(compose("evaluate", add_run_defaults(
        [f"run={run.folder}", "device=cpu", f"count={COUNT}", "batch=9", *overrides])))


def reconstruct(run, images):
    """By hand, from Python."""
    with torch.no_grad():
        return load(run.folder, device="cpu").use(NetworkAutoencoder).reconstruct(images)


def chosen():
    """The held-out images that are measured, and their classes."""
    pixels, signals = Digits().split("test").batch(torch.arange(COUNT) * HELD_OUT // COUNT)
    return to_float(pixels), signals["label"]


class TestPhotos:
    @pytest.mark.parametrize("batch", [64, 2])
    def test_they_are_what_python_makes(self, stages, photos, tmp_path, batch):
        for name, run in stages.items():
            folder = draw(run, f"input={photos}", f"out={tmp_path / name}", f"batch={batch}")
            files = ["even_0", "even_2", "even_4", "odd_1", "odd_3", "wide"]
            assert sorted(path.stem for path in folder.glob("*.png")) == [*files[:3], "grid", *files[3:]]
            x0 = torch.stack([torch.tensor(np.array(Image.open(photos / f"{file.replace('_', '/')}.png")))[None]
                              for file in files[:5]])
            expected = to_uint8(reconstruct(run, to_float(x0)))
            for file, pixels in zip(files, expected, strict=False):
                made = np.array(Image.open(folder / f"{file}.png")).astype(int)
                assert abs(made - pixels[0].numpy()).max() <= 1
            manifest = json.loads((folder / "manifest.json").read_text())
            assert [sample["source"] for sample in manifest["samples"]] == \
                ["even/0.png", "even/2.png", "even/4.png", "odd/1.png", "odd/3.png", "wide.png"]
            assert not {"sampler", "guidance", "evaluations_per_sample"} & set(manifest), "nothing is sampled"

    def test_the_grid_shows_pairs(self, stages, photos, tmp_path):
        folder = draw(stages["plain"], f"input={photos}", f"out={tmp_path}", "samples=0-3")
        grid = np.array(Image.open(folder / "grid.png").convert("L"))
        side, gap = 64, 2
        pairs = grid[-2 * (side + gap):, -4 * (side + gap):]  # beside and below the words
        for column, file in enumerate(("even_0", "even_2", "even_4", "odd_1")):
            for row, path in enumerate((photos / f"{file.replace('_', '/')}.png", folder / f"{file}.png")):
                shown = pairs[row * (side + gap):, column * (side + gap):][:side:4, :side:4]
                assert np.array_equal(shown, np.array(Image.open(path)))

    def test_the_same_command_again_writes_nothing(self, stages, photos, caplog):
        folder = draw(stages["plain"], f"input={photos}")
        assert folder.parent == stages["plain"].folder / "samples"
        assert folder.name.startswith("reconstruction-seed0-")
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        with caplog.at_level(logging.INFO):
            assert draw(stages["plain"], f"input={photos}") == folder
        assert "samples to draw: 0 of 6" in caplog.text
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
        (folder / "odd_1.png").unlink()
        with caplog.at_level(logging.INFO):
            draw(stages["plain"], f"input={photos}", "batch=3")
        assert "samples to draw: 1 of 6" in caplog.text
        assert (folder / "odd_1.png").is_file()

    def test_what_is_done_to_a_photo_is_said(self, stages, photos, tmp_path, caplog):
        with caplog.at_level(logging.INFO):
            draw(stages["plain"], f"input={photos / 'wide.png'}", f"out={tmp_path}")
        assert "cropped to the central square: 1" in caplog.text


class TestRefusals:
    def test_without_photos_it_says_what_it_is(self, stages):
        run = stages["plain"].folder
        said = done("sample.py", f"run={run}", code=2)
        assert "an autoencoder, and no images" in said
        assert "input=PHOTOS" in said
        assert not (run / "samples" / "grid.png").exists()

    @pytest.mark.parametrize(("typed", "name"), [
        ("sampler=ddpm", "sampler"), ("sampler.num_steps=3", "sampler"), ("guidance=pag", "guidance"),
        ("start=0.5", "start"), ("prior=noise", "prior"), ("label=3", "label"), ("twins=2", "twins"),
        ("input.t=0.5", "input.t"), ("input.degraded=true", "input.degraded")])
    def test_settings_of_sampling_mean_nothing_to_it(self, stages, photos, typed, name):
        with pytest.raises(UserError, match="which samples nothing") as error:
            draw(stages["plain"], f"input={photos}", typed)
        assert error.value.fix.endswith(f"without {name}=")

    @pytest.mark.parametrize("typed", ["sampler=ddpm", "samplers=[cold1]", "guidance=pag", "start=0.5"])
    def test_nor_to_its_evaluation(self, stages, typed):
        with pytest.raises(UserError, match="which samples nothing"):
            evaluate(stages["plain"], typed)

    def test_an_animation(self, stages, photos):
        with pytest.raises(UserError, match="in one step"):
            draw(stages["plain"], f"input={photos}", "animate=true")

    @pytest.mark.parametrize("wrong", ["input=nowhere", "input=nowhere.png"])
    def test_wrong_paths(self, stages, wrong):
        said = done("sample.py", f"run={stages['plain'].folder}", wrong, code=2)
        assert "nowhere" in said

    def test_other_runs_are_no_autoencoders(self, hot, judge):
        for run, can in ((hot, "restore"), (judge, "classify")):
            with pytest.raises(UserError, match=f"which can {can} images") as error:
                load(run.folder, device="cpu").use(NetworkAutoencoder)
            assert "one that can encode them" in error.value.wanted
            assert "autoencoder" in error.value.fix

    def test_an_autoencoder_guides_and_judges_nothing(self, stages, hot):
        place = stages["plain"].folder
        with pytest.raises(UserError, match="which can encode images"):
            load(place, device="cpu").use(NetworkRestorer)
        with pytest.raises(UserError):
            draw(hot, "samples=[0]", "guidance=autoguidance", f"guidance.autoguidance.weak.run={place}")
        with pytest.raises(UserError):
            evaluate(hot, f"judge={place}")

    def test_a_reference_of_other_images(self, stages, photos):
        with pytest.raises(UserError, match="for reconstructions of the run's own images"):
            evaluate(stages["plain"], f"reference={photos / 'even'}", "judge=none")


class TestNumbers:
    @pytest.fixture(scope="class")
    def measured(self, stages, judge):
        return {name: evaluate(run, f"judge={judge.folder}") for name, run in stages.items()}

    def test_of_pairs(self, stages, measured):
        x0 = ((chosen()[0] + 1) / 2).numpy()
        for name, run in stages.items():
            made = to_uint8(reconstruct(run, chosen()[0])).numpy() / 255
            rows = measured[name]["rows"]["reconstructions"]
            pairs = [(a[0].astype(float), b[0]) for a, b in zip(x0, made, strict=True)]
            psnr = np.mean([peak_signal_noise_ratio(a, b, data_range=1) for a, b in pairs])
            ssim = np.mean([structural_similarity(a, b, data_range=1, gaussian_weights=True, sigma=1.5,
                                                  use_sample_covariance=False) for a, b in pairs])
            assert rows["psnr"]["value"] == pytest.approx(psnr, rel=1e-4)
            assert rows["ssim"]["value"] == pytest.approx(ssim, abs=1e-4)
            assert rows["psnr"]["low"] < psnr < rows["psnr"]["high"]

    def test_through_the_eyes_of_the_judge(self, stages, judge, measured):
        model, (x0, labels) = load(judge.folder, device="cpu"), chosen()
        for name, run in stages.items():
            rows = measured[name]["rows"]["reconstructions"]
            seen = model.classify(to_float(to_uint8(reconstruct(run, x0))))
            distance = frechet(seen.features, model.classify(x0).features)
            assert rows[f"fd/classifier@{COUNT}"]["value"] == pytest.approx(distance, rel=0.02, abs=1e-3)
            assert rows["agreement"]["value"] == (seen.logits.argmax(1) == labels).double().mean().item()
            assert not any("kid" in key for key in rows), "biased for pairs"

    def test_of_codes(self, stages, measured):
        autoencoder = load(stages["quantized"].folder, device="cpu").use(NetworkAutoencoder)
        with torch.no_grad():
            codes = autoencoder.network.codes(autoencoder.encode(chosen()[0]).mean).numpy()
        found, counts = np.unique(codes, return_counts=True)
        p = counts / counts.sum()
        rows = measured["quantized"]["rows"]["reconstructions"]
        assert rows["codes used"]["value"] == len(found)
        assert rows["codes used/share"]["value"] == len(found) / CODES
        assert rows["perplexity"]["value"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
        assert not any("code" in key for key in measured["plain"]["rows"]["reconstructions"])

    def test_the_protocol_and_the_cost(self, stages, measured):
        protocol, cost = (measured["plain"][key] for key in ("protocol", "cost"))
        assert protocol["what"] == "reconstructions"
        assert protocol["count"] == COUNT
        assert protocol["checkpoint"].startswith("step-00000003.")
        assert "sampler" not in protocol
        # A convolution and its transpose, each of 3 x 16 weights at 16 places.
        assert cost["reconstructions"]["GFLOP/sample"] == round(2 * 2 * 3 * 16 * 16 / 1e9, 3)
        folder = stages["plain"].evaluations[-1].parent
        assert folder.name.startswith(f"reconstructions-{COUNT}-")
        assert (folder / "pairs.png").is_file()

    def test_raw_weights_and_floats_are_other_protocols(self, stages):
        one, other = (evaluate(stages["plain"], "metrics=quick", "judge=none", *more)["rows"]["reconstructions"]
                      for more in ((), ("rounding=none", "weights=raw")))
        assert one["rmse"]["value"] != other["rmse"]["value"]

    def test_two_are_compared_image_by_image(self, stages):
        typed = ["metrics=quick", "judge=none", "device=cpu", f"count={COUNT}"]
        mine, theirs = (compose("evaluate", add_run_defaults([f"run={run.folder}", *typed])) for run in stages.values())
        OmegaConf.update(mine, "against", str(stages["quantized"].folder))
        rows = commands.evaluate(mine, theirs)["comparison"]["reconstructions"]
        assert rows["rmse"]["paired"]
        assert rows["rmse"]["a"] != rows["rmse"]["b"]


class TestTraining:
    def test_pictures_of_pairs(self, stages):
        for run in stages.values():
            assert [path.name for path in run.pictures.iterdir()] == ["pairs-00000003.png"]

    def test_the_end_says_what_to_do_with_it(self):
        hint = registry.build("kind", "encode").hint.format(run="RUN")
        for line in ("sample.py run=RUN input=PHOTOS", "evaluate.py run=RUN", "space=latent begin.first_stage.run=RUN"):
            assert line in hint

    def test_a_codebook_is_the_sign_of_codes(self, stages):
        assert load(stages["quantized"].folder, device="cpu").use(NetworkAutoencoder).num_codes == CODES
        assert load(stages["plain"].folder, device="cpu").use(NetworkAutoencoder).num_codes is None
