"""Tasks: what the commands do with each kind of trained model."""

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from configs import UserError
from diffusion.data.base import ImageSet
from diffusion.model import Model
from diffusion.pictures import Picture
from diffusion.sampling.job import Job

if TYPE_CHECKING:  # sampling does not load what only evaluation needs
    from diffusion.evaluation.bench import EvaluationContext
    from diffusion.evaluation.subjects import Subject


class Task:
    """What ``sample.py``, ``evaluate.py`` and the training do with one kind of trained model.

    The evaluator of the model names it (:attr:`diffusion.objectives.evaluator.Evaluator.task`); the file of this name
    in ``configs/kind`` builds it. A new kind of trained model is a criterion with an evaluator, and a task.

    :cvar hint: what to do with a run, for the end of its training; ``{run}`` is its folder
    """

    hint: str = "evaluate: python evaluate.py run={run}"

    def plan(self, cfg: DictConfig, model: Model) -> Job:
        """What ``sample.py`` draws.

        :param cfg: the composed ``sample`` config
        :raises UserError: if nothing can be drawn with such a model
        """
        raise UserError(f"sample.py with a model that can {model.evaluator.task} images, and makes none",
                        "a run that makes images", "one of python train.py experiment=ddpm_digits; "
                        f"python evaluate.py run={cfg.run}, for this one")

    def choose_subject(self, context: "EvaluationContext") -> "Subject":
        """What ``evaluate.py run=RUN`` measures.

        :raises UserError: if there is nothing to be measured
        """
        raise UserError(f"evaluate.py with a model that can {context.model.evaluator.task} images, of which nothing "
                        "is measured", "another run", "images=FOLDER, for images that it has made")

    def open_context(self, cfg: DictConfig, model: Model) -> "EvaluationContext":
        """What is at hand to measure a model that is still trained.

        :param cfg: the composed ``evaluate`` config, ``run`` the model's folder
        """
        from diffusion.evaluation.bench import EvaluationContext

        return EvaluationContext(cfg, model=model)

    def time_sample(self, model: Model, context: "EvaluationContext") -> float | None:
        """Seconds for a sample, by drawing a batch; None where nothing is drawn."""
        return None

    def show(self, model: Model, held_out: ImageSet, count: int, times: list[float],
             sampling: list[str]) -> dict[str, Picture]:
        """Pictures during the training, by name; arguments as for
        :class:`diffusion.training.callbacks.pictures.Pictures`."""
        return {}
