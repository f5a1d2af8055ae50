"""Figures of the documentation: ``python scripts/figures.py [degradations hot_and_cold samplers restorations steps]``.

``degradations`` draws a picture and destroys it; the others show runs, by default those that ``make demo`` leaves.
``restorations`` puts any runs that restore one below the other (``--runs``), ``steps`` shows the first of them with
fewer and fewer steps. Asked for by name: ``strokes``, a photo as strokes of a brush, for SDEdit (``--photo``);
``inverse``, every task solved by every method that can (``--hot``); ``edits``, a picture and what each method makes of
it by another word (``--text``, ``--words red green``).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

import degradations
from configs import UserError, registry
from configs.cli import stop
from degradations.randomness import Streams
from diffusion import load
from diffusion.data.pixels import to_float
from diffusion.data.sets.digits import Digits
from diffusion.evaluation.losses import spread_indices
from diffusion.evaluation.word_edits import Change, find_text
from diffusion.loading import build_data
from diffusion.model import Model
from diffusion.pictures import save_grid
from diffusion.sampling.job import restore, solve

COLUMNS = 10
TIMES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
STEPS = (1, 2, 5, 10, 20, 50)
MILD = {"kernels.std": 1.5}
DESTROYED: dict[str, tuple[str, dict[str, Any]]] = {
    "noise, cosine": ("gaussian", {}),
    "noise, linear": ("gaussian", {"schedule": "linear"}),
    "noise, straight": ("gaussian", {"schedule": "rectified"}),
    "blur, constant": ("blur", MILD),
    "blur, zeros": ("blur", MILD | {"padding": "zeros"}),
    "blur, reflect": ("blur", MILD | {"padding": "reflect"}),
    "blur, collapse": ("blur", MILD | {"collapse": True}),
    "blur, linear": ("blur", {"kernels": "linear", "levels": 50, "padding": "reflect"}),
    "blur, exponential": ("blur", {"kernels": "exponential", "levels": 100, "padding": "reflect"}),
    "blur, individual": ("blur", {"kernels": "individual", "padding": "reflect"}),
    "motion blur": ("motion_blur", {"length": 15, "angle": 30}),
    "inpaint, middle": ("inpaint", {"levels": 100, "kernel_std": 0.08, "initial_mask": 1, "center": "middle"}),
    "inpaint, random": ("inpaint", {"kernel_std": 0.15}),
    "inpaint, colour": ("inpaint_color", {"kernel_std": 0.02}),
    "inpaint, box": ("inpaint_box", {}),
    "inpaint, pixels": ("inpaint_pixels", {}),
    "downsample, bicubic": ("downsample", {"levels": 4}),
    "downsample, average": ("downsample", {"levels": 4, "first": "average"}),
    "snow, level 1": ("snow", {"flakes": "level1"}),
    "snow, level 3": ("snow", {}),
    "snow 4, brightened": ("snow", {"flakes": "level4", "fix_brightness": False}),
    "desaturate, line": ("desaturate", {}),
    "desaturate, keep 0.9": ("desaturate", {"keep": 0.9}),
    "animorph": ("animorph", {}),
    "blur and noise": ("compose", {"stages.blur.kernels.std": 1.5, "stages.noise.schedule.std": 0.3}),
}


def landscape(size: int = 48) -> Tensor:
    """A hut under the sun, (1, 3, size, size) in [-1, 1], drawn at four times the size."""
    picture = Image.new("RGB", (64, 64), (150, 200, 235)).resize((4 * size, 4 * size))
    draw, unit = ImageDraw.Draw(picture), size / 16

    def shape(colour: str, *corners: tuple[float, float]) -> None:
        draw.polygon([(unit * x, unit * y) for x, y in corners], colour)

    draw.ellipse([unit * c for c in (44, 6, 56, 18)], "gold")
    shape("slategray", (0, 44), (18, 12), (34, 44))
    shape("white", (14, 19), (18, 12), (21.5, 19), (18, 22))
    shape("forestgreen", (0, 42), (28, 38), (64, 44), (64, 64), (0, 64))
    shape("sienna", (30, 36), (52, 36), (52, 54), (30, 54))
    shape("firebrick", (26, 36), (41, 24), (56, 36))
    shape("khaki", (34, 41), (40, 41), (40, 47), (34, 47))
    shape("saddlebrown", (44, 42), (49, 42), (49, 54), (44, 54))
    return to_float(pil_to_tensor(picture.resize((size, size), Image.Resampling.LANCZOS)))[None]


def destroyed(path: Path) -> Path:
    """Every degradation, a row each, at the same times."""
    x0 = landscape().expand(len(TIMES), -1, -1, -1)
    rows = []
    for name, settings in DESTROYED.values():
        operator = degradations.build(name, **settings)
        # One sample in every column: t moves, z stays.
        state = operator.draw(x0.shape, Streams(0, (0,) * len(TIMES)))
        rows.append(operator.forward(x0, torch.tensor(TIMES), state))
    heads = [f"t = {t:g}" for t in TIMES]
    return save_grid(torch.cat(rows), path, columns=len(TIMES), rows=list(DESTROYED), heads=heads)


def way(model: Model, indices: range, images: Tensor | None = None, *overrides: str) -> tuple[Tensor, Tensor]:
    """``COLUMNS`` stations of the way from ``x_T`` to the image, evenly strided, and the estimates of x0 made there:
    two tensors (len(indices), COLUMNS, C, H, W). The last station, the image, stands for its own estimate."""
    with torch.no_grad():
        x, frames = model.trajectory(indices, images=images, recipe=model.recipe(overrides))
        pairs = [(frame.x_s, frame.estimate.x0) for frame in frames if frame.x_s is not None and frame.estimate]
    stations, estimates = [x] + [x_s for x_s, _ in pairs], [x0 for _, x0 in pairs] + [pairs[-1][0]]
    picked = [round(len(pairs) * c / (COLUMNS - 1)) for c in range(COLUMNS)]

    def shown(row: list[Tensor]) -> Tensor:
        return torch.stack([model.space.decode(row[i]).cpu() for i in picked], dim=1)

    return shown(stations), shown(estimates)


def hot_and_cold(hot: Model, cold: Model, images: Tensor, path: Path) -> Path:
    """One loop, two degradations: three digits each."""
    rows = torch.cat([way(hot, range(2, 5))[0], way(cold, range(3), images)[0]])
    return save_grid(rows.flatten(0, 1), path, columns=COLUMNS)


def samplers(hot: Model, cold: Model, images: Tensor, path: Path) -> Path:
    """What three samplers visit, and what they believe on the way, a digit each."""
    rows = {f"{name}: {part}": tensor[0]
            for name, pair in (("DDIM", way(hot, range(3, 4))),
                               ("Algorithm 1", way(cold, range(1), images[:1], "sampler=cold1")),
                               ("Algorithm 2", way(cold, range(1), images[:1], "sampler=cold2")))
            for part, tensor in zip(("x_t", "x0"), pair)}
    return save_grid(torch.cat(list(rows.values())), path, columns=COLUMNS, rows=list(rows))


def held_out(model: Model) -> Tensor:
    """``COLUMNS`` held-out images of the run's data, spread over the set."""
    images = build_data(model.config, {}, registry.trusted()).split("test")
    return to_float(images.batch(spread_indices(len(images), COLUMNS))[0])


