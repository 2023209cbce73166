import json
from pathlib import Path

import pytest

from nemo_prune.errors import PromptFileError
from nemo_prune.files.prompts import read_labels, read_prompts


def _read(tmp_path: Path, name: str, content: bytes) -> tuple[str, ...]:
    path = tmp_path / name
    path.write_bytes(content)
    return read_prompts(path).texts


def test_text_lines_with_a_byte_order_mark_blank_lines_and_repetitions(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffeins\r\n\r\n  zwei \neins\n".encode())
    found = read_prompts(path)
    assert found.texts == ("eins", "zwei")
    assert found.merged == 1


@pytest.mark.parametrize("header", ["Caption", "prompt", "TEXT"])
@pytest.mark.parametrize("separator", [",", ";"])
def test_csv_column_in_any_case(tmp_path: Path, header: str, separator: str) -> None:
    content = f'id{separator}{header}\r\n1{separator}"a, b; c"\r\n2{separator}d\r\n'
    assert _read(tmp_path, "p.csv", content.encode()) == ("a, b; c", "d")


def test_csv_quoted_line_breaks_and_short_rows(tmp_path: Path) -> None:
    assert _read(tmp_path, "p.csv", b'id,text\n1,"a\nb"\n2\n') == ("a\nb",)


def test_json_lines(tmp_path: Path) -> None:
    assert _read(tmp_path, "p.jsonl", b'"a"\n\n{"Prompt": "b", "n": 1}\n') == ("a", "b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "holds no prompts"),
        ("p.txt", b" \n\n", "holds no prompts"),
        ("p.txt", b"caf\xe9", "is not UTF-8"),
        ("p.txt", b"PK\0\0", "is not a text file"),
        ("p.csv", b"", "holds no prompts"),
        ("p.csv", b"a,b\n1,2\n", "no column named caption, prompt, text"),
        ("p.csv", b"text\n", "holds no prompts"),
        ("p.jsonl", b"{", "line 1 is not JSON"),
        ("p.jsonl", b'{"label": "x"}', "line 1 has no string"),
        ("p.jsonl", b'{"text": 3}', "line 1 has no string"),
        ("p.jsonl", b'"\\ud800"', "line 1 is not Unicode; mend it"),
    ],
)
def test_unusable_files_get_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(PromptFileError, match=message) as caught:
        _read(tmp_path, name, content)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="no such file"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(PromptFileError, match="is a folder"):
        read_prompts(tmp_path)


def test_labels_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("Label;Prompt\nVM; a cat \n0;a dog\n;\nno;a dog\ntemplate;a lamp\n")
    prompts = read_prompts(path).texts
    assert prompts == ("a cat", "a dog", "a lamp")
    assert read_labels(path, prompts) == (True, False, True)
    path.write_text("prompt,memorized,label\na cat,0,odd\n")  # "memorized" goes before "label"
    assert read_labels(path, ["a cat"]) == (False,)


def test_no_labels(tmp_path: Path) -> None:
    for name, text in (("p.csv", "prompt\na cat\n"), ("p.txt", "label\n"), ("e.csv", "")):
        (tmp_path / name).write_text(text)
        assert read_labels(tmp_path / name, ["a cat"]) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "prompt,label\na cat,maybe\n",
            r"row 2 has another word under label; write 1 \(memorized\) or 0",
        ),
        ("prompt,label\na cat\n", r"row 2 has nothing under label; write 1 \(memorized\) or 0"),
        ("prompt,label\na cat,1\na dog,0\na cat,0\n", "row 4 labels a prompt otherwise"),
        ("words,label\na cat,1\n", "no column named"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(PromptFileError, match=reason):
        read_labels(path, ["a cat"])


ODD = "one\u2028two\x85three\x0cfour\x1cfive\u2029six\x0bseven"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_at_newlines_only(tmp_path, end):
    """Other characters that Unicode calls line ends stay in the prompt."""
    path = tmp_path / "p.txt"
    path.write_bytes(end.join([ODD, "", "a cat", ODD + "!"]).encode())
    assert read_prompts(path).texts == (ODD, "a cat", ODD + "!")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_json_lines_may_hold_what_json_allows(tmp_path, end):
    """JSON strings may hold U+2028 and U+0085 as they are, so the line is sound."""
    odd = "one\u2028two\x85three\u2029four"
    path = tmp_path / "p.jsonl"
    lines = [json.dumps({"caption": odd}, ensure_ascii=False), json.dumps("a cat")]
    path.write_bytes(end.join([*lines, ""]).encode())
    assert read_prompts(path).texts == (odd, "a cat")


def test_a_fault_in_json_lines_has_its_true_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps("a\u2028b", ensure_ascii=False) + "\n{\n")
    with pytest.raises(PromptFileError, match="line 2 is not JSON"):
        read_prompts(path)
