"""Regressions of vectors: the loss in closed form, what is explained, and what train.py fills in."""

import copy

import pytest
import torch
from helpers import FEW, NANO, train
from sklearn.metrics import r2_score

from configs import UserError, build, compose, registry
from configs.values import to_plain
from degradations.randomness import BatchStream
from diffusion import load
from diffusion.objectives.regression import VectorRegression, VectorRegressor, describe_vector
from diffusion.objectives.times import CleanTimes
from diffusion.training.fit import fill_signals
from models.classifier import Classifier
from models.conditioning import ConditionEncoder

MEAN, SPREAD = [3.0, -1.0, 0.5, 8.0], [2.0, 0.5, 1.0, 4.0]
NETWORK = Classifier(3, 4, base=8, multipliers=(1, 2), emb_dim=16)
SCENES = ["experiment=judge_scenes_digits", "objective=regression", "objective.signal=box", "data.signals=[box]", *FEW,
          *(one for one in NANO if one != "model=nano"), "model.base=8", "model.emb_dim=32"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_the_squared_error_in_units_of_the_spread():
    criterion = VectorRegression(CleanTimes(), "box", MEAN, SPREAD)
    degradation, images, truth = registry.build("degradation", "gaussian"), normal(5, 3, 8, 8), normal(5, 2, 2, seed=1)
    regressor = criterion.use(NETWORK, degradation, "32")
    losses = criterion(regressor, ConditionEncoder({}, 16), degradation, images, {"box": truth},
                       BatchStream(0, 0, slice(0, 5), 5))
    seen = regressor(images, torch.zeros(5)).logits
    expected = ((truth.flatten(1) - seen) / torch.tensor(SPREAD)).square().mean(1)
    assert torch.allclose(losses.values, expected, atol=1e-5)
    assert (seen.mean(0) - torch.tensor(MEAN)).abs().max() < 4, "an untrained network sees about the mean"


def test_the_mean_grade_is_what_is_explained():
    truth = normal(300, 4, seed=2)
    mean, spread = truth.mean(0), truth.std(0, correction=0)
    regressor = VectorRegressor(NETWORK, signal="box", mean=mean.tolist(), spread=spread.tolist(), words=list("abcd"))
    seen = truth + normal(300, 4, seed=3) * torch.tensor([0.1, 0.5, 1.0, 0.0])
    grades = regressor.grade_each(seen, truth.view(300, 2, 2)).mean(0)
    assert grades.tolist() == pytest.approx(r2_score(truth, seen, multioutput="raw_values").tolist(), abs=1e-4)
    assert regressor.grade_logits(seen, truth).mean().item() == pytest.approx(grades.mean().item())
    assert regressor.questions == ["a", "b", "c", "d"]


def test_the_data_say_mean_spread_and_number():
    cfg = to_plain(compose("train", SCENES))
    data = build("data", "scenes_digits", count=40, count_test=4, combos="all", signals=["box"])
    filled = fill_signals(copy.deepcopy(cfg), describe_vector(cfg, data))
    boxes = data.split("train").signals["box"].flatten(1).double()
    assert filled["objective"]["mean"] == pytest.approx(boxes.mean(0).tolist())
    assert filled["objective"]["spread"] == pytest.approx(boxes.std(0, correction=0).tolist())
    assert filled["model"]["classes"] == 4
    constant = copy.copy(data)
    constant._loaded = {"train": data.split("train").choose(torch.zeros(3, dtype=torch.int64))}
    assert describe_vector(cfg, constant)["box"]["spread"] == [1.0] * 4
    constant.flip = True
    with pytest.raises(UserError, match=r"data\.flip=true"):
        describe_vector(cfg, constant)


@pytest.mark.parametrize("wrong", [{"mean": [1.0], "spread": [1.0, 2.0]}, {"spread": [1.0, 0.0]},
                                   {"mean": MEAN, "words": ["a"]}])
def test_what_does_not_fit_together_is_refused(wrong):
    with pytest.raises(UserError, match="do not fit together"):
        VectorRegression(CleanTimes(), **wrong)


def test_a_network_with_other_answers_and_images_without_the_numbers_are_refused(tmp_path):
    with pytest.raises(UserError, match="4 answers for 2 numbers of box"):
        VectorRegressor(NETWORK, signal="box", mean=[1.0, 2.0], spread=[1.0, 1.0]).try_out(
            torch.zeros(1, 3, 8, 8), ConditionEncoder({}, 16).null(1))
    with pytest.raises(UserError, match="regression of landmarks"):
        VectorRegression(CleanTimes()).check_data(["label"])
    with pytest.raises(UserError, match="classifier of images without landmarks"):
        train(tmp_path, *SCENES, "objective.signal=landmarks")


def test_a_run_keeps_what_it_was_told_of_the_data(tmp_path):
    run = train(tmp_path, *SCENES, "max_steps=2", "run.name=box", "callbacks.accuracy.every=1")
    model = load(run.folder, device="cpu")
    boxes = build("data", "scenes_digits", count=40, count_test=4, combos="all", signals=["box"])
    regressor = model.use(VectorRegressor)
    assert regressor.mean.tolist() == pytest.approx(boxes.split("train").signals["box"].flatten(1).double().mean(0)
                                                    .tolist())
    assert model.classify(torch.zeros(2, 3, 16, 16)).logits.shape == (2, 4)
    assert run.read_score("accuracy") is not None
