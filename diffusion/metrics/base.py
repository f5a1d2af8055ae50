"""What a metric is: a class with a few settings, which looks at sets of features and answers with numbers.

A new one is a file with a class, and a line in ``configs/metrics``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from diffusion.data.base import ImageSet
from diffusion.metrics.distances import nearest
from diffusion.metrics.evidence import Evidence
from diffusion.metrics.intervals import MetricValue
from diffusion.model import Model
from models.context import Condition


@dataclass(frozen=True)
class Features:
    """What an extractor sees in a set of images.

    :ivar values: (N, D) float32
    :ivar logits: (N, K) of the classes that the extractor knows, if it knows any
    :ivar attributes: (N, A) what a classifier of several things at once says: the log odds of attributes, the logits
        of the answers to its questions, or the numbers of a vector
    """

    values: Float[Tensor, "n d"]
    logits: Float[Tensor, "n k"] | None = None
    attributes: Float[Tensor, "n a"] | None = None

    def __len__(self) -> int:
        return len(self.values)


@runtime_checkable
class Images(Protocol):
    """A set of images of one size, in memory or not: an ``ImageSet`` or :class:`diffusion.data.files.images.Files`."""

    @property
    def shape(self) -> tuple[int, int, int, int]: ...

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Int64[Tensor, " n"] | None: ...

    @property
    def conditions(self) -> Int64[Tensor, " n"] | None: ...

    def batch(self, indices: Int64[Tensor, " b"]) -> tuple[UInt8[Tensor, "b c h w"], dict[str, Tensor]]: ...


@dataclass(frozen=True)
class MetricInput:
    """All that a metric may look at.

    :ivar images: what is measured
    :ivar samples: features of ``images``
    :ivar reference: features of the images that they should be like
    :ivar groups: of each sample, for the jackknife
    :ivar labels: the class under which each sample was made, where there are classes
    :ivar conditions: a number for each sample, equal where they were made under the same condition
    :ivar predictions: the class that the judge sees in each sample
    :ivar questions: what a judge of several things at once, such as attributes, looks at
    :ivar right: of each sample and question, 1 where the judge sees what was asked for, 0 where it sees something else,
        and not a number where nothing was asked
    :ivar right_shuffled: the same, compared with what was asked of other samples: chance
    :ivar likelihood: of each sample, the probability that the judge gives to the class that was asked for, or to that
        which it sees where nothing was asked; of a judge of several things at once, the share that it sees as asked
    :ivar train: features of the images of the training, where they are known
    :ivar held_out: features of real images that were not among these
    :ivar evidence: what the samples were asked to show, beside what is seen in them
    """

    images: Images
    samples: Features
    reference: Features
    groups: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"] | None = None
    conditions: Int64[Tensor, " n"] | None = None
    predictions: Int64[Tensor, " n"] | None = None
    questions: Sequence[str] = ()
    right: Float64[Tensor, "n a"] | None = None
    right_shuffled: Float64[Tensor, "n a"] | None = None
    likelihood: Float[Tensor, " n"] | None = None
    train: Features | None = None
    held_out: Features | None = None
    evidence: Evidence = field(default_factory=Evidence)

    @cached_property
    def nearest_train(self) -> tuple[Float64[Tensor, " n"], Int64[Tensor, " n"]]:
        """Distance and index of the image of the training that is nearest to each sample."""
        assert self.train is not None
        return nearest(self.samples.values, self.train.values)


class Metric(ABC):
    """One or several numbers about a set of images.

    :cvar min_samples: samples that it needs
    :cvar min_reference: images of the reference that it needs
    :cvar of_features: the numbers are distances and the like between features, and carry the extractor in their names
    :cvar of_restorations: it says something about restorations too, each of which has an original of its own
    :cvar of_train: it looks at the images of the training
    :cvar of_conditions: it looks at the evidence of what was asked for
    """

    min_samples: int = 2
    min_reference: int = 0
    of_features: ClassVar[bool] = True
    of_restorations: ClassVar[bool] = False
    of_train: ClassVar[bool] = False
    of_conditions: ClassVar[bool] = False

    def lacks(self, sets: MetricInput) -> str | None:
        """What it would need and the sets have not, in words, such as "labels"; None if it can be measured."""
        return None

    @abstractmethod
    def __call__(self, sets: MetricInput) -> dict[str, MetricValue]:
        """The numbers by name."""


class PairMetric(ABC):
    """A number about pairs of images: a value for each pair, of which the mean is taken, or the root of the mean.

    :ivar name: of the number
    :cvar root: the root of the mean
    :cvar min_size: height and width that the images need, in pixels
    """

    name: str
    root: ClassVar[bool] = False
    min_size: ClassVar[int] = 1

    def lacks(self) -> str | None:
        """What it would need and this machine has not, in words; None if it can be measured."""
        return None

    @abstractmethod
    def __call__(self, a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """The value of each pair of images in [-1, 1]."""


class ModelMetric(ABC):
    """Numbers about a model that need no samples of it, in columns of their own."""

    def lacks(self, model: Model) -> str | None:
        """What it would need and the model has not, in words; None if it can be measured."""
        return None

    @abstractmethod
    def __call__(self, model: Model, images: ImageSet, condition: Condition, *, seed: int,
                 batch: int) -> Mapping[str, Mapping[str, MetricValue]]:
        """The numbers by column and name.

        :param images: held-out images, at least two
        :param condition: the raw signals of these, on the CPU
        :param seed: of the draws
        :param batch: images at a time
        """
