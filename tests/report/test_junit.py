"""Lines of `check`: one a finding, whatever a caption holds."""

from pathlib import Path

import pytest

from nemo_prune.report.junit import finding_line, markdown

RESULT = {
    "gate": {"value": 0.5}, "gate_source": "given", "tau": 0.4, "tau_source": "given", "seeds": 4,
    "source": {"path": "m.safetensors"},
}  # fmt: skip


@pytest.mark.parametrize("between", ["\n", "\r\n", "\x85", "\u2028", "\x0b", "\x1b[2K\x00\n"])
def test_a_caption_of_two_lines_stays_one(between: str) -> None:
    """A line that begins with :: would be a command to GitHub."""
    entry = {"index": 3, "score": 0.9, "noise_norm": 1.0, "memorized": True,
             "text": f"a fox{between}::error::all is well"}  # fmt: skip
    line = finding_line(entry, RESULT, Path("p.txt"))
    assert len(line.splitlines()) == 1
    assert line.startswith("p.txt: prompt 3 is memorized (score 0.900, gate 0.500): a fox ")
    assert line.endswith("::error::all is well")
    assert line.isprintable()
    table = markdown({**RESULT, "prompts": [entry]})
    assert "\x1b" not in table
    assert [row for row in table.splitlines() if "::error::" in row] == [table.splitlines()[-2]]


def test_without_text_none_is_shown() -> None:
    line = finding_line({"index": 0, "score": 0.6}, RESULT, Path("p.txt"))
    assert line == "p.txt: prompt 0 is memorized (score 0.600, gate 0.500)"
