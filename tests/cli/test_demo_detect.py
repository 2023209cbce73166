"""Detection and the gate on the demo checkpoint: memorized captions among ordinary ones, unlabelled."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nemo_prune.cli.main import main
from nemo_prune.files.prompts import read_prompts
from nemo_prune.report.demo import CHECKPOINT, DATA, planted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKPOINT.exists(), reason="the demo checkpoint is not there"),
]

MEMORIZED = list(planted()) if CHECKPOINT.exists() else []
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


@pytest.fixture(scope="module")
def labelled(mixed: Path) -> Path:
    path = mixed.with_suffix(".csv")
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "memorized"])
        rows.writerows((text, int(text in MEMORIZED)) for text in mixed.read_text().splitlines())
    return path


def test_memorized_captions_are_found_and_ordinary_ones_take_few_samples(
    mixed: Path, labelled: Path, demo_calibration: Path
) -> None:
    code, told = run("check", CHECKPOINT, "--prompts", mixed, "--calibration", demo_calibration)
    assert code == 1
    found = {entry["index"] for entry in told["prompts"] if entry["memorized"]}
    memorized = set(range(FIRST, FIRST + len(MEMORIZED)))
    assert memorized <= found
    assert len(found - memorized) <= 2  # 1 % of 100 ordinary captions are expected
    seeds = [entry["seeds"] for entry in told["prompts"] if entry["index"] not in found]
    assert sum(seeds) / len(seeds) <= 5

    # Labels ask for all ten seeds: what stopping early decided must be what they decide.
    _, full = run("detect", CHECKPOINT, "--prompts", labelled, "--calibration", demo_calibration)
    assert all(entry["seeds"] == 10 for entry in full["prompts"])
    decided = {entry["index"] for entry in full["prompts"] if entry["memorized"]}
    assert len(found ^ decided) <= 1  # of 110
    for measure in ("score", "noise_norm"):
        assert full["evaluation"][measure]["auroc"] >= 0.99
        assert full["evaluation"][measure]["tpr_at_fpr_1"] >= 0.95
    assert full["evaluation"]["false_findings_at_gate"] <= 0.02


def test_a_mixed_list_is_pruned_without_labels(
    mixed: Path, demo_calibration: Path, tmp_path: Path
) -> None:
    # What `check` decided of the whole list above, the gate of `prune` decides too, and what the search
    # finds of all other memorized captions is asked in test_demo: a part is enough.
    lines = mixed.read_text().splitlines()
    some, before, count = tmp_path / "some.txt", 15, 3
    behind = FIRST + len(MEMORIZED)
    assert set(MEMORIZED[:-count]) <= set(read_prompts(DATA / "memorized.txt").texts)
    some.write_text("\n".join(lines[FIRST - before : FIRST] + lines[behind - count : behind + before]))
    code, told = run(
        "prune", CHECKPOINT, "--prompts", some, "--calibration", demo_calibration,
        "--confirm", "none",  # what trajectories and more seeds say of the demo is asked in test_demo
        "--seeds", 5,
        "-o", tmp_path / "clean.safetensors",
    )  # fmt: skip
    assert code == 0
    for entry in told["prompts"]:
        memorized = before <= entry["index"] < before + count
        assert entry["status"] == ("suppressed" if memorized else "not memorized")
        assert bool(entry["neurons"]) == memorized
