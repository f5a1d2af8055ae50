"""A classifier that train.py has trained, as extractor and as judge."""

from pathlib import Path

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from diffusion.data.pixels import to_float
from diffusion.metrics.base import Features
from diffusion.metrics.extractors.trained import TrainedExtractor


class ClassifierExtractor(TrainedExtractor):
    """The features of a run that classifies, ``experiment=classifier_mnist``, and its logits, of classes or attributes.

    :param run: its folder, or its file
    :param device: where to compute; None takes the GPU if there is one
    :ivar signal: what it predicts: the name of a signal of the images
    :ivar words: of this signal: names of the attributes, or the answers to each question; None for classes
    :raises UserError: there is no such run, or it does not classify
    """

    name = "classifier"
    instead = "extractor=random judge=none, or a classifier of such images"
    kinds = ("classifier", "judge")

    def __init__(self, run: str | Path, device: str | None = None):
        super().__init__(run, device)
        self.classifier = self._model.classifier
        self.signal, self.words = self.classifier.signal, getattr(self.classifier, "words", None)

    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Features:
        answer = self._model.classify(to_float(images), batch=self.chunk)
        return Features(answer.features, answer.logits) if self.signal == "label" else \
            Features(answer.features, attributes=answer.logits)


def take_predictions(features: Features) -> Int64[Tensor, " n"]:
    """The class that a classifier sees in each image."""
    assert features.logits is not None
    return features.logits.argmax(dim=1)


def take_likelihood(features: Features, asked: Int64[Tensor, " n"] | None) -> Float[Tensor, " n"] | None:
    """The probability that a classifier gives to a class of each image; None where it does not know the class.

    :param asked: the classes; None takes the most likely ones
    """
    assert features.logits is not None
    p = features.logits.softmax(dim=1)
    if asked is None:
        return p.amax(dim=1)
    known = bool((asked >= 0).all()) and bool((asked < p.shape[1]).all())
    return p.gather(1, asked[:, None])[:, 0] if known else None
