"""Long lists on the command line: scored as they are read, taken up again, and never silently short."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as parquet
import pytest
from tiny import run, write_small

from nemo_prune.files import streams
from nemo_prune.scoring import streaming, table
from nemo_prune.scoring.engine import Engine

TEXTS = [f"caption {n}" for n in range(11)]
SEEDS = ["--seeds", "3", "--device", "cpu", "--tau", "0", "--gate", "0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("streamed") / "tiny.safetensors", side=16)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "PROMPTS_AT_ONCE", 4)
    monkeypatch.setattr(table, "_EVERY", 0.0)


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.csv"
    path.write_text("caption,memorized\n" + "".join(f"{text},{n % 2}\n" for n, text in
                    enumerate([*TEXTS, TEXTS[0].upper()])) + "\ncaption 0,0\n")  # fmt: skip
    return path


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are encoded, so scored, from now on."""
    seen: list[str] = []
    encode = Engine.prompts

    def prompts(self: Engine, texts: list[str], *tokens: Any) -> Any:
        seen.extend(text for text in texts if text)
        return encode(self, texts, *tokens)

    monkeypatch.setattr(Engine, "prompts", prompts)
    return seen


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_streamed_table_says_what_the_list_in_memory_says(
    model: Path, captions: Path, tmp_path: Path
) -> None:
    given = ["--prompts", captions, "--all-seeds", "--show-prompts", "--json", *SEEDS]
    whole = run("detect", model, *given, "--csv", tmp_path / "whole.csv")
    told = json.loads(whole.stdout)
    for suffix in ("csv", "parquet"):
        out = tmp_path / f"stream.{suffix}"
        result = run("detect", model, *given, "-o", out)
        assert result.exit_code == 0, result.stderr
        (note,) = (line for line in whole.stderr.splitlines() if "repeated prompts merged" in line)
        assert note in result.stderr.splitlines()
        streamed = json.loads(result.stdout)
        assert streamed["complete"] is True
        assert streamed["scored"] == 12
        for name in ("memorized", "prompts_read", "merged", "blank", "gate", "tau", "seeds"):
            assert streamed[name] == told[name], name
        assert sorted(streamed["prompts"], key=lambda row: row["index"]) == told["prompts"]
        assert [row["score"] for row in streamed["prompts"]] == sorted(
            (row["score"] for row in told["prompts"]), reverse=True
        )
        assert not list(tmp_path.glob("stream*.partial")) + list(tmp_path.glob("stream*.journal"))
    rows = rows_of(tmp_path / "stream.csv")
    assert [row["index"] for row in rows] == [str(n) for n in range(12)]
    ranked = {row["index"]: row for row in rows_of(tmp_path / "whole.csv")}
    assert all(row == ranked[row["index"]] for row in rows)
    columns = parquet.read_table(tmp_path / "stream.parquet").to_pylist()
    assert [row["score"] for row in columns] == [float(row["score"]) for row in rows]
    assert columns[3]["memorized"] is (rows[3]["memorized"] == "True")
    assert (columns[1]["label"], columns[1]["text"], columns[1]["line"]) == (True, "caption 1", 3)


def test_a_fault_far_down_ends_incomplete_and_is_taken_up_when_mended(
    model: Path, captions: Path, tmp_path: Path, scored: list[str]
) -> None:
    sound = captions.read_text().splitlines(keepends=True)[:8]
    captions.write_text("".join(sound) + '"never closed\nx,1\n')
    given = ["--prompts", captions, *SEEDS, "-o", tmp_path / "t.csv"]
    result = run("detect", model, *given, "--json")
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("nemo-prune:")]
    assert "line 9 has a quote that is never closed" in line
    assert "INCOMPLETE: only the 7 prompts before were scored" in line
    assert "--resume goes on from there" in line
    told = json.loads(result.stdout)
    assert (told["complete"], told["scored"]) == (False, 7)
    assert not (tmp_path / "t.csv").exists()
    assert len(rows_of(tmp_path / "t.csv.partial")) == 7
    again = run("detect", model, *given)
    assert again.exit_code == 2
    assert "an earlier run was not finished; pass --resume to go on" in again.stderr
    scored.clear()
    captions.write_text(captions.read_text().replace('"never closed\n', "now closed,0\ncaption 3,1\n"))
    result = run("detect", model, *given, "--resume", "--json")
    assert result.exit_code == 0, result.stderr
    assert [text for text in scored if text in TEXTS or "closed" in text or text == "x"] == [
        "now closed", "x"
    ]  # fmt: skip
    told = json.loads(result.stdout)
    assert (told["scored"], told["merged"], len(told["prompts"])) == (9, 1, 9)
    rows = rows_of(tmp_path / "t.csv")
    assert [(row["index"], row["line"]) for row in rows[6:]] == [("6", "8"), ("7", "9"), ("8", "11")]
    assert not list(tmp_path.glob("t.csv.*"))


