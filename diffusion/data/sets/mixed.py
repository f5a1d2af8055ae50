"""Several data sets as one: a few images of a subject among many others, real images among generated ones."""

from collections.abc import Mapping

import torch

from configs.errors import UserError
from diffusion.data.base import Data, ImageSet, Split


class Mixed(Data):
    """The images of several sets, each with its share of the training and a weight of its losses, as for DreamBooth
    (Ruiz et al. 2022, arXiv 2208.12242: the subject's images with weight 1, the model's own samples of its class with
    weight lambda).

    All sets are in memory. What their images have besides pixels must be described alike; the weights are the signal
    ``weight``, by which the objective multiplies the losses. A share is reached by taking images several times, so that
    the images of a small set come more often. Held-out images are taken as they are.

    :param sets: by name
    :param shares: of the training images, by the same names; they add up to 1. None: as many as there are
    :param weights: by the same names; None: all 1, and no signal
    :raises UserError: for other names or numbers, or sets that do not fit together
    """

    def __init__(self, sets: Mapping[str, Data], size: int, channels: int, flip: bool = False,
                 shares: Mapping[str, float] | None = None, weights: Mapping[str, float] | None = None):
        super().__init__(size, channels, flip)
        self.sets, self.shares, self.weights = dict(sets), shares, weights
        for name, numbers in (("shares", shares), ("weights", weights)):
            if numbers is not None and (set(numbers) != set(sets) or min(numbers.values()) < 0):
                raise UserError(f"data.{name}={dict(numbers)}", f"a number for each of {', '.join(sets)}",
                                f"data.{name}=null")
        if shares is not None and (abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) == 0):
            raise UserError(f"data.shares={dict(shares)}", "shares above 0 that add up to 1", "data.shares=null")
        for name, data in self.sets.items():
            if (data.size, data.channels) != (size, channels):
                raise UserError(f"data.sets.{name} of {data.size} px and {data.channels} channels",
                                f"{size} px and {channels} channels, as data.size and data.channels say",
                                f"data.sets.{name}.size={size}")
            if data.described != self.described:
                first = next(iter(self.sets))
                raise UserError(f"data.sets.{name}, whose images have other signals or words than those of {first}",
                                "sets that are described alike", f"data.sets.{name}.labels=false, of folders")

    @property
    def class_names(self) -> list[str] | None:
        return next(iter(self.sets.values())).class_names

    @property
    def described(self) -> dict:
        return next(iter(self.sets.values())).described

    def load(self, name: Split) -> ImageSet:
        parts = {key: data._part(name) for key, data in self.sets.items()}
        pixels = torch.cat([part.images for part in parts.values()])
        signals = {signal: torch.cat([part.signals[signal] for part in parts.values()])
                   for signal in next(iter(parts.values())).signals}
        if self.weights is not None:
            signals["weight"] = torch.cat([torch.full((len(part),), float(self.weights[key]))
                                           for key, part in parts.items()])
        whole = ImageSet(pixels, signals)
        if self.shares is None or name != "train":
            return whole
        total = max(len(part) / self.shares[key] for key, part in parts.items())
        places, first = [], 0
        for key, part in parts.items():
            places.append(first + torch.arange(round(total * self.shares[key])) % len(part))
            first += len(part)
        return whole.choose(torch.cat(places))
