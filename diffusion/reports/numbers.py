"""Numbers with intervals: how they are written, which way is better, and whether two of them differ."""

import math
from typing import Any, NamedTuple

MINE = ("what", "run", "images", "checkpoint", "weights", "sampler", "guidance", "prior", "edit", "composed",
        "start", "condition", "seed", "precision", "compile")
"""Parts of the protocol in which two evaluations that are compared may differ: what is being compared."""

LOWER = ("fd", "FID", "kid", "mss", "rmse", "lpips", "loss", "cross-entropy", "residual", "copied")
HIGHER = ("is", "precision", "recall", "density", "coverage", "vendi", "lpips diversity", "agreement", "f1", "iou",
          "R2", "cosine", "psnr", "ssim", "accuracy", "balanced accuracy", "codes used", "perplexity")


class Number(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def read(cls, node: Any) -> "Number":
        """One that ``evaluation.json`` has.

        :raises ValueError: if it is none
        """
        if not isinstance(node, dict) or any(type(node.get(key)) not in (int, float) for key in cls._fields):
            raise ValueError("evaluation.json has a number without value, low and high")
        return cls(*(float(node[key]) for key in cls._fields))

    def __str__(self) -> str:
        """``0.287``, to the second digit that is uncertain."""
        return f"{self.value:.{self.places}f}"

    @property
    def interval(self) -> str:
        """``[0.285, 0.290]``."""
        return f"[{self.low:.{self.places}f}, {self.high:.{self.places}f}]"

    @property
    def places(self) -> int:
        """Decimals that are worth showing."""
        return count_decimals((self.high - self.low) / 2)


def count_decimals(reach: float) -> int:
    """How many decimals are worth showing of a number that is uncertain by so much: two digits of that."""
    if not math.isfinite(reach) or reach <= 0:
        return 4
    return min(6, max(0, 1 - math.floor(math.log10(reach))))


def find_direction(name: str) -> int:
    """1 if more is better, -1 if less is, 0 if that is not known, such as of a distance to the training.

    :param name: of the number, such as ``fd/classifier@200`` or ``agreement: digit``
    """
    if ", " in name:  # beside other answers than the right one
        return 0
    stem = name.split("@")[0].split("/")[0].split(":")[0]
    candidates = [(len(known), sign) for sign, names in ((-1, LOWER), (1, HIGHER)) for known in names
                  if stem == known or stem.startswith(f"{known} ")]
    return max(candidates)[1] if candidates else 0


def subtract(a: Number, b: Number) -> Number:
    """``a - b`` of two independent numbers, with the interval that theirs imply (Newcombe 1998, Stat. Med. 17, 873;
    Zou and Donner 2008, Stat. Med. 27, 1693): ``low = a - b - sqrt((a - low_a)^2 + (high_b - b)^2)``, and so above.
    Of normal errors it is that of the sum of their variances; lopsided intervals stay so."""
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    return Number(value, low, value + math.hypot(a.high - a.value, b.value - b.low))


def exceeds(difference: Number) -> bool:
    """Whether a difference exceeds the noise: its interval does not hold 0."""
    return difference.low > 0 or difference.high < 0