def attempts(model: Model, images: Tensor, *overrides: str) -> tuple[Tensor, Tensor, Tensor]:
    """``(x_T, direct, restored)``."""
    return restore(model, model.recipe(overrides), images, range(len(images)))


def restorations(models: list[Model], path: Path) -> Path:
    """Five rows for each run: degraded, direct, Algorithm 1, Algorithm 2, original."""
    titles, rows = ["degraded", "direct", "Algorithm 1", "Algorithm 2", "original"], []
    for model in models:
        images = held_out(model)
        (x_T, direct, one), (_, _, two) = (attempts(model, images, f"sampler={name}") for name in ("cold1", "cold2"))
        rows += [x_T, direct, one, two, images]
    return save_grid(torch.cat(rows), path, columns=COLUMNS, rows=titles * len(models))


def steps(model: Model, path: Path) -> Path:
    """Both algorithms with one step, two, and so on up to a step for each level."""
    images, levels = held_out(model), model.degradation.levels
    if levels is None:
        raise UserError(f"{type(model.degradation).__name__} has no levels to step through", "a run that restores",
                        "--runs runs/cold_blur_digits/first")
    counts = [n for n in STEPS if n < levels] + [levels]
    rows = {}
    for title, name in (("Algorithm 1", "cold1"), ("Algorithm 2", "cold2")):
        for n in counts:
            x_T, _, restored = attempts(model, images, f"sampler={name}", f"sampler.num_steps={n}")
            rows |= {"degraded": x_T, f"{title}, n = {n}": restored}
    rows["original"] = images
    return save_grid(torch.cat(list(rows.values())), path, columns=COLUMNS, rows=list(rows))


