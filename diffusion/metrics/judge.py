"""A classifier fitted on real images, which then judges samples."""

import contextlib
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from degradations.randomness import key
from diffusion.data.base import CHUNK, Data, ImageSet
from diffusion.data.index import default_cache, write_whole
from diffusion.data.loader import Batches
from diffusion.data.pixels import to_float


class Classifier(nn.Module):
    """Three convolutions, a vector of features, a linear layer. For images of 8 to 64 px.

    :param channels: of the images
    :param classes: number of classes
    :param width: channels of the first convolution
    :param features: length of the feature vector
    """

    def __init__(self, channels: int, classes: int, width: int = 32, features: int = 64):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, features), nn.ReLU())
        self.head = nn.Linear(features, classes)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        """The feature vector of images in [-1, 1]."""
        return self.trunk(x)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits."""
        return self.head(self.trunk(x))


class Judge:
    """A fitted classifier with its accuracy on held-out images.

    :ivar accuracy: share of the held-out images that it gets right
    """

    def __init__(self, network: Classifier, held_out: ImageSet):
        self.network = network.eval().requires_grad_(False)
        right = [self._right(to_float(images), labels) for images, labels in held_out.chunks() if labels is not None]
        self.accuracy = torch.cat(right).double().mean().item()

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Features of images in [-1, 1], clipped to it."""
        return torch.cat([self.network.features(chunk.clamp(-1, 1)) for chunk in images.split(CHUNK)])

    def features_of(self, images: ImageSet) -> Float[Tensor, "n f"]:
        """Features of a whole set."""
        return torch.cat([self.features(to_float(pixels)) for pixels, _ in images.chunks()])

    def agreement(self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]) -> float:
        """Share of the images that it puts into the given class."""
        right = [self._right(*part) for part in zip(images.split(CHUNK), labels.split(CHUNK), strict=True)]
        return torch.cat(right).double().mean().item()

    def _right(self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        return self.network(images.clamp(-1, 1)).argmax(1) == labels


def fitted(data: Data, cache: Path | None = None) -> Judge:
    """The judge of a data set: fitted once, then taken from the cache folder."""
    path = (cache or default_cache()) / f"judge-{data.fingerprint()[:16]}.pt"
    train, held_out = data.split("train"), data.split("test")
    try:
        network = Classifier(data.channels, data.classes or 0)
        network.load_state_dict(torch.load(path, weights_only=True))
        return Judge(network, held_out)
    except (OSError, EOFError, RuntimeError, TypeError, pickle.UnpicklingError):
        judge = fit(train, held_out)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: torch.save(judge.network.state_dict(), file))
    return judge


def fit(train: ImageSet, held_out: ImageSet, steps: int = 400, seed: int = 0) -> Judge:
    """Fit the classifier on real images: AdamW, one cycle, batches of 128, shifts by up to a sixteenth of the side."""
    assert train.labels is not None
    assert train.names is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "judge") % 2**63)
        network = Classifier(train.shape[1], len(train.names))
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        most = train.shape[-1] // 16
        for batch in Batches(train, seed, 128):
            if batch.step == steps or batch.labels is None:
                break
            shift = torch.randint(-most, most + 1, (2,)).tolist()
            x = torch.roll(to_float(batch.images), shift, (-2, -1))
            loss = F.cross_entropy(network(x), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return Judge(network, held_out)
