"""What every test needs: the scripts in `tools/` as modules, one thread, and a cache of its own.

One thread is for equal rounding, and since pytest-xdist uses every core already; processes that
tests start have as many.
"""

import gc
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from hypothesis import settings

from nemo_prune.cli.main import main
from nemo_prune.files.prompts import bundled_captions
from nemo_prune.localize.confirm import UNRELATED
from nemo_prune.report.demo import DATA
from nemo_prune.scoring.cache import store
from nemo_prune.scoring.calibration_file import read_calibration

# The same examples every time, so that a change is judged by what it changes. Others are looked for by
# `pytest --hypothesis-profile=default`.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# What is imported stays: looking through it for what could be freed takes a tenth of small tests' time.
gc.freeze()


# They wait for what test_demo makes: its calibration, and the demo itself.
_WAITING = (
    "test_demo_audit",
    "test_demo_detect",
    "test_demo_layouts",
    "test_docs",
    "test_report_browser",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes first: begun last, it would leave the other processors with nothing to do."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, item.path.stem in _WAITING))


@pytest.fixture(scope="session", autouse=True)
def _common_cache(shared: Path) -> Iterator[None]:
    """The user's cache is neither read nor written; what is ordinary to a tiny model is found once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEMO_PRUNE_CACHE", str(shared / "common-cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _fewer_captions() -> Iterator[None]:
    """Of the bundled captions the first are enough for a tiny model: all 2,000 take seconds.

    So are the trajectories of four ordinary captions; the demo takes as many as users do.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nemo_prune.scoring.ordinary.bundled_captions", lambda: bundled_captions()[:200])
        patch.setattr("nemo_prune.localize.localize.UNRELATED", 4)
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, for tests in which it matters what it holds."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("NEMO_PRUNE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all worker processes see."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


def _once(out: Path, shared: Path, *arguments: object) -> str:
    """Run a command that makes `out`, once for all workers; what it printed. They share a cache."""
    printed = out.with_suffix(".stdout")
    with FileLock(out.with_suffix(".lock")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEMO_PRUNE_CACHE", str(shared / "demo-cache"))
        patch.setattr("nemo_prune.localize.localize.UNRELATED", UNRELATED)
        if not printed.exists():
            done = CliRunner().invoke(main, [str(argument) for argument in arguments])
            assert done.exit_code == 0, done.stderr
            printed.write_text(done.stdout)
    return printed.read_text()


@pytest.fixture(scope="session")
def demo_calibration(shared: Path) -> Path:
    """What is ordinary to the demo checkpoint, as it is shipped; the demo's cache knows it too."""
    path = DATA / "calibration.safetensors"
    found = read_calibration(path)
    about = {name: found.about[name] for name in ("fingerprint", "precision", "settings")}
    with FileLock(shared / "demo-cache.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEMO_PRUNE_CACHE", str(shared / "demo-cache"))
        for kind, other in (("activations", "scores"), ("scores", "statistics")):
            part = replace(found, about=about | {kind: found.about[kind]}, **{other: None})
            assert store(kind, part) is None
    return path


@dataclass(frozen=True)
class Demo:
    """What `nemo-prune demo` left in its folder, and printed with --json."""

    folder: Path
    result: dict[str, Any]


@pytest.fixture(scope="session")
def demo(shared: Path) -> Demo:
    """The demo as a user runs it."""
    folder = shared / "demo"
    return Demo(folder, json.loads(_once(folder, shared, "demo", "--folder", folder, "--json")))
