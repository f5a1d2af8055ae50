"""How long an index of shards takes, how fast images come from them, and how much memory that needs.

``python scripts/benchmark_shards.py FOLDER [--count 1000000 ...]`` makes sets of that many tiny images (8 x 8 px, with
classes) in FOLDER, unless they are there, and prints a table. Each set is measured in processes of their own: first
without an index, then with it.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from degradations.randomness import generator
from diffusion.data.files.pack import Sample, write_shards

SIDE, CLASSES, DIFFERENT, SHARD = 8, 10, 256, 2 * 10**8


def draw(count: int) -> Iterator[Sample]:
    """Images of which some hundred differ, under different keys."""
    files = []
    for pixels in generator("shards").integers(0, 256, (DIFFERENT, SIDE, SIDE, 3), np.uint8):
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    for place in range(count):
        yield Sample("train", f"{place:09d}", {"png": files[place % DIFFERENT], "cls": b"%d" % (place % CLASSES)})


def measure(folder: Path, cache: Path, batches: int) -> dict[str, float]:
    """Seconds until the splits are known, images per second, both also by the CPU time of all threads, and MB of this
    process, now and at most."""
    from diffusion.data import Batches, Shards

    def look() -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time()])

    start = look()
    data = Shards(folder, size=SIDE, cache=cache)
    train, _ = data.split("train"), data.split("test")
    data.fingerprint()
    known = look()
    stream = iter(Batches(train, seed=0, batch=256, flip=True))
    next(stream)
    begun = look()
    images = sum(len(batch.images) for batch in islice(stream, batches))
    speed = images / (look() - begun)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"training images": len(train), "start s": (known - start)[0], "start CPU s": (known - start)[1],
            "first batch CPU s": (begun - known)[1], "images/s": speed[0], "images/CPU s": speed[1],
            "MB": int(status["VmRSS"].split()[0]) / 1024, "MB at most": int(status["VmHWM"].split()[0]) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the sets are made")
    parser.add_argument("--count", type=int, nargs="+", default=[10_000, 1_000_000], help="images of each set")
    parser.add_argument("--batches", type=int, default=200, help="batches of 256 images to load")
    parser.add_argument("--measure", type=Path, nargs=2, metavar=("SET", "CACHE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure[0], given.measure[1], given.batches)))
        return
    for count in given.count:
        shards, cache = given.folder / f"{count}", given.folder / f"{count}-cache"
        if not shards.exists():
            write_shards(draw(count), shards, SHARD)
        for store in cache.glob("*.shard"):
            store.unlink()
        for what in ("without an index", "with it"):
            found = subprocess.run([sys.executable, __file__, str(given.folder), "--batches", str(given.batches),
                                    "--measure", str(shards), str(cache)], capture_output=True, text=True, check=True)
            numbers = json.loads(found.stdout.splitlines()[-1])
            print(f"{count} images, {what}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))


if __name__ == "__main__":
    main()
