"""What `check` leaves for continuous integration, whatever a caption holds."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from nemo_prune.errors import OutputError
from nemo_prune.files.prompts import PromptList, prompt_id
from nemo_prune.report.junit import (
    annotation,
    append_step_summary,
    error_suite,
    finding_line,
    is_own,
    markdown,
    no_verdict,
    verdict_suite,
    write_junit,
)

RESULT = {
    "gate": {"value": 0.5}, "gate_source": "given", "tau": 0.4, "tau_source": "given", "seeds": 4,
    "source": {"path": "m.safetensors"}, "version": "9", "timestep": 961, "cost": {"seconds": 1.5},
    "prompts_read": 4, "merged": 0, "blank": 0,
}  # fmt: skip
ENTRY = {"index": 3, "score": 0.9, "noise_norm": 1.0, "memorized": True, "seeds": 2, "file": "p.txt",
         "line": 5}  # fmt: skip


@pytest.mark.parametrize("between", ["\n", "\r\n", "\x85", "\u2028", "\x0b", "\x1b[2K\x00\n"])
def test_a_caption_of_two_lines_stays_one(between: str) -> None:
    """A line that begins with :: would be a command to GitHub."""
    entry = ENTRY | {"text": f"a fox{between}::error::all is well"}
    line = finding_line(entry, RESULT)
    assert len(line.splitlines()) == 1
    assert line.startswith("p.txt:5: prompt 3 is memorized (score 0.900, gate 0.500): a fox ")
    assert line.endswith("::error::all is well")
    assert line.isprintable()
    table = markdown({**RESULT, "prompts": [entry]})
    assert "\x1b" not in table
    assert [row for row in table.splitlines() if "::error::" in row] == [table.splitlines()[-2]]
    assert len(annotation(entry, RESULT).splitlines()) == 1


def test_without_text_none_is_shown() -> None:
    line = finding_line(ENTRY | {"index": 0, "score": 0.6}, RESULT)
    assert line == "p.txt:5: prompt 0 is memorized (score 0.600, gate 0.500)"


def test_an_annotation_is_one_command_to_github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ENTRY | {"file": "lists/a,b:c%.txt", "text": "100 % fox\n"}
    assert annotation(entry, RESULT) == (
        "::error file=lists/a%2Cb%3Ac%25.txt,line=5,title=memorized prompt::"
        "prompt 3 is memorized (score 0.900, gate 0.500): 100 %25 fox"
    )
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    for file in (str(tmp_path / "lists" / "p.txt"), "p.txt", "../lists/p.txt"):
        (tmp_path / "lists").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "lists")
        assert annotation(ENTRY | {"file": file}, RESULT).startswith("::error file=lists/p.txt,line=5,")


def _result(model: str = "m.safetensors") -> dict[str, Any]:
    rows = [
        {"index": 0, "score": 0.9, "noise_norm": 1.0, "memorized": True, "seeds": 2},
        {"index": 1, "score": 0.1, "noise_norm": 0.5, "memorized": False, "seeds": 4},
    ]
    prompts = PromptList(TEXTS, 3, 1, (("p.txt", 1), ("q.csv", 7)))
    return prompts.locate(RESULT | {"source": {"path": model}, "prompts": rows})


TEXTS = ("a cat", "a dog")


def _cases(result: dict[str, Any], path: Path) -> list[ElementTree.Element]:
    write_junit([verdict_suite(result, TEXTS)], path, True)
    return ElementTree.parse(path).getroot().findall(".//testcase")


def test_cases_are_known_by_model_list_and_prompt(tmp_path: Path) -> None:
    """Servers merge cases of one class and name: two models must not share them."""
    path = tmp_path / "j.xml"
    one, other = _cases(_result(), path), _cases(_result("other.safetensors"), path)
    names = [(case.get("classname"), case.get("name")) for case in one + other]
    assert len(set(names)) == 4
    assert names[0] == ("m.safetensors p.txt", f"prompt {prompt_id('a cat')}")
    assert (one[1].get("file"), one[1].get("line")) == ("q.csv", "7")
    # Another prompt before it changes its number and line, not its name.
    moved = _result()
    moved["prompts"][0] |= {"index": 8, "line": 9}
    assert _cases(moved, path)[0].get("name") == names[0][1]


@pytest.mark.parametrize("file", ["p.parquet", "p.PQ", "p.csv.gz"])
def test_files_that_are_not_text_have_no_lines(tmp_path: Path, file: str) -> None:
    assert annotation(ENTRY | {"file": file}, RESULT) == (
        f"::error file={file},title=memorized prompt::"
        "row 5: prompt 3 is memorized (score 0.900, gate 0.500)"
    )
    result = _result()
    result["prompts"][0]["file"] = file
    first, second = _cases(result, tmp_path / "j.xml")
    assert (first.get("line"), second.get("line")) == (None, "7")
    assert (first.findtext("failure") or "").startswith(f"{file}:1: ")


def test_passing_cases_carry_score_and_seeds(tmp_path: Path) -> None:
    failing, passing = _cases(_result(), tmp_path / "j.xml")
    assert passing.find("failure") is None
    assert passing.findtext("system-out") == (
        "prompt 1: score 0.10000, noise norm 0.50000, 4 of 4 seeds"
    )
    assert failing.findtext("failure") == "p.txt:1: prompt 0 is memorized (score 0.900, gate 0.500)"


def test_properties_say_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "j.xml"
    write_junit([verdict_suite(_result(), TEXTS)], path, False)
    suites = ElementTree.parse(path).getroot()
    said = {one.get("name"): one.get("value") for one in suites.findall("testsuite/properties/property")}
    assert said == {
        "model": "m.safetensors", "prompts": "p.txt q.csv", "version": "9", "tau": "0.4", "gate": "0.5",
        "tau_source": "given", "gate_source": "given", "seeds": "4", "timestep": "961",
        "prompts_read": "5", "merged": "3", "blank": "1",
    }  # fmt: skip
    suite = suites.find("testsuite")
    assert suite is not None
    assert suite.get("name") == "nemo-prune check m.safetensors"


def test_the_summary_says_how_many_seeds_were_used() -> None:
    text = markdown(_result() | {"memorized": 1})
    assert "2 to 4 of 4 seeds a prompt. Prompts: 5 read, 3 repeated, 1 blank." in text
    assert "| 0 | p.txt:1 | 0.900 | 1.000 | 2 |" in text


def test_the_summary_explains_scores_of_few_seeds_and_truncated_prompts() -> None:
    result = _result() | {"memorized": 1}
    text = markdown(result)
    assert "Scores from fewer than all seeds are lower bounds" in text
    assert "Longer than" not in text
    result["prompts"][0] |= {"seeds": 4, "truncated": True}
    text = markdown(result)
    assert "lower bounds" not in text
    assert "scored by what they begin with: prompts 0." in text


def test_an_error_is_one_case(tmp_path: Path) -> None:
    path = tmp_path / "j.xml"
    write_junit([error_suite(Path("m.safetensors"), "p.txt: \x00 no such file\n")], path, False)
    suites = ElementTree.parse(path).getroot()
    assert (suites.get("tests"), suites.get("failures"), suites.get("errors")) == ("1", "0", "1")
    assert suites.findtext(".//testcase/error") == "p.txt: no such file"
    with pytest.raises(OutputError, match="exists already"):
        write_junit([error_suite(Path("m.safetensors"), "other")], path, False)


def test_an_error_is_told_in_the_summary_too(tmp_path: Path) -> None:
    path = tmp_path / "s.md"
    append_step_summary(markdown(_result() | {"memorized": 1}), path)
    text = no_verdict("m.safetensors", "p.txt: <b>no</b>\nsuch | file")
    assert append_step_summary(text, path) is None
    assert path.read_text().endswith(
        "### ⚠️ nemo-prune check: no verdict\n\nm.safetensors: p.txt: \\<b\\>no\\</b\\> such \\| file\n\n"
    )
    assert "m.safetensors: m" not in no_verdict("m.safetensors", "m.safetensors: no such file")


ROOT = '<testsuites name="nemo-prune check">'
OWN = ROOT + '<testsuite name="nemo-prune check m"><testcase name="x"/>{}</testsuite>{}</testsuites>'
TWO = OWN.format("<properties/>", "<testsuite name='nemo-prune check n'/>")


@pytest.mark.parametrize(
    ("content", "own"),
    [
        (OWN.format("", ""), True),
        (TWO, True),
        (TWO.replace(ROOT, "<testsuites>"), False),  # merged
        (TWO.replace(ROOT, "<testsuites name='merged'>"), False),
        (OWN.format("", "<testsuite name='unit tests'/>"), False),
        (OWN.format("<system-out/>", ""), False),
        (OWN.replace("nemo-prune check m", "unit tests").format("", ""), False),
        ("<testsuite name='nemo-prune check m'/>", False),
        (f"{ROOT}</testsuites>", False),
        ("keep me", False),
        ("", False),
        ("<?xml version='1.0' encoding='klingon'?><a/>", False),
    ],
)
def test_a_file_of_an_earlier_check_is_known_by_its_content(
    tmp_path: Path, content: str, own: bool
) -> None:
    path = tmp_path / "j.xml"
    assert not is_own(path)
    path.write_text(content)
    assert is_own(path) is own
    assert not is_own(tmp_path)


def test_what_check_writes_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "j.xml"
    write_junit([verdict_suite(_result(), TEXTS)], path, False)
    assert is_own(path)
    write_junit([error_suite(Path("m.safetensors"), "no")], path, True)
    assert is_own(path)
