"""The commands that write files: what may kill them, and what must be the same however often they were killed.

A command of a new kind gets an entry in :data:`WRITERS`; nothing else has to be said anywhere.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from helpers import DIGITS, NANO
from PIL import Image
from processes import PART

from diffusion.runs import checkpoint

STEPS, EVERY, PICTURES, MEASURED, PHOTOS, SIZE = 8, 2, 12, 20, 24, 16
DIGITS_TRAIN = 1501
"""Training images of the bundled digits."""
RUN = Path("runs/ddpm_digits/x")
STAGE = Path("runs/autoencoder_digits/x")
FEW = ["device=cpu", "sampler.num_steps=2"]
TRAIN = ["train.py", *DIGITS, "run.root=runs", "run.name=x", f"max_steps={STEPS}", "accumulate=2",
         f"callbacks.checkpoint.every={EVERY}", "callbacks.checkpoint.keep=2", "callbacks.pictures.every=4"]
TRAIN_STAGE = ["train.py", "experiment=autoencoder_digits", *(word for word in NANO if word != "model=nano"),
               "model.base=8", "run.root=runs", "run.name=x", "max_steps=2", "callbacks.pictures.count=0"]
HONEST = ("seconds", "seconds/sample", "GB at the peak", "peak_memory_gb")
"""Keys of JSON files whose values are times and such, which no two commands share."""


@dataclass(frozen=True)
class Writer:
    """A kind of command.

    :ivar name: its name in the table
    :ivar command: script and arguments, in a folder that has what it needs
    :ivar needs: what that is, of what ``conftest.base`` makes: ``photos``, ``runs``
    :ivar kinds: patterns of the names of the files that it writes, one for each kind, in whose writes it is killed
    :ivar unit: what its work is counted in
    :ivar most: how much of it may be lost
    :ivar lose: what has been lost, of the folder and the words of a command that was killed there, and what the same
        command must say afterwards
    """

    name: str
    command: Sequence[str]
    needs: tuple[str, ...]
    kinds: tuple[str, ...]
    unit: str
    most: int
    lose: Callable[[Path, str], tuple[int, str]]


@dataclass
class Reference:
    """What an uninterrupted command leaves.

    :ivar place: where it ran, and where those that are compared with it run, so that all paths are the same
    :ivar files: their contents
    :ivar seconds: how long it took
    :ivar writes: names of the files that it wrote, in order
    """

    place: Path
    files: dict[str, Any]
    seconds: float
    writes: list[str]


def lose_steps(place: Path, said: str) -> tuple[int, str]:
    """Steps that are logged and in no checkpoint."""
    run = place / RUN
    saved = max(checkpoint.list_checkpoints(run / "checkpoints"), default=0)
    rows = (run / "metrics.csv").read_text().splitlines(keepends=True)[1:] if (run / "metrics.csv").exists() else []
    steps = [int(row.split(",")[0]) for row in rows if row.endswith("\n")]
    words = "" if not saved else "this run is complete" if saved == STEPS else f"resuming at step {saved}"
    return max([0, *steps]) - saved if steps and steps[-1] > saved else 0, words


def lose_pictures(place: Path, said: str) -> tuple[int, str]:
    """Pictures that are there and not in the manifest, which is written every 10 seconds."""
    manifest = place / "out" / "manifest.json"
    known = len(json.loads(manifest.read_text())["samples"]) if manifest.exists() else 0
    return len(list((place / "out").glob("0*.png"))) - known, f"samples to draw: {PICTURES - known} of {PICTURES}"


def lose_part(place: Path, said: str) -> tuple[int, str]:
    """The part under way, of samples that go into an archive."""
    parts = list((place / "out" / ".parts").glob("*.part"))
    complete = (place / "out" / "manifest.json").exists()
    left = 0 if complete else PICTURES - PART * len(parts)
    return min(PART, left), f"samples to draw: {left} of {PICTURES}"


def lose_decoded(place: Path, said: str) -> tuple[int, str]:
    """Images that were decoded into a file that has no index."""
    known = any(place.glob("cache/photos-*.json"))
    decoded = [path for path in place.glob("cache/*photos-*") if ".pixels" in path.name]
    count = max((path.stat().st_size // SIZE**2 for path in decoded), default=0)
    return 0 if known else count, "" if known else f"decoded {PHOTOS} images"


def lose_archived(place: Path, said: str) -> tuple[int, str]:
    """All images: an archive is made at once."""
    return 0 if (place / "out.zip").exists() else PHOTOS, f"{PHOTOS} images, content"


def lose_encoded(place: Path, said: str) -> tuple[int, str]:
    """All images, if there is no record of their latents."""
    known = any(place.glob("cache/latents-*.json"))
    return (0, f"those of {DIGITS_TRAIN} images") if known else (DIGITS_TRAIN, f"{DIGITS_TRAIN} images encoded")


def lose_measured(place: Path, said: str) -> tuple[int, str]:
    """All pictures, if the numbers are not there."""
    known = any(place.glob(f"{RUN}/evaluations/*/evaluation.json"))
    return 0 if known else MEASURED, "measured before" if known else ""


def lose_commands(place: Path, said: str) -> tuple[int, str]:
    """The command of the table that was running; those before it are complete."""
    begun = said.count("$ python")
    return min(1, begun), "this run is complete" if begun > 1 else ""


OF_RUNS = ("config.yaml", "environment.json", "metrics.csv", "*.png", "step-*.pt")
WRITERS = [
    Writer("training", TRAIN, (), OF_RUNS, "steps", EVERY, lose_steps),
    Writer("checkpoints", TRAIN, (), ("step-*.pt",), "steps", EVERY, lose_steps),
    Writer("indexing", [*TRAIN[:-2], "data=folder", "data.root=photos", f"data.size={SIZE}", "data.channels=1",
                        "data.cache=cache", "max_steps=2", "callbacks.pictures.count=0"], ("photos",),
           ("photos-*.pixels", "photos-*.json"), "images", PHOTOS, lose_decoded),
    Writer("sampling", ["sample.py", f"run={RUN}", f"samples=0-{PICTURES - 1}", "batch=4", "out=out", "animate=true",
                        "animation.frames=2", *FEW], ("runs",),
           ("0*.png", "manifest.json", "grid.png", "trajectory.webp"), "pictures", PICTURES, lose_pictures),
    Writer("samples in an archive", ["sample.py", f"run={RUN}", f"samples=0-{PICTURES - 1}", "batch=2", "out=out",
                                     "format=zip", *FEW], ("runs",),
           ("*.part", "samples.zip", "grid.png", "manifest.json"), "pictures", PART, lose_part),
    Writer("evaluation", ["evaluate.py", f"run={RUN}", f"count={MEASURED}", "metrics=quick", "judge=none",
                          "extractor=random", *FEW], ("runs",), ("features-*.pt", "parts.pt", "evaluation.json"),
           "pictures", MEASURED, lose_measured),
    Writer("latents", ["scripts/cache_latents.py", "experiment=ldm_digits", *DIGITS[1:], "space.cache=cache",
                       f"begin.first_stage.run={STAGE}"], ("runs",), ("latents-*.moments", "latents-*.json"), "images",
           DIGITS_TRAIN, lose_encoded),
    Writer("archive", ["scripts/prepare_data.py", "photos", "out.zip", "--size", "32"], ("photos",), ("out.zip",),
           "images", PHOTOS, lose_archived),
    Writer("reproduction", ["scripts/reproduce.py", "table=digits", "budget=smoke"], (),
           ("accuracy.csv", "evaluation.json", "digits-smoke.json", "digits-smoke.md"), "commands", 1,
           lose_commands),
]


def by_writer(*names: str) -> pytest.MarkDecorator:
    """A parameter ``writer`` of a test, those of one writer in one process of pytest."""
    return pytest.mark.parametrize("writer", [pytest.param(writer, id=writer.name, marks=pytest.mark.xdist_group(
        writer.name)) for writer in WRITERS if not names or writer.name in names])


def by_kind() -> pytest.MarkDecorator:
    """Parameters ``writer`` and ``kind``, one of the kinds of its files."""
    return pytest.mark.parametrize(("writer", "kind"), [
        pytest.param(writer, kind, id=f"{writer.name} {kind}", marks=pytest.mark.xdist_group(writer.name))
        for writer in WRITERS for kind in writer.kinds])


def read_settled(path: Path) -> Any:
    """The content of a file without what no two commands share: times, and the speed of a training."""
    if path.suffix == ".json":
        try:
            return _settle(json.loads(path.read_bytes()))
        except ValueError as error:
            return f"cannot be read: {error}"
    if path.name == "metrics.csv":
        rows = [line.split(",") for line in path.read_bytes().decode().splitlines(keepends=True)]
        speed = rows[0].index("images_per_s") if rows and "images_per_s" in rows[0] else None
        return [[cell for i, cell in enumerate(row) if i != speed] for row in rows]
    if path.suffix == ".html":  # with times in it, of what other files have without
        return "a page that is whole" if path.read_text().rstrip().endswith("</html>") else "a part of a page"
    if path.suffix == ".md":
        return re.sub(r"^\d{4}-\d\d-\d\d", "", path.read_text(), flags=re.MULTILINE)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _settle(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _settle(value) for key, value in node.items() if key not in HONEST}
    return [_settle(value) for value in node] if isinstance(node, list) else node


def read_all(place: Path) -> dict[str, Any]:
    """All files below a folder, hidden ones too."""
    return {str(path.relative_to(place)): read_settled(path) for path in sorted(place.rglob("*")) if path.is_file()}


def list_different(place: Path, whole: dict[str, Any], complete: bool = False) -> list[str]:
    """What is not as an uninterrupted command leaves it, in words.

    :param complete: the last checkpoint had been saved when the command was killed; the one that was to be removed
        then may be there still, until the run is trained longer
    """
    there = read_all(place)
    if complete:
        spare = [name for name in there.keys() - whole.keys() if fnmatch(name, "*/step-*.pt")]
        there = {name: content for name, content in there.items() if name not in spare}
    return [f"{name}: {str(there.get(name))[:3000]}\n  uninterrupted: {str(whole.get(name))[:3000]}"
            for name in sorted(there.keys() | whole.keys()) if there.get(name) != whole.get(name)]


def list_torn(place: Path, whole: dict[str, Any], written: Sequence[str]) -> list[str]:
    """Files that have their name and are not as they will be, of those that a command writes only once. A table that
    lines are appended to may end within one, which the next start drops.

    :param whole: what an uninterrupted command leaves
    :param written: the names of the files that it wrote
    """
    return [f"torn: {name}" for name, content in whole.items() if written.count(Path(name).name) == 1
            and not name.endswith(".csv") and (place / name).is_file() and read_settled(place / name) != content]


def make_photos(folder: Path) -> None:
    """Pictures of noise."""
    folder.mkdir()
    for i in range(PHOTOS):
        Image.effect_noise((40, 36), 20 + i).save(folder / f"{i:02d}.png")
