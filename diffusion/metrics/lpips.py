"""LPIPS, where the weights of its network are there."""

from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from configs import UserError
from diffusion.data.pixels import to_float
from diffusion.metrics.base import Metric, MetricInput, PairMetric
from diffusion.metrics.diversity import per_condition, too_few
from diffusion.metrics.intervals import MetricValue, jackknife, mean

FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}
"""torchvision's weights of the networks, as torch.hub keeps them; the linear layers come with torchmetrics."""
SMALLEST = 32


def weights(net: str) -> Path:
    """Where torch keeps the weights of the network ``alex``, ``vgg`` or ``squeeze``; they need not be there."""
    if net not in FILES:
        raise UserError(f"net={net}", f"one of {', '.join(FILES)}", "net=alex")
    return Path(torch.hub.get_dir()) / "checkpoints" / FILES[net]


def lacking(net: str) -> str | None:
    """What is not there of the network, in words."""
    return None if weights(net).is_file() else f"the weights {weights(net)}"


@cache
def network(net: str, path: Path) -> nn.Module:
    """The distance of pairs of images in [-1, 1] (Zhang et al. 2018, arXiv 1801.03924), torchmetrics' implementation.

    :param path: the weights, which are there: nothing is downloaded
    """
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    return _NoTrainLpips(net=net).eval()  # type: ignore[arg-type]


def distance(net: str, a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """LPIPS of each pair of images in [-1, 1], clipped to it."""
    model = network(net, weights(net)).to(a.device)
    return model(*(x.float().clamp(-1, 1).expand(-1, 3, -1, -1) for x in (a, b))).flatten()


class LPIPS(PairMetric):
    """The perceptual distance of each pair of images. Measured if torchvision's weights are in torch's cache.

    :param net: ``alex``, usual for evaluation, ``vgg`` or ``squeeze``
    """

    min_size = SMALLEST

    def __init__(self, net: str = "alex"):
        weights(net)
        self.net, self.name = net, f"lpips/{net}"

    def lacks(self) -> str | None:
        return lacking(self.net)

    @torch.no_grad()
    def __call__(self, a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        return distance(self.net, a, b)


class PerceptualDiversity(Metric):
    """``lpips diversity/<net>``: the mean LPIPS of all pairs among the first samples of each condition, then over
    conditions, which are bootstrapped; with one condition its samples take the jackknife, as pairs that share a sample
    are not independent. Higher is more diverse.

    :param net: as for :class:`LPIPS`
    :param samples: of each condition, K; there are ``K (K - 1) / 2`` pairs
    """

    of_features = False
    min_samples = 3

    def __init__(self, net: str = "alex", samples: int = 10):
        weights(net)
        if samples < 3:
            raise UserError(f"samples={samples}", "at least 3 of each condition", "samples=10")
        self.net, self.samples = net, samples

    def lacks(self, sets: MetricInput) -> str | None:
        if min(sets.images.shape[2:]) < SMALLEST:
            return f"images of at least {SMALLEST} px"
        return too_few(sets.conditions) or lacking(self.net)

    @torch.no_grad()
    def __call__(self, sets: MetricInput) -> dict[str, MetricValue]:
        chosen = [rows[:self.samples] for rows in per_condition(sets.conditions, len(sets.samples)) if len(rows) > 1]
        pairs = [self.pairs(to_float(sets.images.batch(rows)[0])) for rows in chosen]
        if len(pairs) > 1:
            measured = mean(torch.stack([of.mean() for of in pairs]))
        else:
            first, second = torch.triu_indices(len(chosen[0]), len(chosen[0]), offset=1)
            measured = jackknife(pairs[0].mean().item(), [pairs[0][(first != i) & (second != i)].mean().item()
                                                          for i in range(len(chosen[0]))], min_value=0)
        return {f"lpips diversity/{self.net}": measured}

    def pairs(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, " p"]:
        """The distances of all pairs of images."""
        first, second = torch.triu_indices(len(images), len(images), offset=1)
        return distance(self.net, images[first], images[second])
