"""Embeddings: InfoNCE, what is alike, a run of it, and the identity that another run is told by it."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import NANO, done, embedding, small, train
from networks import randomized

from configs import UserError, compose, registry
from degradations.randomness import BatchStream, Streams
from diffusion import commands, load
from diffusion.data.pixels import to_float
from diffusion.evaluation.embeddings import embed
from diffusion.metrics.likeness import measure_likeness
from diffusion.objectives.embedding import Contrastive, NetworkEmbedder, Temperature, compare_pairs, mask_alike
from diffusion.runs import checkpoint
from diffusion.runs.defaults import add_run_defaults
from diffusion.sampling.inputs import Inputs
from diffusion.sampling.selection import derive_signals
from models.conditioning import ConditionEncoder, VectorSignal
from models.embedder import Embedder, Embedding
from models.sources import scale_slopes

NONE = ConditionEncoder({}, 32)
DEGRADATION = registry.build("degradation", "gaussian")
FEW = ["data.count=40", "data.count_test=24"]
SMALL = ["experiment=embed_scenes", *(one for one in NANO if one != "model=nano"), *FEW, "model.base=8",
         "model.emb_dim=32", "model.length=8"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_pixels(n, side=16, seed=0):
    return torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def make_network(**changes):
    return randomized(Embedder(3, 8, base=8, multipliers=(1, 2), emb_dim=16, **changes))


class Constant(Embedder):
    """The same of all images."""

    def forward(self, x, t, ctx=None, attn=None):
        return F.normalize(torch.ones(len(x), 8), dim=1)


def ask(criterion, network, pixels, reference, **known):
    n = len(pixels)
    return criterion(criterion.use(network, DEGRADATION, "32"), NONE, DEGRADATION, to_float(pixels),
                     {"reference": reference, **known}, BatchStream(1, 0, slice(0, n), n))


class TestCriterion:
    def test_it_is_the_mean_of_two_cross_entropies(self):
        scores = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0], [0.0, 3.0, 1.0]])
        p, q = (matrix.double().exp() / matrix.double().exp().sum(1, keepdim=True) for matrix in (scores, scores.T))
        expected = [-(math.log(p[i, i]) + math.log(q[i, i])) / 2 for i in range(3)]
        assert compare_pairs(scores).tolist() == pytest.approx(expected, rel=1e-6)
        truth = torch.arange(3)
        assert compare_pairs(scores).mean().item() == pytest.approx(
            (F.cross_entropy(scores, truth) + F.cross_entropy(scores.T, truth)).item() / 2)

    def test_the_loss_is_that_of_the_cosines_over_the_temperature(self):
        network, pixels, reference = make_network(), draw_pixels(4), draw_pixels(4, seed=1)
        losses = ask(Contrastive(0.2), network, pixels, reference)
        z, r = (F.normalize(network.trunk(to_float(each), torch.zeros(4)), dim=1) for each in (pixels, reference))
        assert torch.allclose(losses.values, compare_pairs(z @ r.T / 0.2), atol=1e-5)
        assert losses.logs["found"].tolist() == ((z @ r.T).argmax(1) == torch.arange(4)).float().tolist()
        assert not losses.t.any()

    @pytest.mark.parametrize("n", [2, 7])
    def test_of_what_says_nothing_it_is_the_logarithm_of_the_batch(self, n):
        losses = ask(Contrastive(), Constant(3, 8), draw_pixels(n), draw_pixels(n, seed=1))
        assert losses.values.tolist() == pytest.approx([math.log(n)] * n, rel=1e-6)

    def test_pictures_of_one_thing_are_no_negatives(self):
        """Of two things, each three times, four of six scores remain in each row."""
        source = torch.tensor([4, 9, 4, 9, 4, 9])
        losses = ask(Contrastive(), Constant(3, 8), draw_pixels(6), draw_pixels(6), source=source)
        assert losses.values.tolist() == pytest.approx([math.log(4)] * 6, rel=1e-6)
        scores = mask_alike(normal(6, 6), source)
        assert scores.diagonal().isfinite().all()
        assert (scores.isinf().sum(1) == 2).all()
        assert scores[0, [1, 3, 5]].isfinite().all()

    def test_the_temperature_is_learned_up_to_a_bound(self):
        criterion = Contrastive(0.1, learned=True)
        temperature = criterion.networks["temperature"]
        assert isinstance(temperature, Temperature)
        mine, fixed = (ask(each, make_network(), draw_pixels(4), draw_pixels(4, seed=1)).values
                       for each in (criterion, Contrastive()))
        assert torch.allclose(mine, fixed)
        mine.mean().backward()
        assert temperature.sharper.grad is not None
        assert temperature.sharper.grad != 0
        torch.nn.init.constant_(temperature.sharper, 9.0)
        assert temperature().item() == 100

    @pytest.mark.parametrize("temperature", [0.0, -1.0, 2.0, math.nan])
    def test_another_temperature_is_refused(self, temperature):
        with pytest.raises(UserError, match=r"objective\.temperature"):
            Contrastive(temperature)


class TestNetwork:
    def test_its_answers_have_length_one_whatever_the_size(self):
        for side in (8, 16, 24):
            z = make_network()(to_float(draw_pixels(3, side)), torch.zeros(3))
            assert z.norm(dim=1).tolist() == pytest.approx([1.0] * 3, rel=1e-5)

    def test_slopes_do_not_tell_colours(self):
        """``background + a (colour - background)`` with other colours: the same up to rounding."""
        a = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        colour, background = normal(5, 3, 1, 1, seed=1), normal(5, 3, 1, 1, seed=2)
        slopes = scale_slopes(background + a * (colour - background))
        assert torch.allclose(slopes, slopes[:1].expand_as(slopes), atol=1e-4)
        assert slopes.amax().item() == pytest.approx(1)
        assert (scale_slopes(torch.full((1, 3, 8, 8), 0.3)) == -1).all()
        network = make_network(slopes=True)
        z = network(background + a * (colour - background), torch.zeros(5))
        assert torch.allclose(z, z[:1].expand_as(z), atol=1e-3)

    @pytest.mark.parametrize("slopes", [False, True])
    def test_images_of_other_channels_are_refused(self, slopes):
        with pytest.raises(UserError, match="images with 1 channels"):
            make_network(slopes=slopes)(torch.zeros(2, 1, 8, 8), torch.zeros(2))

    def test_what_makes_no_unit_vectors_is_refused(self):
        with pytest.raises(UserError, match="an embedding by UNet"):
            NetworkEmbedder(registry.build("model", "nano")).try_out(torch.zeros(1, 1, 8, 8), NONE.null(1))


class TestLikeness:
    def test_each_number_by_loops(self):
        """Things 0, 1, 2 of one class and 3 of another; each thing has the reference of its first image."""
        source, label = torch.tensor([0, 0, 1, 2, 3, 1]), torch.tensor([5, 5, 5, 5, 6, 5])
        z, r = (F.normalize(normal(6, 4, seed=seed), dim=1) for seed in (0, 1))
        found = measure_likeness(z, r, source, label)
        first = {0: 0, 1: 2, 2: 3, 3: 4}
        for i in range(6):
            cosines = {thing: float(z[i] @ r[row]) for thing, row in first.items()}
            rivals = [cosines[thing] for thing, row in first.items() if thing != source[i] and label[row] == label[i]]
            assert found.found[i] == (max(cosines, key=lambda thing: cosines[thing]) == source[i])
            assert found.own[i].item() == pytest.approx(float(z[i] @ r[i]), abs=1e-6)
            if rivals:
                assert found.others[i].item() == pytest.approx(np.mean(rivals), abs=1e-6)
                assert bool(found.above[i]) == (float(z[i] @ r[i]) > np.quantile(rivals, 0.95))
            else:
                assert found.others[i].isnan()
                assert not found.above[i]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs"), *SMALL, "run.name=first", experiment="embed_scenes")


class TestRun:
    def test_it_is_measured(self, run):
        result = commands.evaluate(compose("evaluate", [f"run={run.folder}", "device=cpu"]))
        numbers = {name: number["value"] for name, number in result["rows"]["test split"].items()}
        model = load(run.folder, device="cpu")
        images = registry.build("data", "scenes_digits", count=40, count_test=24, combos="all",
                                signals=["label", "source", "reference"]).split("test")
        z, r = (embed(model, pixels) for pixels in (images.images, images.signals["reference"]))
        likeness = measure_likeness(z, r, images.signals["source"], images.signals["label"])
        assert numbers["cosine with its reference"] == pytest.approx((z * r).sum(1).mean().item())
        assert numbers["reference found"] == pytest.approx(likeness.found.double().mean().item())
        assert (run.pictures / "nearest-00000003.png").is_file()
        assert "found" in run.metrics.read_text().splitlines()[0].split(",")

    def test_nothing_is_drawn_with_it(self, run):
        said = done("sample.py", f"run={run.folder}", code=2)
        assert "can embed images, and makes none" in said

    def test_images_without_references_are_refused_before_the_work(self, tmp_path):
        with pytest.raises(UserError, match="without a reference"):
            train(tmp_path / "runs", *SMALL, "data.signals=[label]")
        assert not (tmp_path / "runs").exists()

    def test_a_learned_temperature_is_in_the_checkpoint(self, tmp_path):
        run = train(tmp_path, *SMALL, "objective.learned=true", "callbacks.pictures.count=0")
        content = checkpoint.read_latest(run.checkpoints)
        assert content is not None
        assert content["raw"]["critics.temperature.sharper"] != 0


class TestEmbeddingOfReferences:
    def test_it_is_of_the_reference_where_there_is_one(self):
        network = make_network()
        source = Embedding(network, of="reference")
        images, reference = to_float(draw_pixels(3)), draw_pixels(3, seed=1)
        rng = Streams(0, (0, 1, 2))
        of_reference, of_images = source(images, {"reference": reference}, rng), source(images, {}, rng)
        assert torch.equal(of_reference, 8**0.5 * network(to_float(reference), torch.zeros(3)))
        assert torch.equal(of_images, 8**0.5 * network(images, torch.zeros(3)))
        assert of_images.square().mean(1).tolist() == pytest.approx([1.0] * 3, rel=1e-5)

    def test_the_encoder_hands_it_the_reference(self):
        network = make_network()
        encoder = ConditionEncoder({"identity": VectorSignal(8, 16)}, 16, {"identity": Embedding(network, "reference")})
        reference = draw_pixels(2, seed=1)
        made = encoder.derive(to_float(draw_pixels(2)), {"reference": reference}, Streams(0, (0, 1)))
        assert torch.equal(made["identity"], 8**0.5 * network(to_float(reference), torch.zeros(2)))
        encoder.check_sources(["reference"])
        with pytest.raises(UserError, match="which embeds reference, for images without reference"):
            encoder.check_sources(["text"])
        assert torch.equal(encoder.mirror({"reference": reference}, 16)["reference"], reference.flip(-1))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A model that is told an identity, of two steps."""
    return train(tmp_path_factory.mktemp("told"), *small("identity_scenes"), *FEW, "max_steps=2", "run.name=first",
                 "callbacks.pictures.count=0", experiment="identity_scenes")


