"""The pictures that the report of an evaluation shows, chosen while the images are at hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from configs.values import to_plain
from degradations.randomness import bits
from diffusion.data.pixels import to_uint8
from diffusion.evaluation.bench import EvaluationContext
from diffusion.metrics.base import Images, MetricInput
from diffusion.reports.gallery import Film, Gallery, Grid, Group, Rows
from diffusion.reports.sheets import make_sheet
from diffusion.sampling.selection import Conditions, caption_conditions
from diffusion.sampling.texts import read_texts
from diffusion.sampling.trajectory import Trajectory
from models.readers import ask_again

PAGE = 500
"""Pictures of a page."""
MOST = 5000
"""Pictures of a report."""
SOME = 64
"""Of a random choice."""
BEST = 24
"""That are seen as the best, and as the worst."""
OF_CLASS = 12
CLASSES = 20
SIDE_BY_SIDE = 8
STATIONS = 24
FILMED = 4
PREVIEW = 16
SMALL_SHEET = 3 * 2**19
"""Bytes of a sheet of few pictures."""


def picture_set(sets: MetricInput, captions: Sequence[str], names: Sequence[str] | None,
                worded: bool = False) -> Gallery:
    """Grids of a set of images: by class, at random, what the judge is least and most sure of, and all of them.

    :param captions: of the images; none at all if there is nothing to say
    :param names: of the classes
    :param worded: the captions are seen
    """
    n, gallery = len(sets.images), Gallery()
    mixed = torch.from_numpy(bits(np.arange(n), "report").argsort())
    chosen: list[tuple[str, str, list[tuple[str, Int64[Tensor, " m"]]]]] = [
        ("At random", "A choice that depends on the count alone.", [("", mixed[:SOME])])]
    if sets.labels is not None and 1 < len(classes := sets.labels.unique().tolist()) <= CLASSES:
        groups = [(write_class(label, names), (sets.labels == label).nonzero()[:OF_CLASS, 0]) for label in classes]
        chosen.insert(0, ("By class", "The first of each class that was asked for.", groups))
    words: list[str] = []
    if sets.likelihood is not None:
        order, words = sets.likelihood.argsort(stable=True), write_verdicts(sets, names)
        note = "By the probability that the judge gives to what was asked for." if sets.labels is not None or \
            sets.right is not None else "By the probability of the class that the judge sees."
        chosen += [("Worst by the judge", note, [("", order[:BEST])]),
                   ("Best by the judge", note, [("", order.flip(0)[:BEST])])]
    first = torch.arange(n)
    if n > PAGE:
        first = torch.cat([rows for *_, groups in chosen for _, rows in groups]).unique()
    gallery.sheets["samples"] = make_sheet(take(sets.images, first), 25, [captions[i] for i in first] if captions else ())
    place = {int(row): tile for tile, row in enumerate(first)}
    for title, note, groups in chosen:
        judged = words if title.endswith("judge") else []
        gallery.figures.append(Grid(title, note, "samples", [
            Group(name, [place[int(row)] for row in rows], [judged[row] for row in rows] if judged else [])
            for name, rows in groups], worded=worded or bool(judged)))
    if SOME < n <= PAGE:
        gallery.pages.append(Grid(f"All {n}", "", "samples", [Group("", list(range(n)))], worded))
    for begin in range(0, min(n, MOST), PAGE) if n > PAGE else ():
        rows, name = torch.arange(begin, min(begin + PAGE, n, MOST)), f"samples-{begin // PAGE + 2}"
        gallery.sheets[name] = make_sheet(take(sets.images, rows), 25, [captions[i] for i in rows] if captions else ())
        title = f"Images {begin} to {int(rows[-1])} of {n}"
        gallery.pages.append(Grid(title, "", name, [Group("", list(range(len(rows))))], worded))
    gallery.sheets["preview"] = make_sheet(take(sets.images, mixed[:PREVIEW]), PREVIEW, most=SMALL_SHEET // 8)
    return gallery


def write_class(label: int, names: Sequence[str] | None) -> str:
    """A class in words."""
    return names[label] if names and 0 <= label < len(names) else str(label)


def write_verdicts(sets: MetricInput, names: Sequence[str] | None) -> list[str]:
    """What the judge says of each image: ``3, seen as 8; p 0.02``."""
    assert sets.likelihood is not None
    if sets.predictions is None:
        return [f"{share:.0%} right" for share in sets.likelihood.tolist()]
    seen = [write_class(label, names) for label in sets.predictions.tolist()]
    asked = seen if sets.labels is None else [write_class(label, names) for label in sets.labels.tolist()]
    return [f"{a if a == b else f'{a}, seen as {b}'}; p {p:.2g}"
            for a, b, p in zip(asked, seen, sets.likelihood.tolist(), strict=True)]


def take(images: Images, rows: Int64[Tensor, " m"]) -> UInt8[Tensor, "m c h w"]:
    """The pixels of some images, on the CPU."""
    return images.batch(rows)[0].cpu()


def picture_rows(gallery: Gallery, name: str, title: str, note: str, rows: Mapping[str, UInt8[Tensor, "n c h w"]],
                 heads: Sequence[str] = (), wipe: tuple[str, str] | None = None) -> None:
    """Add rows of images of the same things to a gallery.

    :param name: of the sheet
    :param rows: by caption
    :param wipe: captions of the rows that are wiped over each other
    """
    images = list(rows.values())
    channels = max(part.shape[1] for part in images)
    images = [part.expand(-1, channels, -1, -1) if part.shape[1] == 1 else part for part in images]
    gallery.sheets[name] = make_sheet(torch.cat(images), len(images[0]), most=SMALL_SHEET)
    order = list(rows)
    gallery.figures.append(Rows(title, note, name, order, list(heads),
                                [order.index(one) for one in wipe] if wipe else None))


def picture_film(gallery: Gallery, film: Trajectory, name: str, title: str) -> None:
    """Add the way of some samples to a gallery, if there was one."""
    if not film.film:
        return
    stations = [(time, torch.cat(batches, dim=1)) for time, batches in film.film.values()]
    gallery.sheets[name] = make_sheet(torch.cat([pair.flatten(0, 1) for _, pair in stations]),
                                      2 * stations[0][1].shape[1], most=SMALL_SHEET)
    note = "From the start to the image; the last estimate stands beside the image itself."
    gallery.figures.append(Film(title, note, name, [time for time, _ in stations], ["x_t", "estimate of x0"]))


def start_film(bench: EvaluationContext) -> Trajectory:
    """A watcher that films the first samples."""
    return Trajectory(bench.model.space.decode, STATIONS, FILMED)


def picture_conditions(gallery: Gallery, bench: EvaluationContext, samples: Images) -> None:
    """Add what the first samples were told, beside these, where it has a look; what an edit has changed in them; and
    their way."""
    cfg, model, recipe = bench.cfg, bench.model, bench.recipe
    readers = model.readers(recipe)
    conditions = Conditions(model, recipe, range(cfg.count), read_texts(readers, to_plain(cfg.condition)), None,
                            lambda: bench.data, cfg.pool)
    rows = range(min(SIDE_BY_SIDE, len(samples)))
    taken, made = conditions.take(rows), take(samples, torch.tensor(rows))
    heads = caption_conditions(readers, [one for one in conditions.write()[:len(rows)]])
    shown = {name: to_uint8(raw[:len(rows)]) for name, raw in conditions.show(rows, taken).items()}
    if shown:
        picture_rows(gallery, "conditions", "What they were told", "Above each sample what it was made of.",
                     {**shown, "sample": made}, heads, (next(iter(shown)), "sample"))
    asked = ask_again(readers, taken, slice(None))
    if recipe.edits:
        plain: Float[Tensor, "n c h w"] = model.sample(rows, seed=cfg.seed, recipe=replace(recipe, edits=[]),
                                                       batch=len(rows), **asked)
        picture_rows(gallery, "edits", "With and without the edit", "The same draws, without the edit and with it.",
                     {"without": to_uint8(plain), "with": made}, heads, ("without", "with"))
    film, few = start_film(bench), rows[:FILMED]
    model.sample(few, seed=cfg.seed, recipe=recipe, batch=len(few), callbacks=[film],
                 **ask_again(readers, conditions.take(few), slice(None)))
    picture_film(gallery, film, "film", "The way of the first samples")


def picture_nearest(gallery: Gallery, sets: MetricInput, train: Images, count: int) -> None:
    """Add the samples that are nearest to an image of the training, each with that image."""
    distances, indices = sets.nearest_train
    rows = distances.argsort()[:count]
    picture_rows(gallery, "nearest", "Nearest images of the training", "The samples that are nearest to an image of "
                 "the training, as the extractor sees it, above that image.",
                 {"sample": take(sets.images, rows), "training": take(train, indices[rows])},
                 [f"{distance:.3g}" for distance in distances[rows].tolist()], ("sample", "training"))


