"""What metrics take: memory that does not grow with the square of the images; what a network and a sample cost."""

import os
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from diffusion.evaluation.cost import count_sample_flops
from diffusion.model import Model
from diffusion.runs import memory
from models.attention import attend

LIMITED = """
import resource, sys
import torch
torch.set_num_threads(1)
from diffusion.data.base import ImageSet
from diffusion.metrics import distances, kid
from diffusion.metrics.base import Features, MetricInput
from diffusion.metrics.frechet import Frechet
from diffusion.metrics.intervals import assign_groups
from diffusion.metrics.kid import KID
from diffusion.metrics.neighbors import Memorization, Neighbors

n, d = 4500, 64
distances.BLOCK, kid.CHUNK = 2**20, 512
x, y = torch.randn(n, d), torch.randn(n, d)
nothing = ImageSet(torch.zeros(1, 1, 1, 1, dtype=torch.uint8))
sets = MetricInput(nothing, Features(x), Features(y), assign_groups(n), train=Features(y), held_out=Features(x))
small = MetricInput(nothing, Features(x[:100]), Features(y[:100]), assign_groups(100))
for metric in KID(), Neighbors(), Frechet():
    metric(small)  # what libraries take for themselves
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used + 100 * 2**20,) * 2)
for metric in KID(), Neighbors(), Frechet(), Memorization():
    print(*metric(sets))
try:
    torch.cdist(x.double(), y.double())
except RuntimeError:
    print("no memory")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_no_matrix_of_all_pairs():
    """Of 4,500 images it would need 162 MB."""
    # Else blocks of some megabytes tear holes into the heap.
    result = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False,
                            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"})
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:-1] == ["kid", "precision recall density coverage", "fd",
                                              "train distance copied", "no memory"]


@pytest.mark.parametrize("side", [4, 17])
def test_operations_by_hand(side):
    """A convolution, a linear layer and attention, plain and fused (above 256 tokens)."""
    convolution, linear, tokens = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 4, bias=False), side * side

    def output(x, t, ctx):
        x = linear(convolution(x).flatten(2).mT)[:, None]
        return attend(x, x, x)

    model = Mock(spec=Model, evaluator=Mock(output=output))
    model.shape, model.device = (2, side, side), torch.device("cpu")
    model.weights = Mock()
    assert count_sample_flops(model, 1) == 2 * (tokens * 6 * 2 * 9 + tokens * 6 * 4 + 2 * tokens**2 * 4)


MOMENT = """
import torch
from diffusion.runs import memory

cpu, mega, ends = torch.device("cpu"), 2**20, []
for size in 1, 256, 1:
    with memory.peak(cpu) as found:
        torch.ones(size * mega, dtype=torch.uint8)
        assert found.bytes is None
    ends.append(found.bytes // mega)
print(*ends)
"""


PEAKS = """
import torch
from diffusion.runs.memory import peak

def use(size):
    with peak(torch.device("cpu")) as found:
        torch.ones(size * 2**20, dtype=torch.uint8)
        assert found.bytes is None
    return found.bytes

print(use(1), use(101), use(1))
"""


@pytest.mark.skipif(not memory.STATUS.exists(), reason="/proc is Linux's")
def test_the_peak_is_what_was_there_for_a_moment():
    """And the one before is forgotten, where Linux lets it."""
    result = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    before, large, after = (int(size) / 2**20 for size in result.stdout.split())
    assert large - before == pytest.approx(100, abs=10)
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert after - before == pytest.approx(0, abs=10)
