"""Quality per second: each system trains for equal CPU seconds, samples at equal CPU seconds per image, and is judged
by the Fréchet distance in the features of a classifier that none of them was tuned on.

``python scripts/benchmark.py quality --data mnist --root DATA --judge RUN --out quality.json``

A cell is a system, a seed and a number of minutes; it is added to the file when it is done, and a second start does
those that are missing. Each cell is a training of its own, since a schedule of learning rates ends with it. The peers
are as their README or example has them, their averages and learning rates included; all draw without classes.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.networks import Contender, make_diffusers, make_lucidrains, make_ours
from configs import build
from diffusion.data.base import Data, ImageSet
from diffusion.data.pixels import to_float, to_uint8
from diffusion.metrics.base import MetricInput
from diffusion.metrics.extractors.classifier import ClassifierExtractor
from diffusion.metrics.features import features
from diffusion.metrics.frechet import Frechet
from diffusion.metrics.intervals import assign_groups
from diffusion.runs.files import make_folder, write_whole

WARM = 5
"""Steps by which the time of one is measured before ours is told how many there will be."""
FEW, MANY = 1, 9
"""Steps of two trial samplings, from whose cost follows that of a step."""
CHUNK = 64


def make_system(name: str, data: Data, more: Sequence[str], max_steps: int) -> Contender:
    """A system by its name, untrained.

    :param more: overrides of ``train.py`` for ours
    :param max_steps: optimizer steps that ours will have, over which its learning rate falls
    """
    if name == "diffusers":
        return make_diffusers(data.size, data.channels, "cpu", readme=True)
    if name == "lucidrains":
        return make_lucidrains(data.size, data.channels, "cpu", readme=True)
    return make_ours(data.size, data.channels, "cpu", *more, f"max_steps={max_steps}")


def train(make: Callable[[int], Contender], images: ImageSet, seconds: float, seed: int) -> tuple[Contender, int]:
    """Train for so many CPU seconds of this process, from the first weights on; gives the system and its steps.

    :param make: gets the number of steps that there will be, about
    """
    generator = torch.Generator().manual_seed(seed)
    trial = make(1000)

    def draw(batch: int) -> Tensor:
        return to_float(images.batch(torch.randint(len(images), (batch,), generator=generator))[0])

    trial.train(draw(trial.batch))
    begin = time.process_time()
    for _ in range(WARM):
        trial.train(draw(trial.batch))
    expected = max(WARM, int(seconds / ((time.process_time() - begin) / WARM)))
    torch.manual_seed(seed)
    system, steps = make(expected), 0
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        system.train(draw(system.batch))
        steps += 1
    return system, steps


def draw_at_cost(system: Contender, n: int, seconds: float, shape: tuple[int, ...]) -> tuple[int, Tensor]:
    """n images at so many CPU seconds each: the steps for which that is enough, and the pixels.

    :param shape: of the images, (c, h, w)
    """
    count = min(n, CHUNK)
    costs: dict[int, float] = dict.fromkeys((FEW, MANY), float("inf"))
    for steps in (FEW, MANY) * 2:  # the less of two, since others on the machine only add
        begin = time.process_time()
        system.sample(count, steps)
        costs[steps] = min(costs[steps], (time.process_time() - begin) / count)
    steps = count_steps(costs, seconds)
    parts = [to_uint8(system.sample(min(CHUNK, n - first), steps).cpu()) for first in range(0, n, CHUNK)]
    return steps, torch.cat(parts).view(n, *shape)


def count_steps(costs: dict[int, float], seconds: float) -> int:
    """The number of steps that so many seconds are enough for, at least one and at most 1,000.

    :param costs: seconds of two numbers of steps, the smaller first, between and beyond which the cost is linear
    """
    (few, less), (many, more) = costs.items()
    step = (more - less) / (many - few)
    if step <= 0:  # too quick for the clock, or disturbed: what is known for certain
        step = more / many
    return max(1, min(1000, round(few + (seconds - less) / step)))


def measure_cell(name: str, data: Data, judge: ClassifierExtractor, args: argparse.Namespace, seed: int,
                 minutes: float) -> dict[str, Any]:
    """Train, draw at the cost and at half of it, and take the better of the two."""
    images, held_out = data.split("train"), data.split("test")
    system, steps = train(partial(make_system, name, data, [*args.ours, f"seed={seed}"]), images, minutes * 60, seed)
    reference = features(held_out, judge, "held-out images")
    tries = []
    for seconds in (args.seconds, args.seconds / 2):
        torch.manual_seed(seed)
        count, pixels = draw_at_cost(system, args.samples, seconds, (data.channels, data.size, data.size))
        drawn = ImageSet(pixels)
        sets = MetricInput(drawn, features(drawn, judge, "samples"), reference, assign_groups(args.samples))
        number = Frechet()(sets)["fd"]
        tries.append({"steps": count, "fd": number.value, "low": number.low, "high": number.high})
    best = min(tries, key=lambda entry: entry["fd"])
    return {"system": name, "seed": seed, "minutes": minutes, "training steps": steps,
            "images": steps * system.batch, **best, "tries": tries}


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmark.py quality", description="Quality per CPU second of a training.")
    parser.add_argument("--data", default="mnist", help="a file in configs/data (default: mnist)")
    parser.add_argument("--root", help="where the images lie")
    parser.add_argument("--judge", required=True, help="the run of a classifier of these images")
    parser.add_argument("--systems", nargs="+", default=["ours", "lucidrains", "diffusers"])
    parser.add_argument("--minutes", nargs="+", type=float, default=[5, 10, 20])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0.1, help="CPU seconds for each image (default: 0.1)")
    parser.add_argument("--ours", nargs="*", default=[], help="overrides of train.py for ours, such as an experiment")
    parser.add_argument("--out", type=Path, required=True, help="the file of all cells")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    data = build("data", args.data, **({"root": args.root} if args.root else {}))
    judge = ClassifierExtractor(args.judge, "cpu")
    cells = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in args.seeds:
        for minutes in args.minutes:
            for name in args.systems:
                key = {"system": name, "seed": seed, "minutes": minutes, "data": args.data, "samples": args.samples,
                       "seconds": args.seconds, "ours": args.ours if name == "ours" else []}
                if any(all(cell[field] == value for field, value in key.items()) for cell in cells):
                    continue
                cells.append({**measure_cell(name, data, judge, args, seed, minutes), **key})
                make_folder(args.out.parent)
                write_whole(args.out, json.dumps(cells, indent=1) + "\n")
                print(json.dumps(cells[-1]), flush=True)
    return 0
