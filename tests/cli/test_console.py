"""What people see of what was found."""

import errno
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import run, write_small

from nemo_prune.checkpoint.statuses import Status
from nemo_prune.cli.console import console, interval_text, print_findings, print_prompts
from nemo_prune.cli.failures import Refused, failure, say
from nemo_prune.cli.main import main
from nemo_prune.cli.progress import LineProgress
from nemo_prune.cli.start import run as start
from nemo_prune.errors import CheckpointError

ROOT = Path(__file__).parents[2]
_RUN = "from nemo_prune.cli.start import run; run()"


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
    assert "rate of 0.01, at least 0.400 by its 95 % interval, which so few prompts do not" in words
    assert "bound above; 50 ordinary prompts are too few to see that rate" in words


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.4, 0.6, "95 % interval 0.400 to 0.600"),
        (0.676, None, "at least 0.676 by its 95 % interval, which so few prompts do not bound above"),
        (None, 0.6, "at most 0.600 by its 95 % interval, which so few prompts do not bound below"),
        (None, None, "30 ordinary prompts are too few for a 95 % interval"),
    ],
)
def test_an_interval_that_is_open_is_said_in_words(
    low: float | None, high: float | None, words: str
) -> None:
    assert interval_text({"low": low, "high": high, "prompts": 30}) == words


def test_a_long_table_is_cut_below_what_is_memorized(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings(_result([0.1] * 60, 0.5))
    assert len(_rows(capsys.readouterr().out)) == 40
    print_findings(_result([0.9] * 50 + [0.1] * 9, 0.5))
    printed = capsys.readouterr().out
    assert len(_rows(printed)) == 50
    assert "... and 9 more that are not" in printed


def test_scores_of_few_seeds_and_truncated_prompts_are_explained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = _result([0.2, 0.9], 0.5) | {"seeds": 10}
    print_findings(result)
    assert "lower bounds" not in (first := capsys.readouterr().out)
    assert "truncated" not in first
    result["prompts"][1] |= {"lower_bound": True, "truncated": True}
    result["prompts"][0] |= {"lower_bound": False, "truncated": False}
    print_findings(result)
    words = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 prompts were clear after fewer than 10 seeds: their scores are lower bounds" in words
    assert "truncated: the model sees, and the score is of, what the prompt begins with" in words


def test_a_prompt_that_is_still_drawn_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [
        {"index": 0, "status": "suppressed", "score_before": 0.9, "score_after": 0.1, "neurons": [1],
         "samples": 9, "trajectory": 0.05, "trajectory_samples": 40},
        {"index": 1, "status": "replicated", "score_before": 0.9, "score_after": 0.2, "neurons": [],
         "samples": 9, "trajectory": 0.75, "trajectory_samples": 40},
        {"index": 2, "status": "not memorized", "score_before": 0.1, "score_after": None, "neurons": [],
         "samples": 4, "trajectory": None,
         "trajectory_samples": 0},
    ]  # fmt: skip
    print_prompts({
        "prompts": prompts, "neurons": [1], "gate": {"value": 0.5}, "gate_source": "given", "tau": 0.4,
        "tau_source": "given", "statistics_from": "cache", "criterion": "cross-seed",
        "confirm": "trajectory", "cost": {
            "samples": 22, "calibration_samples": 0, "check_samples": 6, "trajectory_samples": 80,
            "seconds": 1.0, "peak_memory_mb": 100,
        },
    })  # fmt: skip
    words = " ".join(capsys.readouterr().err.split())
    assert "1 of 2 memorized prompts suppressed by score and trajectory" in words
    assert "Still drawn: 1." in words
    assert "0.750" in words
    assert "80 to draw trajectories" in words


@pytest.mark.parametrize("status", list(Status))
def test_no_status_is_cut_off_in_80_columns(
    status: Status, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    entry = {
        "index": 10, "line": 12, "file": "m.txt", "status": status, "score_before": 0.881,
        "score_after": 0.427, "trajectory": 0.587, "neurons": [{}] * 1045, "samples": 10_000,
        "trajectory_samples": 0,
    }  # fmt: skip
    counted = ["samples", "calibration_samples", "check_samples", "trajectory_samples"]
    cost = dict.fromkeys([*counted, "seconds", "peak_memory_mb"], 1)
    print_prompts({
        "prompts": [entry], "cost": cost, "neurons": [], "confirm": "trajectory",
        "criterion": "cross-seed", "gate": {"value": 0.7}, "gate_source": "given", "tau": 0.6,
        "tau_source": "given",
        "statistics_from": "file",
    })  # fmt: skip
    told = capsys.readouterr().err
    assert f" {status} " in told, "in one line"
    assert "…" not in told


def test_a_narrow_terminal_cuts_no_score(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    print_findings(_result([0.912], 0.5))
    printed = capsys.readouterr().out
    assert "…" not in printed
    cells = [line.split("│")[3].strip() for line in printed.splitlines() if line.count("│") > 3]
    assert "".join(cells) == "0.912"


def test_a_name_with_line_breaks_makes_no_second_line() -> None:
    """Which could be a command to the CI that reads the log."""
    error = CheckpointError("no\n::stop-commands::x\x1b[2J.safetensors: no such file")
    one = "no\\n::stop-commands::x\\x1b[2J.safetensors: no such file"
    assert failure(error) == one
    several = Refused({Path("a"): error, Path("b"): error})
    assert failure(several).splitlines() == [one, f"nemo-prune: {one}"]


def test_notes_are_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    LineProgress(console()).note("a\n::error::b.txt: is odd")
    assert capsys.readouterr().err == "note: a\\n::error::b.txt: is odd\n"


def test_a_standard_output_that_is_full_is_no_fault_of_the_program() -> None:
    assert failure(OSError(errno.ENOSPC, "No space left on device")) == (
        "standard output cannot be written (No space left on device); redirect it elsewhere"
    )
    assert "internal error" in failure(OSError(errno.ENOSPC, "No space left on device", "x"))


def test_what_was_written_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("wrote a\n::error::b\udcff.safetensors")
    assert capsys.readouterr().err == "wrote a\\n::error::b\\udcff.safetensors\n"


def test_every_verb_says_names_through_it(tmp_path: Path) -> None:
    model = write_small(tmp_path / "a\nb.safetensors", side=16)
    for words in (["inspect", model], ["apply", model, "--neurons", "0:1", "-o", tmp_path / "c\nd.st"]):
        result = run(*words)
        assert result.exit_code == 0, result.output
        assert "\nb.safetensors" not in result.stdout
        assert "\nd.st" not in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="of a POSIX shell")
@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["inspect", "m"], ["inspect", "m", "--json"]]
)
def test_a_closed_standard_output_is_said(tmp_path: Path, words: list[str]) -> None:
    """What was to be printed would be lost, and the exit code would say that all is well."""
    write_small(tmp_path / "m", side=16)
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" "$@" >&-', sys.executable, "-c", _RUN, *words],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "nemo-prune: standard output cannot be written (Bad file descriptor); redirect it elsewhere\n"
    )


