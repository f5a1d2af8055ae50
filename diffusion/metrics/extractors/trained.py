"""Networks that train.py has trained, as extractors."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from configs import UserError
from diffusion.data.base import Data
from diffusion.data.files.images import size
from diffusion.loading import load
from diffusion.metrics.extractors.base import Extractor
from diffusion.runs import checkpoint
from diffusion.runs.run import Run


class TrainedExtractor(Extractor):
    """The features of a run. ``name`` says what it is in messages.

    :param run: its folder, or its file
    :param device: where to compute; None takes the GPU if there is one
    :ivar instead: what to type where its images are others
    :ivar kinds: beginnings of the names of the experiments that make one
    :raises UserError: there is no such run
    """

    instead: str
    kinds: Sequence[str]

    def __init__(self, run: str | Path, device: str | None = None):
        self._model = load(run, device=device)
        self.identity = f"step {self._model.step}, {Run.open(run).steps[self._model.step]}"
        self.run = str(run)

    def check(self, shape: Sequence[int]) -> None:
        if tuple(shape[1:]) != self._model.image_shape:
            raise UserError(f"images of {size(shape)} for the {self.name} {self.run}, trained on "
                            f"{size(self._model.image_shape)}", "images like those", self.instead)

    @classmethod
    def find_runs(cls, roots: Sequence[Path], data: Data) -> Iterator[Path]:
        """The runs of its kind that may judge a data set, see :meth:`Data.accepts_judge`, the newest of the first
        folder first.

        :param roots: folders of runs
        """
        for root in roots:
            configs = [path for kind in cls.kinds for path in root.glob(f"{kind}_*/*/config.yaml")]
            for path in sorted(configs, key=lambda path: path.stat().st_mtime, reverse=True):
                content = None
                with suppress(UserError):  # all of its checkpoints are damaged, which the log says
                    content = checkpoint.read_latest(path.parent / "checkpoints")
                if content is not None and data.accepts_judge(content["config"]["data"], content["data"]):
                    yield path.parent
