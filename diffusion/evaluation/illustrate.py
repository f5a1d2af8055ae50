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
from diffusion.evaluation.pair_scores import PairScores
from diffusion.metrics.base import Images, MetricInput
from diffusion.reports.gallery import PREVIEW, Film, Gallery, Grid, Group, Rows
from diffusion.reports.numbers import find_direction
from diffusion.reports.sheets import Sheet, make_sheet
from diffusion.sampling.selection import Conditions, caption_conditions
from diffusion.sampling.texts import read_texts
from diffusion.sampling.trajectory import Trajectory
from models.readers import ask_again

COLUMNS = 25
PAGE = 500
"""Pictures of a page."""
MOST = 5000
"""Pictures of a report."""
SOME = 60
"""Of a random choice."""
BEST = 24
"""That are seen as the best, and as the worst."""
OF_CLASS = 12
CLASSES = 20
SIDE_BY_SIDE = 8
FIRST = 12
STATIONS = 24
FILMED = 4
PREVIEWED = 16
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
        order, words = sets.likelihood.argsort(stable=True), write_verdicts(sets, names, captions if worded else ())
        note = "By the share of what was asked for that the judge sees." if sets.predictions is None and \
            sets.right is not None else "By the probability that the judge gives to what was asked for." \
            if sets.labels is not None else "By the probability of the class that the judge sees."
        chosen += [("Worst by the judge", note, [("", order[:BEST])]),
                   ("Best by the judge", note, [("", order.flip(0)[:BEST])])]
    first = torch.arange(n)
    if n > PAGE:
        first = torch.cat([rows for *_, groups in chosen for _, rows in groups]).unique()
    gallery.sheets["samples"] = make_page(sets.images, first, captions)
    place = {int(row): tile for tile, row in enumerate(first)}
    for title, note, groups in chosen:
        judged = words if title.endswith("judge") else []
        gallery.figures.append(Grid(title, note, "samples", [
            Group(name, [place[int(row)] for row in rows], [judged[row] for row in rows.tolist()] if judged else [])
            for name, rows in groups], worded=worded or bool(judged)))
    if SOME < n <= PAGE:
        gallery.pages.append(Grid(f"All {n}", "", "samples", [Group("", list(range(n)))], worded))
    for begin in range(0, min(n, MOST), PAGE) if n > PAGE else ():
        rows, name = torch.arange(begin, min(begin + PAGE, n, MOST)), f"samples-{begin // PAGE + 2}"
        gallery.sheets[name] = make_page(sets.images, rows, captions)
        title = f"Images {begin} to {int(rows[-1])} of {n}"
        gallery.pages.append(Grid(title, "", name, [Group("", list(range(len(rows))))], worded))
    add_preview(gallery, 0, take(sets.images, mixed[:PREVIEWED]))
    return gallery


def make_page(images: Images, rows: Int64[Tensor, " m"], captions: Sequence[str]) -> Sheet:
    """Some images as a sheet, with the captions that they have among those of all."""
    places: list[int] = rows.tolist()
    return make_sheet(take(images, rows), COLUMNS, [captions[place] for place in places] if captions else ())


def add_preview(gallery: Gallery, place: int, images: UInt8[Tensor, "n c h w"]) -> None:
    """Add a few pictures that stand for a set among those of other evaluations.

    :param place: of the set among the subjects of the evaluation
    """
    gallery.sheets[f"{PREVIEW}-{place}"] = make_sheet(images, len(images), most=SMALL_SHEET // 8)


def write_class(label: int, names: Sequence[str] | None) -> str:
    """A class in words."""
    return names[label] if names and 0 <= label < len(names) else str(label)


def write_verdicts(sets: MetricInput, names: Sequence[str] | None, captions: Sequence[str] = ()) -> list[str]:
    """What the judge says of each image: ``3, seen as 8; p 0.020``, or ``a red three: 80% right``.

    :param captions: of the images, where these say more than a class; none at all if not
    """
    assert sets.likelihood is not None
    if sets.predictions is None:
        said = [f"{share:.0%} right" if sets.right is not None else f"p {share:.3f}"
                for share in sets.likelihood.tolist()]
        return [f"{caption}: {one}" for caption, one in zip(captions, said, strict=True)] if captions else said
    asked = sets.predictions if sets.labels is None else sets.labels
    return compare_classes(asked, sets.predictions, sets.likelihood, names)


def compare_classes(asked: Int64[Tensor, " n"], seen: Int64[Tensor, " n"], likelihood: Float[Tensor, " n"],
                    names: Sequence[str] | None) -> list[str]:
    """The class of each image, and that which is seen in it, where this is another: ``3, seen as 8; p 0.020``."""
    a, b = ([write_class(label, names) for label in labels.tolist()] for labels in (asked, seen))
    return [f"{right if right == found else f'{right}, seen as {found}'}; p {p:.3f}"
            for right, found, p in zip(a, b, likelihood.tolist(), strict=True)]


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
    heads = caption_conditions(readers, conditions.write()[:len(rows)])
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




def picture_restorations(originals: Images, outcome: Mapping[str, PairScores], measured: PairScores | None) -> Gallery:
    """What was made of held-out images, beside these: the first ones, and those of the largest and the smallest error.

    :param outcome: what was made, by the name of the set
    :param measured: what was given, where it is none of the sets
    """
    given = {"measured": measured.images} if measured is not None else {}
    sets = {**given, **{name: found.images for name, found in outcome.items()}, "original": originals}
    made = [name for name in outcome if name != "degraded"]
    main = made[-1] if "degraded" in outcome else made[0]
    wipe = (next(iter(sets)), main) if len(sets) > 2 else (main, "original")
    chosen = [("First", "", torch.arange(min(FIRST, len(originals))))]
    for metric, values in list(outcome[main].values.items())[:1]:
        order = values.argsort(stable=True, descending=find_direction(metric) < 0)
        chosen += [("Worst", f"By {metric} of {main}.", order[:SIDE_BY_SIDE]),
                   ("Best", f"By {metric} of {main}.", order.flip(0)[:SIDE_BY_SIDE])]
    gallery = Gallery()
    for title, note, rows in chosen:
        heads = [str(row) for row in rows.tolist()]
        picture_rows(gallery, title.lower(), f"{title} images", note,
                     {name: take(images, rows) for name, images in sets.items()}, heads, wipe)
    for place, (name, _) in enumerate(outcome.items()):
        add_preview(gallery, place, take(sets[name], torch.arange(min(PREVIEWED, len(originals)))))
    return gallery


def picture_verdicts(images: Images, likelihood: Float[Tensor, " n"], words: Sequence[str]) -> Gallery:
    """The images of which a classifier is least sure.

    :param likelihood: the probability that it gives to the right class of each
    :param words: what it says of each
    """
    rows, gallery = likelihood.argsort(stable=True)[:BEST], Gallery()
    gallery.sheets["worst"] = make_sheet(take(images, rows), BEST)
    places: list[int] = rows.tolist()
    gallery.figures.append(Grid("Least likely", "By the probability of the right class.", "worst", [
        Group("", list(range(len(places))), [words[place] for place in places])], worded=True))
    return gallery
