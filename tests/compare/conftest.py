"""A bench that tests share, and leave as it is."""

from pathlib import Path

import pytest
from benches import make
from tiny import write_small

from nemo_prune.compare.bench import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    path: Path = write_small(tmp_path_factory.mktemp("compare") / "tiny.safetensors", side=16)
    return make(path)
