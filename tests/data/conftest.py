from pathlib import Path

import pytest
from pictures import samples, write_tar


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """Keeps the default cache away from the user's own."""
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home / "thaw"


@pytest.fixture
def shards(tmp_path) -> Path:
    """Sixty images in three shards, of two classes and with captions."""
    for number in range(3):
        write_tar(tmp_path / "shards" / f"{number:03d}.tar", samples(
            20 * number, 20 * number + 20, cls=lambda seed: (b"dog", b"cat\n")[seed % 2],
            txt=lambda seed: f"picture {seed}".encode()))
    return tmp_path / "shards"
