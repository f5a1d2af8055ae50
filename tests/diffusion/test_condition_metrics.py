"""``evaluate.py`` of runs that are told maps, numbers and identities: of perfect samples, and of drawn ones by hand."""

import pytest
import torch
from helpers import FEW, embedding, small, train

from configs import UserError, compose, construct
from degradations.randomness import Streams
from diffusion import commands, load
from diffusion.data.files.images import Files
from diffusion.data.pixels import to_float, to_uint8
from diffusion.evaluation import subjects
from diffusion.evaluation.embeddings import embed
from diffusion.metrics.conditions import overlap
from diffusion.metrics.evidence import shuffle
from diffusion.metrics.likeness import measure_likeness
from diffusion.pictures import save_each
from models.sources import Boxes, find_boxes

pytestmark = pytest.mark.commands

COUNT = 24
RNG = Streams(0, (0,))
SAMPLED = ["sampler.num_steps=1", f"count={COUNT}", "device=cpu"]
ABOUT = ["metrics=all", "~metrics.kid", "~metrics.neighbors", "~metrics.memorization", "~metrics.fd", "~metrics.vendi",
         "~metrics.mss"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def boxed(root):
    """A model that is told the box of a digit, and a judge that reads it in images."""
    judge = train(root, "experiment=judge_scenes_digits", "objective=regression", "objective.signal=box",
                  "objective.words=[top,left,height,width]", "data.signals=[box]", *FEW, "data.count=200",
                  "max_steps=15", "optimizer.warmup=2", "model.base=8", "model.emb_dim=32", "batch=32", "run.name=box",
                  "callbacks.accuracy.every=15", "precision=32", "trainer.threads=1", "trainer.accelerator=cpu",
                  experiment="judge_scenes_digits")
    run = train(root, *small("control_scenes_box"), *FEW, "max_steps=1", "run.name=box", "callbacks.pictures.count=0",
                experiment="control_scenes_box")
    return run, judge


@pytest.fixture(scope="module")
def identified(root):
    """A model that is told identities by an embedding, and another embedding that may judge it."""
    judge = train(root, *small("embed_scenes"), *FEW, "model.length=8", "max_steps=1", "seed=1", "run.name=second",
                  "callbacks.pictures.count=0", experiment="embed_scenes")
    run = train(root, *small("identity_scenes"), *FEW, "max_steps=1", "run.name=first", "callbacks.pictures.count=0",
                experiment="identity_scenes")
    return run, judge


@pytest.fixture
def perfect(monkeypatch, tmp_path):
    """The held-out images themselves in the place of samples."""
    def found(self):
        images = to_float(self.bench.data.split("test").images)
        names = [f"{i:06d}.png" for i in range(len(images))]
        save_each(images, tmp_path, names)
        return Files(tmp_path, names, [{"text": name} for name in names]), {}

    monkeypatch.setattr(subjects.SamplesSubject, "found", found)


def evaluate(run, *overrides):
    result = commands.evaluate(compose("evaluate", [f"run={run.folder}", *SAMPLED, *overrides]))
    return {column: {name: number["value"] for name, number in numbers.items()}
            for column, numbers in result["rows"].items()} | {"": result}


def take_images(run):
    return construct(load(run.folder, device="cpu").config["data"]).split("test")


@pytest.mark.usefixtures("perfect")
def test_perfect_samples_of_boxes(boxed):
    run, judge = boxed
    rows = evaluate(run, *ABOUT)
    assert rows[""]["protocol"]["judge"]["identity"].startswith("step 15")
    samples, real = rows["samples"], rows["held-out images"]
    assert {name for name in samples if "hint" in name or "R2" in name} == {*real}
    for name, value in real.items():
        assert samples[name] == pytest.approx(value, abs=1e-6), name
    own = evaluate(judge, *ABOUT, "+data.combos=seen")["test split"]
    for name in ("R2", "R2: top", "R2: left", "R2: height", "R2: width"):
        assert real[name] == pytest.approx(own[name], abs=1e-5)
    images = take_images(run)
    box, mean = images.signals["box"].flatten(1), torch.tensor(load(judge.folder).config["objective"]["mean"])
    seen = load(judge.folder, device="cpu").classify(to_float(images.images)).logits
    error, spread = ((box[shuffle(COUNT)] - other).double().square().mean(0) for other in (seen, mean))
    assert real["R2: left, shuffled"] == pytest.approx((1 - error / spread)[1].item(), abs=1e-5)
    told = Boxes()(to_float(images.images), {"box": images.signals["box"]}, RNG)[:, 0] > 0
    f1 = overlap(told, find_boxes(to_float(images.images)))
    assert real["iou: hint"] == pytest.approx((f1 / (2 - f1)).mean().item())
    f1 = overlap(told[shuffle(COUNT)], find_boxes(to_float(images.images)))
    assert real["f1: hint, shuffled"] == pytest.approx(f1.mean().item())


@pytest.mark.usefixtures("perfect")
def test_perfect_samples_of_identities_are_as_alike_as_the_embedding_says(identified):
    run, judge = identified
    rows = evaluate(run, *ABOUT)
    samples, real = rows["samples"], rows["held-out images"]
    images = take_images(run)
    known = images.signals
    z, r = (embed(load(judge.folder, device="cpu"), pixels) for pixels in (images.images, known["reference"]))
    likeness = measure_likeness(z, r, known["source"], known["label"])
    rivals = ~likeness.others.isnan()
    assert samples["cosine: identity"] == pytest.approx((z * r).sum(1).mean().item(), abs=1e-6)
    assert samples["above 95 % of others: identity"] == pytest.approx(likeness.above[rivals].double().mean().item())
    order = shuffle(COUNT)
    assert samples["cosine: identity, shuffled"] == pytest.approx((z * r[order]).sum(1).mean().item(), abs=1e-6)
    assert all(samples[name] == pytest.approx(value, abs=1e-6) for name, value in real.items())
    assert "step 1" in rows[""]["protocol"]["embedding"]["identity"]
    assert {"loss t 0.6-1, text shuffled", "loss t 0.6-1, identity shuffled", "loss t 0.6-1, none"} <= {*rows["loss"]}
    assert "loss, text=none" not in rows, "everything can be left out"


def test_what_trained_a_run_does_not_judge_it(identified):
    run, _ = identified
    with pytest.raises(UserError, match="by which the run was trained"):
        evaluate(run, *ABOUT, f"embedding={embedding()}")
    assert "identities" in evaluate(run, *ABOUT, "embedding=none")[""]["skipped"]


def test_samples_are_compared_with_what_they_were_told(boxed):
    """Drawn samples, by hand; each of four conditions is drawn six times."""
    run, judge = boxed
    rows = evaluate(run, "~metrics.kid", "~metrics.neighbors", "~metrics.memorization", "pool=4")
    images, model = take_images(run), load(run.folder, device="cpu")
    told = images.choose(torch.arange(COUNT) % 4)
    hint = Boxes()(to_float(told.images), told.signals, RNG)
    samples = model.sample(range(COUNT), recipe=model.recipe(["sampler.num_steps=1"]), text=told.signals["text"],
                           hint=hint)
    pixels = to_float(to_uint8(samples))
    f1 = overlap(hint[:, 0] > 0, find_boxes(pixels))
    assert rows["samples"]["f1: hint"] == pytest.approx(f1.mean().item(), abs=1e-3)
    answer = load(judge.folder, device="cpu").classify(pixels)
    box, mean = told.signals["box"].flatten(1).double(), torch.tensor(load(judge.folder).config["objective"]["mean"])
    error, spread = (box - answer.logits).square().mean(0), (box - mean).square().mean(0)
    assert rows["samples"]["R2: top"] == pytest.approx((1 - error / spread)[0].item(), abs=1e-3)
    unit = torch.nn.functional.normalize(answer.features, dim=1)
    similar = [(unit[i::4] @ unit[i::4].T).mean().item() for i in range(4)]
    assert rows["samples"]["mss/classifier"] == pytest.approx(sum(similar) / 4, abs=1e-3)
    assert rows[""]["protocol"]["pool"] == 4


def test_numbers_that_were_not_asked_for_are_not_measured(boxed, tmp_path):
    """Nobody knows the box of a hint that somebody has drawn."""
    run, _ = boxed
    save_each(torch.ones(1, 1, 16, 16), tmp_path, ["drawn.png"])
    rows = evaluate(run, *ABOUT, f"+condition.hint={tmp_path}")
    assert "numbers" in rows[""]["skipped"]
    assert "f1: hint" in rows["samples"]


@pytest.mark.parametrize("wrong", ["pool=0", "pool=some"])
def test_a_pool_of_nothing_is_refused(boxed, wrong):
    with pytest.raises(UserError, match="pool"):
        evaluate(boxed[0], wrong)
