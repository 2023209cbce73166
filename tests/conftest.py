"""What every test needs: the scripts in `tools/` as modules, one thread for equal rounding, and a
cache of its own.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from nemo_prune.cli import main
from nemo_prune.demo import CHECKPOINT, DATA

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache is neither read nor written."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("NEMO_PRUNE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def demo_calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is ordinary to the demo checkpoint, from all its captions: minutes, so once for all tests."""
    out = tmp_path_factory.mktemp("demo") / "calibration.safetensors"
    arguments = ["calibrate", CHECKPOINT, "--prompts", DATA / "ordinary.txt", "-o", out, "--no-cache"]
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    done = CliRunner().invoke(main, [*map(str, arguments), "--device", "cpu"])
    torch.set_num_threads(threads)
    assert done.exit_code == 0, done.stderr
    return out
