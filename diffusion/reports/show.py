"""Figures of a gallery as templates want them: where each picture is on its sheet, and how large it is shown."""

from collections.abc import Iterable, Sequence
from typing import Any

from diffusion.reports.gallery import Figure, Film, Gallery, Grid, Rows
from diffusion.reports.sheets import Sheet

CRISP = 64
"""Pixels up to which a picture is enlarged without being smoothed."""
STILLS = 6
"""Stations of a film that are shown where nothing moves."""


def show_sheets(gallery: Gallery, figures: Iterable[Figure]) -> list[tuple[str, Sheet]]:
    """The sheets of these figures, each once, with the class by which a page refers to it."""
    return [(name_class(gallery, name), gallery.sheets[name]) for name in dict.fromkeys(f.sheet for f in figures)]


def name_class(gallery: Gallery, name: str) -> str:
    """The class of a sheet: names come from outside."""
    return f"s{list(gallery.sheets).index(name)}"


def show_figure(gallery: Gallery, figure: Figure) -> dict[str, Any]:
    """A figure as the macro ``show`` takes it."""
    sheet = gallery.sheets[figure.sheet]
    style = f"{name_class(gallery, figure.sheet)}{' crisp' if max(sheet.width, sheet.height) <= CRISP else ''}"
    shown = {"title": figure.title, "note": figure.note, "class": style}
    if isinstance(figure, Grid):
        return {**shown, **describe_size(sheet, 64 if figure.worded else 48), "kind": "grid", "worded": figure.worded,
                "groups": [{"caption": group.caption, "tiles": [
                    _tile(sheet, tile, group.words[i] if group.words else "") for i, tile in enumerate(group.tiles)]}
                    for group in figure.groups]}
    if isinstance(figure, Rows):
        columns = range(sheet.columns)
        return {**shown, **describe_size(sheet, 72), "kind": "rows", "heads": figure.heads, "names": figure.rows,
                "wipe": figure.wipe, "columns": columns, "rows": [
                    (row, [_tile(sheet, r * sheet.columns + c, f"{row}, {figure.heads[c] if figure.heads else c + 1}")
                           for c in columns]) for r, row in enumerate(figure.rows)]}
    return {**shown, **show_film(sheet, figure)}


def show_film(sheet: Sheet, film: Film) -> dict[str, Any]:
    """A film: all of it under a slider, and some stations of it side by side."""
    count, last = sheet.columns // len(film.kinds), len(film.times) - 1
    times = [f"t = {time:.2f}" for time in film.times]
    stations = sorted({round(k * last / (STILLS - 1)) for k in range(STILLS)})
    return {**describe_size(sheet, 72), "kind": "film", "last": last, "words": "|".join(times),
            "kinds": [(kind, [k * count + i for i in range(count)]) for k, kind in enumerate(film.kinds)],
            "heads": [times[station] for station in stations],
            "stills": [(kind, [_tile(sheet, station * sheet.columns + k * count + i, f"{kind}, {times[station]}")
                               for station in stations]) for k, kind in enumerate(film.kinds) for i in range(count)]}


def describe_size(sheet: Sheet, about: int) -> dict[str, int]:
    """How large a picture is shown."""
    width, height = sheet.fit(about)
    return {"width": width, "height": height}


def _tile(sheet: Sheet, tile: int, words: str) -> dict[str, Any]:
    captions: Sequence[str] = sheet.captions
    return {"x": tile % sheet.columns, "y": tile // sheet.columns,
            "words": words or (captions[tile] if captions else f"picture {tile + 1}")}
