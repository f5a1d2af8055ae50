"""One torch thread, shapes checked at run time, no cache of the person who runs the tests."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from jaxtyping import install_import_hook

install_import_hook(["degradations", "models", "samplers", "diffusion"], "typecheck.check")

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def hot(tmp_path_factory):
    """A small hot run that has learned enough for its weights, averages and classes to differ."""
    from helpers import DIGITS, LEARNED, train

    return train(tmp_path_factory.mktemp("runs"), *DIGITS, "run.name=hot", *LEARNED,
                 "callbacks.checkpoint.every=6", experiment="ddpm_digits")


@pytest.fixture(scope="session")
def cold(tmp_path_factory):
    """A small cold run."""
    from helpers import COLD, LEARNED, train

    return train(tmp_path_factory.mktemp("runs"), *COLD, "run.name=cold", *LEARNED,
                 "callbacks.checkpoint.every=6", experiment="cold_blur_digits")
