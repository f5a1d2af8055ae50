"""Sets that are views: what they give, where they go, and that their pixels need no memory."""

import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import fill, zipped
from PIL import Image

from diffusion.data import Folder, ImageSet, base
from diffusion.data.files.threads import in_order
from diffusion.runs.files import write_whole

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 3, 2, 5), np.uint8))
ROWS = torch.tensor([7, 3, 39, 0, 11])
VIEW = ImageSet(PIXELS, {"label": torch.arange(5)}, ROWS)


def test_a_view_is_its_rows():
    assert (len(VIEW), VIEW.shape) == (5, (5, 3, 2, 5))
    assert torch.equal(VIEW.images, PIXELS[ROWS])
    images, signals = VIEW.batch(np.array([4, 0, 4]))
    assert torch.equal(images, PIXELS[[11, 7, 11]])
    assert signals["label"].tolist() == [4, 0, 4]


def test_a_batch_is_a_copy():
    images, _ = VIEW.batch(torch.tensor([0]))
    images += 1
    assert not torch.equal(images[0], PIXELS[7])


@pytest.mark.parametrize("images", [VIEW, ImageSet(PIXELS), ImageSet(PIXELS[:0])])
@pytest.mark.parametrize("chunk", [1, 2, 512])
def test_chunks_together_are_the_set(images, chunk, monkeypatch):
    monkeypatch.setattr(base, "CHUNK", chunk)
    parts = list(images.chunks())
    assert all(len(part) <= chunk for part, _ in parts)
    assert torch.equal(torch.cat([images.images[:0], *(part for part, _ in parts)]), images.images)
    if images.labels is not None:
        assert torch.cat([signals["label"] for _, signals in parts]).tolist() == images.labels.tolist()


def test_only_what_fits_comfortably_moves(monkeypatch):
    size = VIEW.images.numel() + 8 * len(VIEW)
    monkeypatch.setattr(base, "RESIDENT", size)
    moved = VIEW.to("meta")
    assert moved.pixels.device.type == moved.labels.device.type == "meta"
    assert moved.shape == VIEW.shape
    monkeypatch.setattr(base, "RESIDENT", size - 1)
    assert VIEW.to("meta") is VIEW


def test_a_gpu_keeps_half_of_its_memory(monkeypatch):
    size = VIEW.images.numel() + 8 * len(VIEW)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * size - 1, 10**12))
    assert VIEW.to("cuda") is VIEW


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    moved = VIEW.to("cuda")
    images, signals = moved.batch(np.array([4, 0, 4]))
    assert images.is_cuda
    assert torch.equal(images.cpu(), PIXELS[[11, 7, 11]])
    assert signals["label"].tolist() == [4, 0, 4]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_splits_share_the_map_of_the_cache(tmp_path, own_cache):
    data = Folder(fill(tmp_path, {f"{name}/{i:02d}.png": i for name in "ab" for i in range(10)}), size=8)
    train, test = data.split("train"), data.split("test")
    assert train.pixels.data_ptr() == test.pixels.data_ptr()
    (store,) = own_cache.glob("*.pixels")
    assert str(store) in Path("/proc/self/maps").read_text()
    assert np.array_equal(np.fromfile(store, np.uint8).reshape(20, 3, 8, 8), train.pixels.numpy())
    assert test.rows.tolist() == [9, 19]


@pytest.mark.filterwarnings("error")
def test_one_fingerprint_with_and_without_cache(tmp_path, own_cache):
    root = fill(tmp_path / "images", {f"{name}/{i:02d}.png": i for name in "ab" for i in range(10)})
    (root / "a" / "05.png").write_bytes(b"broken")
    cold, warm, none = Folder(root, size=8), Folder(root, size=8), Folder(root, size=8, cache=False)
    archive = Folder(zipped(root, tmp_path / "images.zip"), size=8, cache=False)
    for name in ("train", "test"):
        for other in (warm, none, archive):
            assert torch.equal(cold.split(name).images, other.split(name).images)
    # The general definition, from pixels in memory.
    plain = type("Plain", (base.Data,), {"class_names": ["a", "b"], "load": lambda self, name: ImageSet(
        cold.split(name).images, cold.split(name).signals)})(8, 3, False)
    assert len({data.fingerprint() for data in (cold, warm, none, archive, plain)}) == 1
    swapped = Folder(root, size=8, held_out=0.2)
    assert swapped.fingerprint() != cold.fingerprint()


def test_a_warm_start_decodes_nothing_and_survives_the_pickle(tmp_path):
    root = fill(tmp_path, {f"{i:02d}.png": i for i in range(10)})
    first = Folder(root, size=8).split("train")
    again = pickle.loads(pickle.dumps(Folder(root, size=8).split("train")))
    assert torch.equal(first.images, again.images)


def test_threads_keep_the_order_and_do_not_run_ahead():
    drawn, taken, most = [], [], 2 * (os.cpu_count() or 1) + 1

    def work(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        return item * item

    for result in in_order(work, (drawn.append(i) or i for i in range(5 * most))):
        taken.append(result)
        assert len(drawn) - len(taken) < most
    assert taken == [i * i for i in range(5 * most)]


def test_an_error_of_a_thread_arrives():
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda item: 1 // (item - 5), range(20)))
    assert threading.active_count() < 50


def test_many_writers_leave_one_whole_file(tmp_path):
    target, contents = tmp_path / "file", [bytes([i]) * 300_000 for i in range(8)]
    writers = [threading.Thread(target=write_whole, args=(target, lambda file, c=c: [file.write(c[:150_000]),
                                                                                      file.write(c[150_000:])]))
               for c in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert target.read_bytes() in contents
    with pytest.raises(ZeroDivisionError):
        write_whole(target, lambda file: 1 // 0)
    assert target.read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


LIMITED = """
import os, resource, sys
from itertools import islice
import numpy as np
from diffusion.data import Batches, Folder

os.cpu_count = lambda: 2  # The stack of each thread counts.
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used + 80 * 2**20,) * 2)
for cache in sys.argv[2], sys.argv[2], False:
    try:
        data = Folder(sys.argv[1], size=512, cache=cache)
        train = data.split("train")
        batches = islice(Batches(train, 0, 5, flip=True), len(train) // 5)
        total = sum(int(batch.images.numpy().sum(dtype=np.int64)) for batch in batches)
        print(data.fingerprint(), total)
    except MemoryError:
        print("no memory")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_more_pixels_than_memory(tmp_path):
    """118 MB of pixels in a process that may take 84 MB more than its imports; without a cache they do not fit."""
    (tmp_path / "images").mkdir()
    for i in range(150):
        Image.new("RGB", (1, 1), (i % 256, 3, 7)).save(tmp_path / "images" / f"{i:03d}.png")
    result = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "images"), str(tmp_path / "cache")],
                            capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    cold, warm, in_memory = result.stdout.splitlines()
    assert cold == warm
    assert int(cold.split()[1]) == sum(i % 256 + 3 + 7 for i in range(135)) * 512 * 512
    assert in_memory == "no memory"
