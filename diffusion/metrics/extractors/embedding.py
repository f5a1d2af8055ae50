"""An embedding that train.py has trained, as a judge of identities."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from configs import UserError
from diffusion.data.base import Data
from diffusion.data.pixels import to_float
from diffusion.metrics.base import Features
from diffusion.metrics.extractors.trained import TrainedExtractor
from diffusion.objectives.embedding import NetworkEmbedder

log = logging.getLogger(__name__)


class EmbeddingExtractor(TrainedExtractor):
    """The vectors of length 1 of a run that embeds, ``experiment=embed_scenes``.

    :param run: its folder, or its file
    :param device: where to compute; None takes the GPU if there is one
    :raises UserError: there is no such run, or it does not embed
    """

    name = "embedding"
    instead = "embedding=none, or an embedding of such images"
    kinds = ("embed",)

    def __init__(self, run: str | Path, device: str | None = None):
        super().__init__(run, device)
        self._embedder = self._model.use(NetworkEmbedder)

    def is_same(self, network: nn.Module) -> bool:
        """Whether a network has the very weights of this one."""
        mine, theirs = self._model.weights.net.state_dict(), network.state_dict()
        return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key].to(mine[key].device))
                                                    for key in mine)

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Features:
        return Features(self._embedder(to_float(images).to(self._model.device)).cpu())


def choose_embedding(run: str | None, roots: Sequence[Path], data: Data, taught: Sequence[nn.Module],
                     device: str) -> EmbeddingExtractor | None:
    """The embedding that judges what a model makes of a data set; None if there is none.

    :param run: that of the embedding; None looks for the newest that may judge, see :meth:`Data.accepts_judge`
    :param roots: folders of runs in which it is looked for
    :param taught: networks by which the model was trained, which are no judges of it
    :raises UserError: if the run is one of these, or no embedding
    """
    runs = [run] if run else EmbeddingExtractor.find_runs(roots, data)
    found = (EmbeddingExtractor(path, device) for path in runs)
    judge = next((judge for judge in found if not any(map(judge.is_same, taught))), None)
    if judge is None and run:
        raise UserError(f"embedding={run}, by which the run was trained", "another one, which is no party",
                        "python train.py experiment=embed_scenes seed=1")
    if judge is None:
        log.info("no embedding that did not train this run in %s: nothing judges identities. train.py makes one: "
                 "experiment=embed_scenes seed=1", " or ".join(map(str, roots)))
    else:
        log.info("judge of identities: %s", judge.run)
    return judge
