"""How a codebook is used, with its intervals."""

import pytest
import torch

from diffusion.evaluation.reconstructions import CodeUsage
from diffusion.metrics.intervals import assign_groups


def count(codes, size=4):
    usage = CodeUsage(size, assign_groups(len(codes)))
    for rows in torch.arange(len(codes)).split(7):
        usage.add(codes[rows], rows)
    return usage.numbers()


def test_one_code():
    numbers = count(torch.full((20, 2, 2), 3))
    assert [(n.value, n.low, n.high) for n in numbers.values()] == [(1, 1, 1), (0.25, 0.25, 0.25), (1, 1, 1)]


def test_all_alike():
    numbers = count(torch.arange(4).expand(20, 4).reshape(20, 2, 2).clone())
    assert [numbers[key].value for key in ("codes used", "codes used/share")] == [4, 1]
    assert numbers["perplexity"].value == pytest.approx(4)


def test_a_rare_code_is_uncertain():
    codes = torch.zeros(20, 2, 2, dtype=torch.int64)
    codes[5, 0, 0] = 2
    used = count(codes)["codes used"]
    assert used.value == 2
    # Without its group there is one code: pseudo-values of nine groups 2, of one 10 * 2 - 9 * 1.
    assert used.pseudo_values.sort().values.tolist() == [2] * 9 + [11]
    assert used.high == 4, "there are no more"
