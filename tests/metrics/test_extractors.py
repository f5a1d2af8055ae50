"""Extractors: that they are the networks whose names they carry, and take no other weights."""

import math
import pickle

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import CLASSIFIER, DIGITS, train
from PIL import Image
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

from configs import UserError, build
from diffusion.data.pixels import to_float
from diffusion.data.sets.digits import Digits
from diffusion.metrics.extractors import inception as inception_module
from diffusion.metrics.extractors.classifier import ClassifierExtractor, take_predictions
from diffusion.metrics.extractors.dinov2 import DINOv2Extractor, positions
from diffusion.metrics.extractors.inception import InceptionExtractor
from diffusion.metrics.extractors.random import RandomExtractor
from diffusion.runs import checkpoint


def pictures(n, size=32, channels=3, seed=0):
    return torch.randint(256, (n, channels, size, size), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(seed))


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class TestRandom:
    def test_it_depends_on_the_seed_alone(self):
        images = pictures(5)
        torch.manual_seed(1)
        first = RandomExtractor()(images).values
        torch.manual_seed(2)
        assert torch.equal(RandomExtractor()(images).values, first)
        assert first.shape == (5, 2 * 8 * (1 + 2 + 4 + 8))
        assert not torch.allclose(RandomExtractor(seed=1)(images).values, first)
        others = [RandomExtractor(), RandomExtractor(seed=1), RandomExtractor(width=4)]
        assert len({extractor.identity for extractor in others}) == 3
        assert [extractor.name for extractor in others] == ["random", "random-1", "random"]
        assert not any(extractor.official for extractor in others)

    def test_rows_do_not_depend_on_each_other(self):
        images, extractor = pictures(9), RandomExtractor()
        whole = extractor(images).values
        for rows in ([4], [8, 4, 0]):
            torch.testing.assert_close(extractor(images[rows]).values, whole[rows])

    @pytest.mark.parametrize("size", [1, 28])
    def test_grey_is_repeated(self, size):
        grey, extractor = pictures(3, size, channels=1), RandomExtractor()
        torch.testing.assert_close(extractor(grey).values, extractor(grey.repeat(1, 3, 1, 1)).values)
        assert extractor(grey).values.isfinite().all()

    def test_no_width(self):
        with pytest.raises(UserError, match=r"extractor\.width=0"):
            RandomExtractor(width=0)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """torch-fidelity's network with random weights."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = fidelity.FeatureExtractorInceptionV3("random", ["2048"])
    torch.save(network.state_dict(), path)
    return path


class TestInception:
    def test_it_is_that_of_torch_fidelity(self, inception_file):
        ours, images = InceptionExtractor(inception_file), pictures(2, 28)
        theirs = fidelity.FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], str(inception_file))
        found = ours(images)
        values, logits = theirs(images)
        assert (found.values.shape, found.logits.shape) == ((2, 2048), (2, 1008))
        torch.testing.assert_close(found.values, values)
        torch.testing.assert_close(found.logits, logits)
        torch.testing.assert_close(found.logits, values @ theirs.fc.weight.mT, msg="without the bias")
        grey = pictures(1, 20, channels=1)
        torch.testing.assert_close(ours(grey).values, theirs(grey.repeat(1, 3, 1, 1))[0])

    def test_only_the_official_weights_have_its_name(self, inception_file, monkeypatch):
        other = InceptionExtractor(inception_file)
        assert other.name == f"inception-{other.identity[:8]}"
        assert len(other.identity) == 64
        assert not other.official
        assert inception_module.OFFICIAL == "6726825d"
        monkeypatch.setattr(inception_module, "OFFICIAL", other.identity[:8])
        official = InceptionExtractor(inception_file)
        assert official.name == "inception"
        assert official.official == {"fd": "FID", "kid": "KID", "is": "IS"}


@pytest.fixture(scope="module")
def dino_state():
    """timm's small network at the authors' 518 px, random, with the authors' names of the weights."""
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=518)
    state = {name: torch.randn_like(value) * 0.05 + (value if value.ndim == 1 and "ls" not in name else 0)
             for name, value in network.state_dict().items()}
    return state | {"mask_token": torch.zeros(1, 384)}


@pytest.fixture(scope="module")
def dino_file(dino_state, tmp_path_factory):
    path = tmp_path_factory.mktemp("dino") / "dinov2_vits14_pretrain.pth"
    torch.save(dino_state, path)
    return path