@pytest.mark.skipif(os.name == "nt", reason="of a POSIX shell")
def test_a_closed_standard_output_is_no_fault_where_nothing_is_printed(tmp_path: Path) -> None:
    write_small(tmp_path / "m", side=16)
    words = ["apply", "m", "--neurons", "0:1", "-o", "o"]
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" "$@" >&-', sys.executable, "-c", _RUN, *words],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, (tmp_path / "o").exists()) == (0, True), done.stderr


def test_a_python_without_docstrings_is_no_fault_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nemo_prune.cli.failures.sys", SimpleNamespace(flags=SimpleNamespace(optimize=2))
    )
    told = failure(RuntimeError("Failed to import diffusers"))
    assert told.startswith("RuntimeError: Python runs without docstrings (PYTHONOPTIMIZE=2, -OO)")
    assert failure(CheckpointError("m: is empty")) == "m: is empty"


class _Full(io.TextIOBase):
    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("words", [["inspect", "nowhere"], ["--colour"], ["check"]])
def test_a_full_standard_error_makes_no_finding(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1 would say that something is memorized."""
    monkeypatch.setattr("sys.stderr", _Full())
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2


def test_ctrl_c_while_the_command_line_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.__import__", interrupted)
    with pytest.raises(SystemExit) as ended:
        start()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "nemo-prune: interrupted\n"
