"""What people see of how far long work is."""

import io
from itertools import pairwise

import pytest
from rich import progress as bars
from rich.console import Console

from nemo_prune.cli import progress as module
from nemo_prune.cli.progress import BarProgress, LineProgress, TimeLeft, columns, progress


class Clock:
    """Time that passes only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


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


def test_the_time_left_does_not_jump_where_prompts_end_in_bursts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """64 of 256 prompts end together every 900 seconds, a millisecond after each other."""
    now = 50.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    left = TimeLeft(300, done=44)
    seen = []
    for burst in range(4):
        for second in range(900):
            now = 50.0 + 900 * burst + second
            seen.append(str(left))
        for i in range(64):
            now = 50.0 + 900 * (burst + 1) + i / 1000
            left.advance(1)
            seen.append(str(left))
    now += 2
    seen.append(str(left))
    first = next(i for i, text in enumerate(seen) if text != "-:--:--")
    assert first == 900 + 64 + 2  # not in the middle of the first burst
    assert seen[first] == "0:44:58"
    told = [
        sum(int(part) * 60**i for i, part in enumerate(reversed(text.split(":"))))
        for text in seen[first:]
    ]
    assert all(-2 <= later - earlier <= 2 for earlier, later in pairwise(told))
    assert told[-1] == 0


def test_a_stage_of_unknown_length_counts_what_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with progress(quiet=False) as shown:
        shown.stage("probing", None, "samples")
        for _ in range(13):
            clock.now += 10
            shown.advance(100)
            shown.detail("2 prompts left")
    assert capsys.readouterr().err.splitlines() == [
        "probing", "probing: 600 samples", "probing: 1200 samples"
    ]  # fmt: skip


def test_nobody_knows_when_a_stage_of_unknown_length_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    left = TimeLeft(None, done=0)
    for _ in range(3):
        clock.now += 10
        left.advance(5)
    clock.now += 10
    assert str(left) == "-:--:--"


def test_a_bar_of_unknown_length_shows_samples_and_detail() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with bars.Progress(*columns(), console=console) as bar:
        shown = BarProgress(bar)
        shown.stage("probing", None, "samples")
        shown.advance(7)
        shown.detail("round 2")
        bar.refresh()
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "7/?" in printed
    assert "round 2" in printed
    assert "-:--:--" in printed
