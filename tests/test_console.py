"""What people see of what was found."""

import re
from typing import Any

import pytest

from nemo_prune import console
from nemo_prune.console import LineProgress, print_findings, progress


def _result(scores: list[float], gate: float) -> dict[str, Any]:
    prompts = [
        {"index": index, "memorized": score > gate, "score": score, "noise_norm": 1.0, "seeds": 4}
        for index, score in enumerate(scores)
    ]
    return {
        "prompts": prompts, "memorized": sum(score > gate for score in scores), "evaluation": None,
        "gate": {"value": gate, "fpr": 0.01, "low": 0.4, "high": None, "prompts": 50,
                 "extrapolated": True},
        "gate_source": "calibrated", "tau": 0.3, "tau_source": "calibrated",
        "cost": {"samples": 9, "calibration_samples": 5},
    }  # fmt: skip


def _rows(printed: str) -> list[tuple[int, float]]:
    """Index and score of each row of the table."""
    found = re.findall(r"^│\s*(\d+) │ (?:yes|no)\s* │ (\d\.\d+) │", printed, re.MULTILINE)
    return [(int(index), float(score)) for index, score in found]


def test_the_table_is_ranked_by_score_then_by_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings(_result([0.2, 0.9, 0.55, 0.9, 0.1], 0.5))
    printed = capsys.readouterr().out
    assert _rows(printed) == [(1, 0.9), (3, 0.9), (2, 0.55), (0, 0.2), (4, 0.1)]
    words = " ".join(printed.split())
    assert "3 of 5 prompts are memorized. Gate 0.500 (calibrated" in words
    assert "95 % interval 0.400 to ?; 50 ordinary prompts are too few to see that rate" in words


def test_a_long_table_is_cut_below_what_is_memorized(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings(_result([0.1] * 60, 0.5))
    assert len(_rows(capsys.readouterr().out)) == 40
    print_findings(_result([0.9] * 50 + [0.1] * 9, 0.5))
    printed = capsys.readouterr().out
    assert len(_rows(printed)) == 50
    assert "... and 9 more that are not" in printed


class Clock:
    """Time that passes only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(console.time, "monotonic", lambda: self.now)


def _lines(seconds: float, clock: Clock, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a stage of 100 prompts prints that takes so long for each."""
    with progress(quiet=False) as shown:
        assert isinstance(shown, LineProgress)
        shown.stage("searching", 100, "prompts")
        for _ in range(100):
            clock.now += seconds
            shown.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_without_a_terminal_a_stage_is_a_line_and_a_long_one_a_few(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    assert _lines(0.1, clock, capsys) == ["searching: 100 prompts"]
    tenths = [f"searching: {tenth} of 100 prompts" for tenth in range(10, 100, 10)]
    assert _lines(600, clock, capsys) == ["searching: 100 prompts", *tenths]
    minutes = [f"searching: {minute} of 100 prompts" for minute in (20, 40, 60, 80)]
    assert _lines(3, clock, capsys) == ["searching: 100 prompts", *minutes]


def test_lines_keep_notes_and_say_nothing_of_empty_stages(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=False) as shown:
        shown.stage("searching", 0, "prompts")
        shown.stage("loading the model", 1, "file")
        shown.stage("scoring", 1, "prompts")
        for _ in range(2):
            shown.note("[bold]odd[/] " + "long " * 40)
    assert capsys.readouterr().err.splitlines() == [
        "loading the model: 1 file", "scoring: 1 prompt", "note: [bold]odd[/] " + "long " * 40
    ]  # fmt: skip


def test_quiet_leaves_the_notes_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=True) as shown:
        shown.stage("searching", 5, "prompts")
        shown.advance()
        shown.detail("3 samples")
        shown.note("heard")
    assert capsys.readouterr().err == "note: heard\n"
