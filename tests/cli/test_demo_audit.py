"""The quick audit as it is shipped, of the demo's pruned file: two captions, nothing made cheaper.

One audit for all tests. Modules that take minutes begin first (`conftest`), so it is no long tail.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_demo_detect import run

from nemo_prune.files.prompts import read_prompts
from nemo_prune.report.demo import CHECKPOINT, DATA, planted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKPOINT.exists(), reason="the demo checkpoint is not there"),
]
# A photo and a template: all eight captions take minutes.
MEMORIZED = read_prompts(DATA / "memorized.txt").texts[1::6] if CHECKPOINT.exists() else ()


@dataclass(frozen=True)
class Told:
    """What the command said, and its report."""

    code: int
    data: dict[str, Any]
    page: str


@pytest.fixture(scope="module")
def told(demo: Any, demo_calibration: Path, shared: Path, tmp_path_factory: Any) -> Told:
    """What docs/audit.md tells of."""
    folder = tmp_path_factory.mktemp("audit")
    with (folder / "targets.csv").open("w", newline="") as file:
        rows = [("prompt", "file")]
        rows += [(text, str(DATA / "targets" / planted()[text]["target"])) for text in MEMORIZED]
        csv.writer(file).writerows(rows)
    (folder / "prompts.txt").write_text("".join(f"{text}\n" for text in MEMORIZED))
    lists = "--prompts", folder / "prompts.txt", "--targets", folder / "targets.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEMO_PRUNE_CACHE", str(shared / "demo-cache"))
        code, data = run(
            "audit", CHECKPOINT, demo.folder / "clean.safetensors", *lists, "--strength", "quick",
            "--calibration", demo_calibration, "--report", folder / "audit.html",
        )  # fmt: skip
    return Told(code, data, (folder / "audit.html").read_text())


def attack(entry: Any, model: str) -> Any:
    """The only one on a caption's picture in a model."""
    (found,) = [one for one in entry["embeddings"]["attacks"] if one["model"] == model]
    return found


def test_it_is_said_that_pictures_came_back(told: Told) -> None:
    assert told.code == 1
    assert told.data["verdict"].startswith("NOT ERASED: the picture of ")
    assert "NOT ERASED" in told.page
    assert len(told.data["prompts"]) == len(MEMORIZED) == 2


def test_words_do_not_bring_the_pictures_back(told: Told) -> None:
    for entry in told.data["prompts"]:
        assert len(entry["words"]) >= 11
        by = {word["kind"] for word in entry["words"] if word["back"]}
        assert by <= {"weights"}, "weights go beyond what words can say"
        assert entry["words"][0]["kind"] == "as it stands"


def test_samplers_do_not_bring_them_back_and_the_original_draws_them(told: Told) -> None:
    for entry in told.data["prompts"]:
        styles = entry["pictures"]["styles"]
        drawn, near = sum(one["count"] for one in styles), sum(len(one["near"]) for one in styles)
        assert (drawn, near) == (15, 0)
        control, of = entry["pictures"]["control"]
        assert control == of > 0, "the original draws it from every noise"


def test_embeddings_do_and_controls_do_not_come(told: Told) -> None:
    """A picture that trajectories promise and whole pictures do not show is none."""
    back = 0
    for entry in told.data["prompts"]:
        original, pruned = attack(entry, "original"), attack(entry, "pruned")
        assert original["back"] == 0
        assert pruned["by"] == original["by"] == "pictures"
        back += pruned["came_back"]
        assert (pruned["back"] is not None) == pruned["came_back"]
        if pruned["came_back"]:
            assert 0 < pruned["back"] <= 25
            assert pruned["curve"][-1]["near"] > 0
    assert back >= len(MEMORIZED) - 1, "all where this was written"
    assert len(told.data["controls"]) == 2
    assert all(one["back"] is None for control in told.data["controls"] for one in control["attacks"])
