"""Features of samples that several processes draw and look at: each takes what is there and nobody has taken yet."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusion.data.files.images import Files
from diffusion.metrics.base import Features
from diffusion.metrics.extractors.base import Extractor
from diffusion.metrics.features import extract, read_features
from diffusion.runs import checkpoint
from diffusion.runs.files import make_folder, write_whole
from diffusion.runs.lock import Lock
from diffusion.runs.share import Share

PARTS = ".parts"
"""The folder of the pieces, in that of the evaluation."""
PIECE = 1000
"""Samples whose features are one file, about: a whole number of the extractor's chunks, so that the division does not
matter to the last bit."""


class Together:
    """The features of the samples in a folder, in pieces that are whole or absent.

    :param place: where the pieces lie until all are there
    :param samples: the folder of the samples
    :param names: of their files, those that are not there yet included
    """

    def __init__(self, place: Path, samples: Path, names: Sequence[str]):
        self.place, self.samples, self.names = place, samples, names

    def extract(self, extractors: Iterable[Extractor], share: Share) -> bool:
        """Look at the samples that are there; whether all features are there then.

        :param share: which process this is: each begins elsewhere
        """
        make_folder(self.place)
        pieces = [(extractor, rows) for extractor in extractors for rows in self._split(extractor)]
        first = share.cut(len(pieces)).start
        for extractor, rows in pieces[first:] + pieces[:first]:
            path = self._name(extractor, rows)
            if path.is_file() or not all((self.samples / self.names[row]).is_file() for row in rows):
                continue
            with Lock(path.with_suffix(".lock"), f"{path.name} is being made").attempt() as mine:
                if mine and not path.is_file():
                    write_whole(path, checkpoint.dump(vars(self._look(extractor, rows))))
        return all(self._name(extractor, rows).is_file() for extractor, rows in pieces)

    def collect(self, extractor: Extractor) -> Features:
        """The features of all samples, which are there; a file that is damaged is made again."""
        found: dict[str, Tensor] = {}
        for rows in self._split(extractor):
            some = read_features(self._name(extractor, rows), len(rows)) or self._look(extractor, rows)
            for name, value in vars(some).items():
                if value is not None:
                    whole = found.setdefault(name, torch.empty(len(self.names), value.shape[1]))
                    whole[rows.start:rows.stop] = value
        return Features(**found)

    def _split(self, extractor: Extractor) -> Iterator[range]:
        step, n = extractor.chunk * max(1, PIECE // extractor.chunk), len(self.names)
        return (range(first, min(first + step, n)) for first in range(0, n, step))

    def _name(self, extractor: Extractor, rows: range) -> Path:
        return self.place / f"features-{extractor.name}-{rows.start:08d}-{rows.stop:08d}.pt"

    def _look(self, extractor: Extractor, rows: range) -> Features:
        images = Files(self.samples, [self.names[row] for row in rows])
        extractor.check(images.shape)
        return extract(images, extractor, f"the samples from {rows.start} on")
