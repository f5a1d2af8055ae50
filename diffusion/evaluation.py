"""``evaluate.py``: numbers about a run."""

import json
import logging
from typing import Any

import torch
from jaxtyping import Int64
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor

from configs import UserError, registry
from diffusion.data.base import Data, ImageSet
from diffusion.data.pixels import to_float
from diffusion.metrics import judge
from diffusion.metrics.distances import frechet, rmse_per_image, rmse_pooled
from diffusion.model import Model, Recipe, load
from diffusion.run import Run, plain, write
from diffusion.sampling import data_of, restore
from samplers.base import fitting

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """The table of a run, printed, and written to ``evaluation.json`` in its folder."""
    packages = (*registry.trusted(), *cfg.allow)
    model = load(cfg.run, weights=cfg.weights, step=cfg.step, device=cfg.device, allow=cfg.allow)
    recipe = Recipe.build(cfg, packages)
    data = data_of(model, cfg.data.root, packages)
    critic = None
    if data.classes:
        log.info("fitting the classifier that judges, if it is not there yet ...")
        critic = judge.fitted(data)
    restores = (recipe.prior or model.prior).restores
    table = (restoration(model, recipe, data.split("test"), critic, cfg) if restores
             else generation(model, recipe, data, critic, cfg))
    settings = {key: value for key, value in plain(cfg).items() if key not in ("allow", "batch", "data", "device")}
    result = {"rows": table, **settings, "step": model.step}
    if critic:
        result["classifier_accuracy"] = critic.accuracy
    write(Run.open(cfg.run).folder / "evaluation.json", json.dumps(result, indent=2))
    show(table, f"{cfg.run}" + (f"   (classifier: {critic.accuracy:.1%} of held-out images)" if critic else ""))
    return result


def generation(model: Model, recipe: Recipe, data: Data, critic: judge.Judge | None, cfg: DictConfig) -> list[dict]:
    """Samples against the held-out images: class agreement and Fréchet distance, the training images beside them."""
    if critic is None:
        raise UserError("evaluate.py for samples of images without classes",
                        "labelled data, on which a judge is fitted", "data with one folder per class")
    indices = range(cfg.count)
    labels = torch.tensor(model.labels(indices, None)) if model.num_classes else None
    log.info("drawing %d samples ...", cfg.count)
    samples = model.sample(indices, seed=cfg.seed, recipe=recipe, batch=cfg.batch)
    held_out, real = data.split("test"), data.split("train")
    reference = critic.features_of(held_out)
    some, classes = real.batch(spread(len(real), len(samples)))
    assert classes is not None
    some = to_float(some)
    name = f"fd/classifier@{cfg.count}"
    rows = [{"images": "samples", "agreement": critic.agreement(samples, labels) if labels is not None else None,
             name: frechet(critic.features(samples), reference)}]
    return [*rows, {"images": "training images", "agreement": critic.agreement(some, classes),
                    name: frechet(critic.features(some), reference)}]


def restoration(model: Model, recipe: Recipe, held_out: ImageSet, critic: judge.Judge | None,
                cfg: DictConfig) -> list[dict]:
    """Held-out images degraded and restored: the direct estimate and every sampler that is asked for."""
    suitable = fitting(model.degradation)
    if not cfg.samplers or isinstance(cfg.samplers, str) or not set(cfg.samplers) <= set(suitable):
        raise UserError(f"samplers={cfg.samplers}", f"a list of {', '.join(suitable)}", "'samplers=[cold1,cold2]'")
    chosen = spread(len(held_out), cfg.count)
    count = len(chosen)
    images, labels = held_out.batch(chosen)
    x0 = to_float(images)
    label = labels.tolist() if labels is not None and model.num_classes is not None else None
    results: dict[str, Tensor] = {}
    for name in cfg.samplers:
        sampler = registry.build("sampler", name, num_steps=cfg.sampler.num_steps)
        log.info("restoring %d held-out images with %s ...", count, name)
        x_T, direct, results[name] = restore(model, Recipe(sampler, recipe.parts, recipe.prior, recipe.start), x0,
                                             chosen.tolist(), seed=cfg.seed, label=label, batch=cfg.batch)
        results = {"degraded": x_T, "direct": direct, **results}
    reference = critic.features(x0) if critic else None
    rows = []
    for name, restored in results.items():
        row = {"images": name, "rmse": rmse_pooled(restored, x0), "rmse/image": rmse_per_image(restored, x0)}
        if critic and reference is not None:
            row[f"fd/classifier@{count}"] = frechet(critic.features(restored), reference)
        rows.append(row)
    return rows


def spread(n: int, count: int) -> Int64[Tensor, " m"]:
    """``count`` of n indices (all, if there are fewer), evenly spread: sets are often sorted by class."""
    count = min(n, count)
    return torch.arange(count) * n // count


def show(rows: list[dict], title: str) -> None:
    """Print rows as a table."""
    table = Table()
    for i, column in enumerate(rows[0]):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*("-" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(title, table, sep="\n", soft_wrap=True)
