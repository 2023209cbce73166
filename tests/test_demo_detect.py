"""Detection and the gate on the demo checkpoint: memorized captions among ordinary ones, unlabelled."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nemo_prune.cli import main
from nemo_prune.demo import CHECKPOINT, DATA, planted
from nemo_prune.prompts import read_prompts

pytestmark = pytest.mark.skipif(not CHECKPOINT.exists(), reason="the demo checkpoint is not there")

SEEDS = ["--seeds", "6", "--device", "cpu"]
# The rocket is a dark, faint photo: it scores no higher than a few ordinary captions, and the default
# gate leaves it alone (the README says so).
MEMORIZED = [
    text
    for text, entry in (planted() if CHECKPOINT.exists() else {}).items()
    if entry["neurons"] and entry["name"] != "rocket"
]


def run(*arguments: object) -> tuple[int, Any]:
    done = CliRunner().invoke(main, [*map(str, arguments), *SEEDS, "--json"])
    assert done.exit_code in (0, 1), done.stderr
    return done.exit_code, json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def calibration(folder: Path) -> Path:
    captions = folder / "ordinary.txt"
    captions.write_text("\n".join(read_prompts(DATA / "ordinary.txt").texts[:40]))
    out = folder / "calibration.safetensors"
    run("calibrate", CHECKPOINT, "--prompts", captions, "-o", out, "--no-cache")
    return out


@pytest.fixture(scope="module")
def mixed(folder: Path) -> Path:
    ordinary = read_prompts(DATA / "ordinary-heldout.txt").texts[:16]
    path = folder / "mixed.txt"
    path.write_text("\n".join([*ordinary[:8], *MEMORIZED, *ordinary[8:]]))
    return path


def test_memorized_captions_are_found_and_ordinary_ones_take_few_samples(
    calibration: Path, mixed: Path
) -> None:
    code, told = run("check", CHECKPOINT, "--prompts", mixed, "--calibration", calibration)
    assert code == 1
    found = {entry["index"] for entry in told["prompts"] if entry["memorized"]}
    assert found == set(range(8, 8 + len(MEMORIZED)))
    norms = {entry["index"]: entry["noise_norm"] for entry in told["prompts"]}
    pairs = [norms[i] > norms[j] for i in found for j in norms.keys() - found]
    assert sum(pairs) / len(pairs) > 0.85  # the second measure separates them less sharply here
    ordinary = [entry["seeds"] for entry in told["prompts"] if entry["index"] not in found]
    assert sum(ordinary) / len(ordinary) < 6


def test_a_mixed_list_is_pruned_without_labels(calibration: Path, mixed: Path) -> None:
    code, told = run("prune", CHECKPOINT, "--prompts", mixed, "--calibration", calibration, "--dry-run")
    assert code == 0
    for entry in told["prompts"]:
        memorized = 8 <= entry["index"] < 8 + len(MEMORIZED)
        assert entry["status"] == ("suppressed" if memorized else "not memorized")
        assert bool(entry["neurons"]) == memorized