def vision_transformer(w, x):
    """Dosovitskiy et al. 2021 with scaled residuals, as the authors of DINOv2 wrote it; the class token."""
    def norm(x, name):
        return F.layer_norm(x, (384,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return x @ w[f"{name}.weight"].mT + w[f"{name}.bias"]

    patches = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), patches.flatten(2).mT], 1) + positions(w["pos_embed"], 16)
    for i in range(12):
        block = f"blocks.{i}"
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(2, (3, 6, 64)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT / 8).softmax(-1) @ v).movedim(1, 2).flatten(2)
        x = x + w[f"{block}.ls1.gamma"] * linear(mixed, f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + w[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
    return norm(x, "norm")[:, 0]


def cubic(x):
    """The kernel of Keys 1981 with a = -0.75."""
    x, a = abs(x), -0.75
    return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0


class TestDINOv2:
    def test_it_is_the_authors_network(self, dino_file, dino_state):
        extractor, images = DINOv2Extractor(dino_file), pictures(2, 224)
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        found = extractor(images)
        assert found.values.shape == (2, 384)
        assert found.logits is None
        torch.testing.assert_close(found.values, vision_transformer(dino_state, (images / 255 - mean) / std),
                                   atol=1e-3, rtol=1e-3)
        assert found.values.std() > 0.1
        assert (found.values[0] - found.values[1]).abs().max() > 0.01
        assert extractor.name == "dinov2-small"
        assert not extractor.official

    @pytest.mark.parametrize(("size", "channels"), [(28, 1), (64, 3), (300, 3)])
    def test_images_are_resized_as_pillow_does(self, dino_file, size, channels):
        """Stein et al. take torchvision's resizing of Pillow images: bicubic, 8 bits."""
        seen, extractor, images = [], DINOv2Extractor(dino_file), pictures(1, size, channels)
        extractor._network = lambda x: seen.append(x) or torch.zeros(1, 384)
        extractor(images)
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        pixels = (seen[0][0] * std + mean) * 255
        image = Image.fromarray(images[0].movedim(0, -1).squeeze(-1).numpy()).convert("RGB")
        expected = torch.from_numpy(np.array(image.resize((224, 224), Image.Resampling.BICUBIC))).movedim(-1, 0)
        off = (pixels - expected).abs()
        assert off.max() < 2.1
        assert (off > 0.1).double().mean() < 0.02

    def test_positions_stay_where_they_are(self, dino_state):
        assert torch.equal(positions(dino_state["pos_embed"], 37), dino_state["pos_embed"])

    @pytest.mark.parametrize(("row", "column"), [(0, 0), (7, 4), (15, 15)])
    def test_positions_are_interpolated_as_by_the_authors(self, row, column):
        """Bicubic at ``(i + 1/2) / scale - 1/2`` with their scale ``16.1 / 37``, edges repeated."""
        grid = torch.randn(37, 37, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        found = positions(torch.cat([torch.full((1, 1, 2), 7.0), grid.reshape(1, -1, 2)], dim=1), 16)
        assert found.shape == (1, 1 + 16 * 16, 2)
        assert found[0, 0].tolist() == [7, 7]
        y, x = ((i + 0.5) * 37 / 16.1 - 0.5 for i in (row, column))
        expected = sum(cubic(y - i) * cubic(x - j) * grid[min(max(i, 0), 36), min(max(j, 0), 36)]
                       for i in range(math.floor(y) - 1, math.floor(y) + 3)
                       for j in range(math.floor(x) - 1, math.floor(x) + 3))
        assert torch.allclose(found[0, 1 + 16 * row + column], expected, atol=1e-10)

    def test_the_large_one_is_that_of_the_literature(self, monkeypatch, tmp_path):
        """Without its weights of a gigabyte."""
        class Network(torch.nn.Module):
            def load_state_dict(self, content):
                assert content["pos_embed"].shape == (1, 257, 1024)

        monkeypatch.setattr(timm, "create_model", lambda name, **_: Network())
        torch.save({"pos_embed": torch.zeros(1, 1 + 37 * 37, 1024)}, tmp_path / "large.pth")
        extractor = DINOv2Extractor(tmp_path / "large.pth")
        assert extractor.name == "dinov2-large"
        assert extractor.official == {"fd": "FD-DINOv2"}

    @pytest.mark.parametrize("change", [
        lambda w: w | {"register_tokens": torch.zeros(1, 4, 384)},
        lambda w: {name: value for name, value in w.items() if "ls1" not in name},
        lambda w: w | {"patch_embed.proj.weight": torch.zeros(384, 3, 16, 16)},
        lambda w: w | {"pos_embed": torch.zeros(1, 197, 192)},
        lambda w: w | {"pos_embed": torch.zeros(1, 196, 384)},
        lambda w: w | {"pos_embed": torch.zeros(())}])
    def test_weights_of_other_transformers(self, dino_state, change, tmp_path):
        torch.save(change(dino_state), tmp_path / "weights.pth")
        with pytest.raises(UserError, match="another network") as error:
            DINOv2Extractor(tmp_path / "weights.pth")
        assert "extractor.weights=" in error.value.fix


@pytest.mark.parametrize("extractor", [InceptionExtractor, DINOv2Extractor])
class TestWeights:
    @pytest.mark.parametrize(("content", "words"), [
        (b"", "cannot be read"), (b"no weights" * 100, "cannot be read"),
        (b"PK\x03\x04" + bytes(100), "cannot be read"),
        ([torch.zeros(1)], "something else"), ({"epoch": 3}, "something else"), ({1: torch.zeros(1)}, "something else"),
        ({"model": {"a": torch.zeros(1)}}, "something else"), ({}, "another network"),
        ({"fc.weight": torch.zeros(3)}, "another network")])
    def test_other_files(self, extractor, content, words, tmp_path):
        path = tmp_path / "weights.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(UserError, match=words) as error:
            extractor(path)
        assert str(path) in error.value.got
        assert "extractor.weights=" in error.value.fix

    def test_no_file(self, extractor, tmp_path):
        for path in (tmp_path / "weights.pth", tmp_path):
            with pytest.raises(UserError, match="no weights at"):
                extractor(path)

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("write", [
        torch.save, lambda x, path: torch.save(x, path, _use_new_zipfile_serialization=False),
        lambda x, path: path.write_bytes(pickle.dumps(x))])
    def test_code_is_never_run(self, extractor, write, tmp_path):
        write({"a": Evil(tmp_path / "trace")}, tmp_path / "weights.pth")
        with pytest.raises(UserError, match="cannot be read"):
            extractor(tmp_path / "weights.pth")
        assert not (tmp_path / "trace").exists()

    def test_a_damaged_file(self, extractor, dino_file, tmp_path):
        whole = dino_file.read_bytes()
        for part in (whole[:-100], whole[:len(whole) // 2], whole[1000:]):
            (tmp_path / "weights.pth").write_bytes(part)
            with pytest.raises(UserError, match="cannot be read"):
                extractor(tmp_path / "weights.pth")

    def test_the_network_of_the_other(self, extractor, dino_file, inception_file):
        with pytest.raises(UserError, match="another network"):
            extractor(dino_file if extractor is InceptionExtractor else inception_file)


class TestClassifier:
    @pytest.fixture(scope="class")
    def runs(self, tmp_path_factory):
        """Two runs that classify and one that makes images, of the digits."""
        root = tmp_path_factory.mktemp("runs")
        return root, *(train(root, *overrides, f"run.name={name}", experiment=experiment)
                       for name, overrides, experiment in (
                           ("first", CLASSIFIER, "classifier_digits"), ("second", CLASSIFIER, "classifier_digits"),
                           ("third", DIGITS, "ddpm_digits")))

    def test_features_are_those_of_the_run(self, runs):
        _, first, second, _ = runs
        images = pictures(9, 16, channels=1)
        extractor = ClassifierExtractor(first.folder, device="cpu")
        extractor.check((9, 1, 16, 16))
        found = extractor(images)
        features = extractor._model.weights.net.features(to_float(images), torch.zeros(9))
        torch.testing.assert_close(found.values, features)
        assert found.logits.shape == (9, 10)
        assert take_predictions(found).tolist() == found.logits.argmax(1).tolist()
        torch.testing.assert_close(extractor(images[4:5]).values, found.values[4:5])
        content = checkpoint.list_checkpoints(first.checkpoints)
        step, path = list(content.items())[-1]
        assert extractor.identity == f"step {step}, {path.name.split('.')[1]}"
        assert extractor.name == "classifier"
        assert not extractor.official
        assert ClassifierExtractor(str(second.folder)).run == str(second.folder)

    @pytest.mark.parametrize("shape", [(9, 1, 32, 32), (9, 3, 16, 16), (9, 1, 16, 17)])
    def test_other_images(self, runs, shape):
        with pytest.raises(UserError, match="16 x 16 px, grey") as error:
            ClassifierExtractor(runs[1].folder).check(shape)
        assert "extractor=random" in error.value.fix

    def test_a_run_that_makes_images(self, runs):
        with pytest.raises(UserError, match="which can restore images") as error:
            ClassifierExtractor(runs[3].folder)
        assert "experiment=classifier_digits" in error.value.fix

    def test_the_newest_of_the_data_is_found(self, runs):
        root, first, second, _ = runs
        data = build("data", "digits")
        assert checkpoint.read_latest(first.checkpoints)["data"] == data.fingerprint()
        for newer in (first.folder, second.folder):
            path = newer / "config.yaml"
            path.touch()
            assert next(ClassifierExtractor.find_runs([root], data)) == newer
        assert not [*ClassifierExtractor.find_runs([root], Digits(size=8))]
        assert not [*ClassifierExtractor.find_runs([root / "nothing"], data)]
        for path in checkpoint.list_checkpoints(second.checkpoints).values():
            path.write_bytes(b"damaged")
        assert next(ClassifierExtractor.find_runs([root], data)) == first.folder, "a damaged run is passed over"
