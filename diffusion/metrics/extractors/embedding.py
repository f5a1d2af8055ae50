"""An embedding that train.py has trained, as a judge of identities."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from configs import UserError
from diffusion.data.base import Data
from diffusion.data.files.images import size
from diffusion.data.pixels import to_float
from diffusion.loading import load
from diffusion.metrics.base import Features
from diffusion.metrics.extractors.base import Extractor
from diffusion.objectives.embedding import NetworkEmbedder
from diffusion.runs import checkpoint
from diffusion.runs.run import Run

log = logging.getLogger(__name__)


class EmbeddingExtractor(Extractor):
    """The vectors of length 1 of a run that embeds, ``experiment=embed_scenes``.

    :param run: its folder, or its file
    :param device: where to compute; None takes the GPU if there is one
    :raises UserError: there is no such run, or it does not embed
    """

    name = "embedding"

    def __init__(self, run: str | Path, device: str | None = None):
        self._model = load(run, device=device)
        self._embedder = self._model.use(NetworkEmbedder)
        self.identity = f"step {self._model.step}, {Run.open(run).steps[self._model.step]}"
        self.run = str(run)

    def check(self, shape: Sequence[int]) -> None:
        if tuple(shape[1:]) != self._model.image_shape:
            raise UserError(f"images of {size(shape)} for the embedding {self.run}, trained on "
                            f"{size(self._model.image_shape)}", "images like those",
                            "embedding=none, or an embedding of such images")

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
    found = [EmbeddingExtractor(run, device)] if run else []
    for path in () if run else _list_runs(roots):
        content = None
        with suppress(UserError):  # all of its checkpoints are damaged, which the log says
            content = checkpoint.read_latest(path / "checkpoints")
        if content is not None and data.accepts_judge(content["config"]["data"], content["data"]):
            found.append(EmbeddingExtractor(path, device))
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


def _list_runs(roots: Sequence[Path]) -> list[Path]:
    """The folders of embeddings, the newest first."""
    configs = [path for root in roots for path in root.glob("embed_*/*/config.yaml")]
    return [path.parent for path in sorted(configs, key=lambda path: path.stat().st_mtime, reverse=True)]