def test_an_interrupted_run_goes_on_and_ends_the_same(
    model: Path, captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: list[str]
) -> None:
    given = ["--prompts", captions, *SEEDS, "--json"]
    whole = json.loads(run("detect", model, *given, "-o", tmp_path / "whole.csv").stdout)
    add = table.Rows.add
    with monkeypatch.context() as patch:

        def interrupted(self: table.Rows, rows: Any, block: Any) -> None:
            if rows[0]["index"] >= 4:
                self._file.write(b"half a row")
                self._fresh.extend(block.keys)
                raise KeyboardInterrupt
            add(self, rows, block)

        patch.setattr(table.Rows, "add", interrupted)
        assert run("detect", model, *given, "-o", tmp_path / "t.csv").exit_code == 130
    scored.clear()
    result = run("detect", model, *given, "-o", tmp_path / "t.csv", "--resume")
    assert result.exit_code == 0, result.stderr
    assert [text for text in scored if text in TEXTS] == TEXTS[4:]
    told = json.loads(result.stdout)
    assert {**told, "cost": 0} == {**whole, "cost": 0}
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-o", "t.txt"], "t.txt: is a table; name it .csv or .parquet"),
        (["-o", "gone/t.csv"], "the folder gone does not exist"),
        (["-o", "t.csv", "--csv", "u.csv"], "-o: is a table in the lists' order"),
        (["-o", "t.csv", "--expect-prompts", "3"], "--expect-prompts 3, and more, 4 so far, were read"),
        (["-o", "t.csv", "--expect-prompts", "13"], "--expect-prompts 13, and 12 distinct prompts"),
        (["-o", "captions.csv", "--overwrite"], "captions.csv"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    model: Path, captions: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], message: str
) -> None:
    monkeypatch.chdir(captions.parent)
    before = captions.read_bytes()
    result = run("detect", model, "--prompts", "captions.csv", *SEEDS, *more)
    assert result.exit_code == 2
    assert message in result.stderr
    assert captions.read_bytes() == before
    assert not Path("t.csv").exists()


def test_nothing_stays_of_a_run_that_scored_nothing(model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n \n")
    result = run("detect", model, "--prompts", tmp_path / "p.txt", "-o", tmp_path / "t.csv", *SEEDS)
    assert result.exit_code == 2
    assert "holds no prompts" in result.stderr
    assert "INCOMPLETE" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["p.txt"]
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    result = run("detect", model, "--prompts", tmp_path / "p.txt", "-o", tmp_path / "t.csv", *SEEDS)
    assert "label" not in result.stderr
    assert "label" not in rows_of(tmp_path / "t.csv")[0]


def test_a_long_list_is_checked_in_a_stream_and_never_green_by_fault(
    model: Path, captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    given = ["--prompts", captions, "--junit", tmp_path / "j.xml"]
    short = run("check", model, *given, *SEEDS)
    monkeypatch.setattr(streams, "LONG", 10)
    result = run("check", model, *given, *SEEDS)
    assert result.exit_code == short.exit_code == 1
    assert sorted(result.stdout.splitlines()) == sorted(short.stdout.splitlines())
    assert "12 of 12 prompts are memorized" in result.stderr
    root = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert root.get("failures") == root.get("tests") == "12"
    assert "12 of 12 prompts are memorized" in summary.read_text()
    green = [*SEEDS[:4], "--tau", "0.99", "--gate", "0.999"]
    assert run("check", model, *given, *green).exit_code == 0
    with captions.open("a") as file:
        file.write("one cell\n")
    result = run("check", model, *given, *green)
    assert result.exit_code == 2
    assert "INCOMPLETE" in result.stderr
    assert ElementTree.parse(tmp_path / "j.xml").getroot().get("errors") == "1"
    assert "no verdict" in summary.read_text()
    result = run("check", model, *given, *green, "--confirm", "trajectory")
    assert result.exit_code == 2
    assert "--confirm trajectory: takes lists of up to 16 MiB" in result.stderr


def test_scoring_begins_before_the_list_is_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a list of thousands of lines a few blocks are read when the first prompts are scored."""

    def lines() -> Iterator[str]:
        yield from (f"caption {n}\n" for n in range(20_000))

    path = tmp_path / "p.txt"
    path.write_text("".join(lines()))
    read: list[int] = []

    def first(self: table.Rows, rows: Any, block: Any) -> None:
        del self, rows
        read.append(block.position.line)
        raise KeyboardInterrupt

    monkeypatch.setattr(table.Rows, "add", first)
    result = run("detect", model, "--prompts", path, "-o", tmp_path / "t.csv", *SEEDS)
    assert (result.exit_code, read) == (130, [4])
    assert [path.name for path in tmp_path.iterdir()] == ["p.txt"]
