"""What every test needs: the scripts in `tools/` as modules, one thread, and a cache of its own.

One thread is for equal rounding, and since pytest-xdist uses every core already; processes that
tests start have as many.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock

from nemo_prune.cli import main
from nemo_prune.demo import CHECKPOINT, DATA

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache is neither read nor written."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("NEMO_PRUNE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def demo_calibration(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """What is ordinary to the demo checkpoint, from all its captions: minutes, so once for all."""
    base = tmp_path_factory.getbasetemp()
    out = (base if worker_id == "master" else base.parent) / "calibration.safetensors"
    arguments = ["calibrate", CHECKPOINT, "--prompts", DATA / "ordinary.txt", "-o", out, "--no-cache"]
    with FileLock(out.with_suffix(".lock")):
        if not out.exists():
            done = CliRunner().invoke(main, [*map(str, arguments), "--device", "cpu"])
            assert done.exit_code == 0, done.stderr
    return out
