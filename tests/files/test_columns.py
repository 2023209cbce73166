"""Two usual names in one record: which is read, and what becomes of a text under the other."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_prune.errors import PromptFileError, rendered
from nemo_prune.files.prompts import read_prompts
from nemo_prune.files.streams import PromptStream

Row = dict[str, object]


def _csv(path: Path, rows: list[Row]) -> None:
    lines = [",".join(rows[0]), *(",".join(str(cell or "") for cell in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def _json_lines(path: Path, rows: list[Row]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


def _json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps({"captions": rows}, indent=1))


def _parquet(path: Path, rows: list[Row]) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.Table.from_pylist(rows), path)


WRITERS = {"p.csv": _csv, "p.jsonl": _json_lines, "p.json": _json, "p.parquet": _parquet}
every_format = pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=WRITERS)
Write = Callable[[Path, list[Row]], None]


@every_format
@pytest.mark.parametrize("nothing", [None, "", " \u200b"])
@pytest.mark.parametrize(
    ("read", "other"), [("caption", "text"), ("caption", "prompt"), ("prompt", "text")]
)
def test_a_text_in_place_of_the_one_that_is_read_is_refused(
    tmp_path: Path, name: str, write: Write, nothing: str | None, read: str, other: str
) -> None:
    """It would be left out as blank."""
    path = tmp_path / name
    write(path, [{read: "a cat", other: None}, {read: nothing, other: "a dog"}])
    with pytest.raises(PromptFileError) as refused:
        read_prompts(path)
    said = rendered(refused.value.args[0])
    assert f"has nothing under {read}, and a text under {other}: bring" in said
    with pytest.raises(PromptFileError, match=f"nothing under {read}"):
        list(PromptStream([path]).blocks(9))

    found = read_prompts(path, column=read)
    stream = PromptStream([path], column=read)
    assert [one.text for block in stream.blocks(9) for one in block.prompts] == ["a cat"]
    assert (found.texts, found.blank) == (("a cat",), 1)
    for notes in (found.notes, tuple(stream.notes)):
        (note,) = (note for note in notes if "nothing" in note)
        assert "1 of its records have nothing in the column that was asked for, and a text in" in note


@every_format
def test_of_two_usual_names_the_one_that_is_not_read_is_named(
    tmp_path: Path, name: str, write: Write
) -> None:
    path = tmp_path / name
    write(path, [{"id": 1, "caption": "a cat", "text": "x"}, {"id": 2, "caption": "a", "text": None}])
    found = read_prompts(path)
    assert found.texts == ("a cat", "a")
    assert "the column caption is read, text not; prompt_column names" in rendered(found.notes[0])
    write(path, [{"caption": None, "text": None}, {"caption": "a", "text": ""}])
    assert read_prompts(path).blank == 1  # nothing is lost


def test_a_list_that_was_asked_for_has_the_usual_names(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"mine": [{"caption": "a cat"}, {"caption": null, "text": "a dog"}]}')
    with pytest.raises(PromptFileError, match="has nothing under caption, and a text under text"):
        read_prompts(path, column="mine")


def test_records_with_one_name_or_another_are_read_and_those_with_both_said(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"caption": "a cat"}\n{"text": "a dog"}\n{"prompt": "a cow", "text": "x"}\n')
    found = read_prompts(path)
    assert found.texts == ("a cat", "a dog", "a cow")
    (note,) = found.notes
    assert "the column prompt is read, text not" in note