def strokes(photo: Path, path: Path, colours: int) -> Path:
    """A photo as if painted: a median filter, as wide as 23 of 256 pixels, then few colours (Meng et al. 2021, arXiv
    2108.01073, appendix C.2, simulates strokes so).

    :raises UserError: if there is no photo
    """
    try:
        with Image.open(photo) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
    except OSError as error:
        raise UserError(f"--photo {photo} cannot be read as an image", "a photo", "--photo photo.jpg") from error
    side = max(3, round(min(picture.size) * 23 / 256) // 2 * 2 + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.filter(ImageFilter.MedianFilter(side)).quantize(colours, dither=Image.Dither.NONE).convert("RGB").save(path)
    return path


def inverse(model: Model, path: Path, sampling: Sequence[str] = (), trained: Sequence[Model] = ()) -> Path:
    """For each task: what was measured of held-out images, the answers of each method of a model that is told nothing
    else, those of cold models that were trained for it, and the originals.

    :param sampling: overrides of ``sample.py``, for all methods
    """
    images, rows = held_out(model), {}
    recipes = {name: model.recipe([f"method={name}", *sampling]) for name in registry.available("method")}
    solvers = [(name, model, recipe) for name, recipe in recipes.items()
               if any(part.needs_measurement for part in (*recipe.parts, *recipe.edits))]
    solvers += [(Path(one.name).name, one, one.recipe(["method=cold"])) for one in trained]
    for task in registry.available("task"):
        for name, solver, recipe in solvers:
            told: dict[str, Any] = dict.fromkeys(solver.readers(), "none")
            try:
                problem = registry.build("task", task)
                measured, answers = solve(solver, recipe, problem, images, range(len(images)), **told)
            except UserError as error:
                print(f"{task}, {name}: left out ({error.got})")
                continue
            rows |= {task: measured.show().cpu(), f"{task}: {name}": answers}
    return save_grid(torch.cat([*rows.values(), images]), path, columns=COLUMNS, rows=[*rows, "original"])


EDITS = {
    "same noise": ["guidance=cfg"],
    "p2p": ["guidance=[cfg,p2p]"],
    "p2p and a blend": ["guidance=[cfg,p2p]", "edit=local_blend", "edit.local_blend.words=[OLD,NEW]"],
    "masactrl": ["guidance=[cfg,masactrl]"],
    "sdedit": ["method=sdedit", "guidance=cfg"],
    "p2p, inverted": ["guidance=[cfg,p2p]", "prior=inverted", "edit=[direct_inversion,local_blend]",
                      "edit.local_blend.words=[OLD,NEW]"],
}
"""How the figure ``edits`` puts a new word in the place of an old one."""


def edits(model: Model, words: Sequence[str], path: Path, sampling: Sequence[str] = ()) -> Path:
    """Samples of held-out captions with one of these words, and below each what the methods make of it with the other.

    :param sampling: overrides of ``sample.py``, for all of them
    :raises UserError: for a run without one text, and a word that no caption has
    """
    old, new = words
    (name, reader), change = find_text(model), Change("", "", (old, new))
    images = build_data(model.config, {}, registry.trusted()).split("test")
    said = map(str, reader.write(images.choose(torch.arange(len(images))).signals[name]))
    captions = list(filter(change.fits, said))[:COLUMNS]
    if not captions:
        raise UserError(f"--words {old}: a word that no held-out caption has once", "a word of the captions",
                        "--words red green")
    asked: dict[str, Any] = {name: [text for caption in captions for text in change.write_pair(caption)]}
    indices = [i for i in range(len(captions)) for _ in range(2)]
    rows: dict[str, Tensor] = {}
    for title, settings in EDITS.items():
        settings = [setting.replace("OLD", old).replace("NEW", new) for setting in settings]
        recipe = model.recipe([*sampling, *settings])
        given = rows["source"].repeat_interleave(2, 0) if (recipe.prior or model.prior).needs_images else None
        source, edit = model.sample(indices, recipe=recipe, images=given, **asked).unflatten(0, (-1, 2)).unbind(1)
        rows = rows or {"source": source}
        rows[title] = edit
    return save_grid(torch.cat([*rows.values()]), path, columns=len(captions), rows=list(rows))


FIGURES = ("degradations", "hot_and_cold", "samplers", "restorations", "steps")
NAMED = ("strokes", "inverse", "edits")
"""Figures that are drawn only when they are asked for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="FIGURE",
                        help=", ".join(FIGURES) + " (default: all of these), " + ", ".join(NAMED))
    parser.add_argument("--hot", default="runs/demo/ddpm_digits/hot", help="a run that makes digits from noise")
    parser.add_argument("--cold", default="runs/demo/cold_blur_digits/cold", help="a run that restores digits")
    parser.add_argument("--runs", nargs="+", default=["runs/demo/cold_blur_digits/cold"], metavar="RUN",
                        help="runs that restore, for restorations and steps")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="the folder of the PNG files")
    parser.add_argument("--text", default="runs/text_scenes_digits/first", help="a run with captions, for edits")
    parser.add_argument("--words", nargs=2, default=["red", "green"], metavar="WORD", help="of the captions, for edits")
    parser.add_argument("--sampling", nargs="*", default=[], metavar="KEY=VALUE",
                        help="settings of sample.py, for inverse and edits: sampler.num_steps=40")
    parser.add_argument("--trained", nargs="*", default=[], metavar="RUN",
                        help="cold runs that were trained for a task, for inverse")
    parser.add_argument("--photo", type=Path, default="photo.png", help="for strokes")
    parser.add_argument("--colours", type=int, default=6, help="of strokes, 2 to 256")
    arguments = parser.parse_args()
    wanted = arguments.figures or FIGURES
    if strange := set(wanted) - {*FIGURES, *NAMED}:
        parser.error(f"{strange.pop()}: wanted one of {', '.join(FIGURES + NAMED)}")
    if not 2 <= arguments.colours <= 256:
        parser.error(f"--colours {arguments.colours}: wanted 2 to 256")
    if "strokes" in wanted:
        print(strokes(arguments.photo, arguments.out / "strokes.png", arguments.colours))
    if "degradations" in wanted:
        print(destroyed(arguments.out / "degradations.png"))
    if "inverse" in wanted:
        print(inverse(load(arguments.hot), arguments.out / "inverse.png", arguments.sampling,
                      [load(run) for run in arguments.trained]))
    if "edits" in wanted:
        print(edits(load(arguments.text), arguments.words, arguments.out / "edits.png", arguments.sampling))
    if {"restorations", "steps"} & set(wanted):
        models = [load(run) for run in arguments.runs]
        if "restorations" in wanted:
            print(restorations(models, arguments.out / "restorations.png"))
        if "steps" in wanted:
            print(steps(models[0], arguments.out / "steps.png"))
    shown = [draw for draw in (hot_and_cold, samplers) if draw.__name__ in wanted]
    if shown:
        hot, cold = load(arguments.hot), load(arguments.cold)
        images = to_float(Digits(cold.config["data"]["size"]).split("test").batch(torch.arange(3))[0])
        for draw in shown:
            print(draw(hot, cold, images, arguments.out / f"{draw.__name__}.png"))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        stop(str(error), 2)
