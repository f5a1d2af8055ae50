"""LPIPS with random weights of the smallest network: the sum is torchmetrics', the way to the weights is ours."""

import pytest
import torch
import torchvision
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as theirs
from vectors import left_out

from configs import UserError
from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_float
from diffusion.metrics import lpips as module
from diffusion.metrics.base import Features, MetricInput
from diffusion.metrics.intervals import assign_groups
from diffusion.metrics.lpips import FILES, LPIPS, PerceptualDiversity


def pixels(n, channels=3, size=32, seed=0):
    return torch.randint(256, (n, channels, size, size), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(seed))


def of(images, labels=None):
    nothing = Features(torch.zeros(len(images), 1))
    return MetricInput(ImageSet(images), nothing, nothing, assign_groups(len(images), labels), conditions=labels)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache of torch."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def weights(home):
    torch.manual_seed(0)
    path = home / "hub" / "checkpoints" / FILES["squeeze"]
    path.parent.mkdir(parents=True)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)


def test_the_names_are_those_that_torchvision_downloads():
    urls = {"alex": torchvision.models.AlexNet_Weights, "vgg": torchvision.models.VGG16_Weights,
            "squeeze": torchvision.models.SqueezeNet1_1_Weights}
    assert {net: enum.IMAGENET1K_V1.url.rpartition("/")[2] for net, enum in urls.items()} == FILES


@pytest.mark.usefixtures("weights")
def test_it_is_that_of_torchmetrics():
    a, b = (to_float(pixels(4, seed=seed)) for seed in range(2))
    expected = theirs(a, b, net_type="squeeze", reduction="none")
    metric = LPIPS("squeeze")
    assert metric.lacks() is None
    torch.testing.assert_close(metric(a, b), expected)
    torch.testing.assert_close(metric(a.double() * 1.0, b.double()), expected)
    assert metric(a, b).min() > 1e-3
    assert metric(a, a).abs().max() < 1e-6


@pytest.mark.usefixtures("weights")
def test_grey_is_repeated_and_values_are_clipped():
    a, b = (to_float(pixels(2, 1, seed=seed)) for seed in range(2))
    expected = theirs(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1), net_type="squeeze", reduction="none")
    torch.testing.assert_close(LPIPS("squeeze")(a, b), expected)
    torch.testing.assert_close(LPIPS("squeeze")(a * 1.5, b), LPIPS("squeeze")((a * 1.5).clamp(-1, 1), b))


@pytest.mark.usefixtures("weights")
def test_diversity_is_the_mean_of_all_pairs_of_each_condition():
    images, labels = pixels(13), torch.tensor([0, 1, 2] * 4 + [3])
    x, means = to_float(images), []
    for label in range(3):
        rows = (labels == label).nonzero()[:, 0][:3].tolist()
        pairs = [theirs(x[[i]], x[[j]], net_type="squeeze") for i in rows for j in rows if i < j]
        means.append(float(sum(pairs) / len(pairs)))
    metric = PerceptualDiversity("squeeze", samples=3)
    measured = metric(of(images, labels))["lpips diversity/squeeze"]
    assert measured.pseudo_values.tolist() == pytest.approx(means, rel=1e-4), "a condition with one sample has no pair"
    assert measured.value == pytest.approx(sum(means) / 3, rel=1e-4)
    assert metric.lacks(of(images, labels)) is None


@pytest.mark.usefixtures("weights")
def test_diversity_of_one_condition_leaves_out_a_sample():
    images, metric = pixels(12), PerceptualDiversity("squeeze", samples=4)
    measured = metric(of(images))["lpips diversity/squeeze"]
    without = []
    for i in range(4):
        rest = torch.cat([images[:i], images[i + 1:4]])
        without.append(metric(of(rest))["lpips diversity/squeeze"].value)
    assert left_out(measured, 4) == pytest.approx(without, rel=1e-4)
    assert measured.low < measured.value < measured.high


@pytest.mark.parametrize("labels", [None, torch.zeros(10, dtype=torch.int64)])
def test_its_interval_holds_what_it_promises(labels, monkeypatch):
    """Pairs that share a sample are not independent, which an interval over pairs would not know. With another distance
    of which the truth is known: of the first pixels of uniform images, ``E |a - b|^2 = 2 var a``."""
    monkeypatch.setattr(module, "distance", lambda net, a, b: (a - b)[:, 0, 0, 0].square())
    measured = [PerceptualDiversity("squeeze")(of(pixels(10, size=1, seed=seed), labels)) for seed in range(200)]
    truth = 2 * (256**2 - 1) / 12 / 127.5**2
    held = [one["lpips diversity/squeeze"].low <= truth <= one["lpips diversity/squeeze"].high for one in measured]
    assert 0.85 <= sum(held) / 200 <= 0.995


@pytest.mark.usefixtures("home")
def test_without_the_weights_it_says_so():
    assert FILES["squeeze"] in (LPIPS("squeeze").lacks() or "")
    assert FILES["alex"] in (PerceptualDiversity().lacks(of(pixels(4))) or "")


@pytest.mark.usefixtures("weights")
def test_what_else_it_lacks():
    metric = PerceptualDiversity("squeeze")
    assert "32 px" in (metric.lacks(of(pixels(4, size=31))) or "")
    assert "at least 3" in (metric.lacks(of(pixels(4), torch.arange(4))) or "")


def test_settings():
    for make in (LPIPS, PerceptualDiversity):
        with pytest.raises(UserError, match="net=resnet"):
            make("resnet")
    with pytest.raises(UserError, match="samples=2"):
        PerceptualDiversity(samples=2)
