"""Detection and the gate on the demo checkpoint: memorized captions among ordinary ones, unlabelled."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nemo_prune.cli import main
from nemo_prune.demo import CHECKPOINT, DATA, planted
from nemo_prune.prompts import read_prompts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKPOINT.exists(), reason="the demo checkpoint is not there"),
]

MEMORIZED = [
    text for text, entry in (planted() if CHECKPOINT.exists() else {}).items() if entry["neurons"]
]
FIRST = 50  # of the memorized captions, in the mixed list


def run(*arguments: object) -> tuple[int, Any]:
    done = CliRunner().invoke(main, [*map(str, arguments), "--device", "cpu", "--json"])
    assert done.exit_code in (0, 1), done.stderr
    return done.exit_code, json.loads(done.stdout)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The memorized captions in the middle of 100 ordinary ones that training never saw."""
    ordinary = read_prompts(DATA / "ordinary-heldout.txt").texts[:100]
    path = tmp_path_factory.mktemp("demo") / "mixed.txt"
    path.write_text("\n".join([*ordinary[:FIRST], *MEMORIZED, *ordinary[FIRST:]]))
    return path


def test_memorized_captions_are_found_and_ordinary_ones_take_few_samples(
    mixed: Path, demo_calibration: Path
) -> None:
    code, told = run("check", CHECKPOINT, "--prompts", mixed, "--calibration", demo_calibration)
    assert code == 1
    found = {entry["index"] for entry in told["prompts"] if entry["memorized"]}
    memorized = set(range(FIRST, FIRST + len(MEMORIZED)))
    assert memorized <= found
    assert len(found - memorized) <= 2  # 1 % of 100 ordinary captions are expected
    norms = {entry["index"]: entry["noise_norm"] for entry in told["prompts"]}
    pairs = [norms[i] > norms[j] for i in memorized for j in norms.keys() - memorized]
    assert sum(pairs) / len(pairs) > 0.8  # the second measure separates them less sharply here
    seeds = [entry["seeds"] for entry in told["prompts"] if entry["index"] not in found]
    assert sum(seeds) / len(seeds) <= 5


def test_a_mixed_list_is_pruned_without_labels(mixed: Path, demo_calibration: Path) -> None:
    code, told = run(
        "prune", CHECKPOINT, "--prompts", mixed, "--calibration", demo_calibration, "--dry-run"
    )
    assert code == 0
    for entry in told["prompts"]:
        memorized = FIRST <= entry["index"] < FIRST + len(MEMORIZED)
        assert entry["status"] == ("suppressed" if memorized else "not memorized")
        assert bool(entry["neurons"]) == memorized
