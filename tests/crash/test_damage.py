"""Checkpoints that are cut off or have a wrong bit, anywhere: an earlier one is used, with the same weights in the end;
without one there are words."""

import pytest
from processes import run
from writers import EVERY, RUN, STEPS, WRITERS, list_different

from diffusion.runs import checkpoint

pytestmark = [pytest.mark.crash, pytest.mark.xdist_group("checkpoints")]
[TRAINING] = [writer for writer in WRITERS if writer.name == "checkpoints"]
REGIONS = ("header", "middle", "tail")


def damage(data: bytes, how: str, region: str, rng) -> bytes:
    """A bit flipped in a third of a file, or the file cut off there."""
    third = len(data) // 3
    header = 100  # the zip's first header, before which nothing stands
    first, last = {"header": (0, header), "middle": (third, 2 * third),
                   "tail": (len(data) - header, len(data))}[region]
    place = rng.randrange(first, last)
    if how == "cut":
        return data[:place]
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1:]


@pytest.fixture
def trained(measure, set_up):
    """The folder of a complete training, and its reference."""
    reference = measure(TRAINING)
    place = set_up(reference.place, TRAINING)
    ended = run(TRAINING.command, place)
    assert ended.code == 0
    return place, reference


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("how", ["cut", "flip"])
def test_the_newest(how, region, trained, rng, note):
    place, reference = trained
    path = checkpoint.list_checkpoints(place / RUN / "checkpoints")[STEPS]
    path.write_bytes(damage(path.read_bytes(), how, region, rng))
    ended = run(TRAINING.command, place)
    note(f"the newest checkpoint: {how}", "training", lost=EVERY, unit="steps")
    assert ended.code == 0, ended.said
    assert f"{path.name} is damaged" in ended.said
    assert f"resuming at step {STEPS - EVERY}" in ended.said
    assert list_different(place, reference.files) == []


@pytest.mark.parametrize("how", ["cut", "flip"])
def test_all(how, trained, rng, note):
    place, _ = trained
    for path, region in zip(checkpoint.list_checkpoints(place / RUN / "checkpoints").values(), rng.sample(REGIONS, 2)):
        path.write_bytes(damage(path.read_bytes(), how, region, rng))
    ended = run(TRAINING.command, place)
    note(f"all checkpoints: {how}", "training")
    assert ended.code == 2
    assert "is damaged" in ended.said
    assert "Traceback" not in ended.said