class TestIdentity:
    def test_the_embedding_is_frozen_in_the_checkpoint(self, told):
        content, other = checkpoint.read_latest(told.checkpoints), checkpoint.read_latest(load_run(embedding()))
        assert content is not None
        assert other is not None
        mine = {name.removeprefix("encoder.sources.identity.network."): value
                for name, value in content["frozen"].items() if name.startswith("encoder.sources")}
        theirs = {name.removeprefix("net."): value for name, value in other["ema"].items() if name.startswith("net.")}
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
        assert not any("sources" in name for name in content["raw"])

    def test_its_signal_is_the_embedding_of_the_reference(self, told):
        model, embedder = load(told.folder, device="cpu"), load(embedding(), device="cpu")
        images = registry.build("data", "scenes_digits", count=4, count_test=4, signals=["text", "reference"])
        made = derive_signals(model, Inputs(images.split("test")), range(4))["identity"]
        assert torch.allclose(made, 8**0.5 * embed(embedder, images.split("test").signals["reference"]), atol=1e-6)

    @pytest.mark.parametrize("of_photos", [False, True])
    def test_it_draws_whom_it_is_told(self, told, of_photos, tmp_path):
        asked = [f"run={told.folder}", "samples=0-1", "sampler.num_steps=2", "text=a red seven", "overwrite=true"]
        if of_photos:
            from PIL import Image

            (tmp_path / "photos").mkdir()
            for i, pixels in enumerate(draw_pixels(2, 20)):
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{i}.png")
            asked.append(f"identity.of={tmp_path / 'photos'}")
        made = commands.sample(compose("sample", add_run_defaults(asked)))
        entries = json.loads((made / "manifest.json").read_text())["samples"]
        assert [len(one["condition"]["identity"]) for one in entries] == [8, 8]
        assert entries[0]["condition"]["identity"] != entries[1]["condition"]["identity"]


def load_run(folder):
    from diffusion.runs.run import Run

    return Run.at(folder).checkpoints
