import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
from pyarrow import parquet

from nemo_prune.errors import PromptFileError, rendered
from nemo_prune.files import source
from nemo_prune.files.lists import STDIN, expand
from nemo_prune.files.prompts import check_count, prompt_id, read_prompts
from nemo_prune.files.streams import PromptStream


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


def test_marks_that_joined_files_bring_along_are_no_part_of_a_prompt(tmp_path: Path) -> None:
    content = "\ufeffa cat\r\na dog\r\r\n\ufeffa cat\r\n\ufeff\r\n".encode()
    assert _read(tmp_path, "p.txt", content) == ("a cat", "a dog")


def test_of_two_columns_of_texts_the_one_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("prompt,caption\na red house,house\n")
    found = read_prompts(path)
    assert found.texts == ("house",)
    assert "the column caption is read, prompt not" in found.notes[0]
    found = read_prompts(path, column="prompt")
    assert (found.texts, found.notes) == (("a red house",), ())


@pytest.mark.parametrize(
    ("name", "content", "unread"),
    [
        ("p.csv", "image,caption,caption2,caption3\nx.png,a cat,a dog,a fox\n", "caption2 and caption3"),
        ("p.csv", "caption,original_caption,negative_prompt\na,b,ugly\n", "original_caption"),
        ("p.csv", "text,text_en,caption_score,prompt_id,context\nein Hund,a dog,1,4,b c\n", "text_en"),
        ("p.jsonl", '{"caption": "a cat", "long_caption": "a"}\n{"caption": "b"}\n', "long_caption"),
    ],
)
def test_columns_that_look_like_captions_too_are_named(
    tmp_path: Path, name: str, content: str, unread: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    (note,) = read_prompts(path).notes
    assert f" is read, {unread} not; prompt_column names another" in rendered(note)
    assert PromptStream([path]).check() is False


def test_keys_of_which_records_have_one_or_another_are_all_read(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"caption": "a cat"}\n{"text": "a dog"}\n')
    assert read_prompts(path).notes == ()


def test_columns_as_pandas_writes_them_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"caption": {"0": "a cat", "1": "a dog"}}')
    with pytest.raises(PromptFileError, match=r'object of columns, .* \(pandas: orient="records"\)'):
        read_prompts(path)


def test_prompt_files_of_inspire_and_logs_are_called_so(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("positive:a cat\n\nnegative:blurry\n----\npositive:a dog\n\nnegative:low\n")
    with pytest.raises(PromptFileError, match="names positive and negative prompts, and is no list"):
        read_prompts(path)
    path.write_text("INFO:__main__:a cat\nINFO:__main__:a dog\n")
    (note,) = read_prompts(path).notes
    assert "begin as a program's log does" in note


def test_a_header_on_standard_input_is_given_a_format_rather_than_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caption\na cat\n")))
    (note,) = read_prompts(STDIN).notes
    assert rendered(note).endswith("was taken as a prompt; give prompts_format csv")


def test_a_closed_standard_input_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it after <&-
    with pytest.raises(PromptFileError, match="standard input is closed"):
        read_prompts(STDIN)


@pytest.mark.parametrize("header", ["Caption", "prompt", "TEXT"])
@pytest.mark.parametrize("separator", [",", ";"])
def test_csv_column_in_any_case(tmp_path: Path, header: str, separator: str) -> None:
    content = f'id{separator}{header}\r\n1{separator}"a, b; c"\r\n2{separator}d\r\n'
    assert _read(tmp_path, "p.csv", content.encode()) == ("a, b; c", "d")


def test_csv_quoted_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(b'id,text\n1,"a\nb"\n2,c\n')
    found = read_prompts(path)
    assert found.texts == ("a\nb", "c")
    assert found.places == ((str(path), 2), (str(path), 4))
    (note,) = found.notes
    assert "1 prompts hold line breaks, the first at line 2" in note


def test_json_lines(tmp_path: Path) -> None:
    assert _read(tmp_path, "p.jsonl", b'"a"\n\n{"Prompt": "b", "n": 1}\n') == ("a", "b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "holds no prompts"),
        ("p.txt", b" \n\n", "holds no prompts"),
        ("p.txt", b"caf\xe9", "is not UTF-8"),
        ("p.txt", b"PK\0\0", "is not a text file"),
        ("p.txt", "caption\tlabel\r\na cat\t1\r\n".encode("utf-16"), "is UTF-16, not UTF-8"),
        ("p.txt", b"a cat\na dog\ra lamp\r", "line 2 holds carriage returns"),
        ("p.txt", b"{\\rtf1\\ansi a cat\\par}\n", "is rich text"),
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
    found = read_prompts(path, labels=True)
    assert found.texts == ("a cat", "a dog", "a lamp")
    assert found.labels == (True, False, True)
    assert found.counts == {"prompts_read": 4, "merged": 1, "blank": 1}
    path.write_text("prompt,memorized,label\na cat,0,odd\n")  # "memorized" goes before "label"
    assert read_prompts(path, labels=True).labels == (False,)


def test_kinds_of_memorization(tmp_path: Path) -> None:
    """The paper's list says VM and TM; other labels, and lists without, say nothing of it."""
    path = tmp_path / "list.csv"
    path.write_text("Caption;URL;type\na;u;VM\nb;u;TM\nc;u;N\nd;u;Template\n")
    assert read_prompts(path).kinds == ("verbatim", "template", None, "template")
    path.write_text("caption,memorized\na,1\nb,0\n")
    assert read_prompts(path, labels=True).kinds == ()
    path = tmp_path / "list.jsonl"
    path.write_text('{"caption": "a", "kind": "verbatim"}\n{"caption": "b"}\n')
    assert read_prompts(path).kinds == ("verbatim", None)


def test_no_labels(tmp_path: Path) -> None:
    for name, text in (("p.csv", "prompt\na cat\n"), ("p.txt", "label\n")):
        (tmp_path / name).write_text(text)
        assert read_prompts(tmp_path / name, labels=True).labels is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "prompt,label\na cat,maybe\n",
            r"line 2 has another word under label; write 1 \(memorized\) or 0 .*VM.* rename the column",
        ),
        ("prompt,label\na cat,\n", r"line 2 has nothing under label; write 1 \(memorized\) or 0"),
        ("prompt,label\na cat,1\na dog,0\na cat,0\n", "line 4 labels a prompt otherwise"),
        ("words,label\na cat,1\n", "no column named"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(PromptFileError, match=reason):
        read_prompts(path, labels=True)


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


# ----------------------------------------------------------------------------------------- formats

TWO = ("a cat, asleep", "a dog")


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("p.txt", "a cat, asleep\na dog\n", (1, 2)),
        ("p.csv", "n|caption\n1|a cat, asleep\n2|a dog\n", (2, 3)),
        ("p", "a cat, asleep\na dog\n", (1, 2)),
        ("p.tsv", "id\tcaption\n1\ta cat, asleep\n2\ta dog\n", (2, 3)),
        ("p.tsv", "\tcaption\n1\ta cat, asleep\n2\ta dog\n", (2, 3)),
        ("p.csv", '\n\ncaption\n"a cat, asleep"\n\na dog\n', (4, 6)),
        ("p.json", '["a cat, asleep", "a dog"]', (1, 1)),
        ("p.json", '[\n "a cat, asleep",\n\n {"n": [1, {}], "Caption": "a dog"}\n]\n', (2, 4)),
        ("p.json", '{"n": {"prompts": [1]}, "Prompts":\n["a cat, asleep",\n"a dog"]}', (2, 3)),
        ("p.json", '{"captions": [{"text": "a cat, asleep"},\n{"text": "a dog"}], "n": NaN}', (1, 2)),
        ("p.ndjson", '"a cat, asleep"\n\n{"prompt": "a dog", "score": NaN}\n', (1, 3)),
        ("P.JSONL", '{"TEXT": "a cat, asleep"}\n{"text": "a dog"}', (1, 2)),
    ],
)
def test_formats(tmp_path: Path, name: str, content: str, lines: tuple[int, int]) -> None:
    path = tmp_path / name
    path.write_text(content)
    found = read_prompts(path)
    assert found.texts == TWO
    assert found.places == tuple((str(path), line) for line in lines)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", '["a cat", "a dog"]', "holds JSON, not text; name it .json"),
        ("p.txt", '{"prompts": ["a cat"]}', "holds JSON, not text; name it .json"),
        ("p.txt", '{"caption": "a cat"}\n{"caption": "a dog"}\n', "holds JSON lines, not text"),
        ("p.txt", '"a cat"\n"a dog"\n', "holds JSON lines, not text; name it .jsonl"),
        ("p.txt", '[\n"a cat",\n"a dog",\n]', "begins as JSON"),
        ("p.txt", '{"caption": "a cat"', "begins as JSON"),
        ("p.txt", "['a cat', 'a dog']", "begins as JSON"),
        ("p.dat", '["a cat", "a dog"]', "holds JSON, not text"),
        ("p", '{"caption": "a cat"}\n{"caption": "a dog"}\n', "holds JSON lines, not text"),
        ("p.csv", '["a cat", "a dog"]', "holds JSON, not CSV"),
        ("p.tsv", '{"caption": "a cat"}', "holds JSON"),
        ("p.txt", "id,Caption\n1,a cat\n2,a dog\n", "a table separated by commas, not text"),
        ("p.txt", "Caption;type\na cat;VM\n", "a table separated by semicolons, not text"),
        ("p.txt", "1\ta cat\n2\ta dog\n", "a table separated by tabs, not text; name it .tsv"),
        ("p.txt", "id|caption\n1|a cat\n", "a table separated by bars, not text"),
        ("p.txt", '"1","a cat"\n"2","a dog"\n', "a table separated by commas, not text"),
        ("p.txt", "<!DOCTYPE html>\n<p>404 cat</p>", "begins as a web page, YAML or a program"),
        ("p.txt", "prompts:\n  - a cat\n", "begins as a web page, YAML or a program"),
        ("p.txt", "prompts = [\n'a cat',\n]", "begins as a web page, YAML or a program"),
        ("p.txt", "version https://git-lfs.github.com/spec/v1\noid 1\n", "is a Git LFS pointer"),
        ("p.json", '{"prompts": ["a cat"], "captions": ["a dog"]}', "has several lists of prompts"),
        ("p.yaml", "- a cat\n- a dog\n", ".yaml files are not read as lists"),
        ("p.xlsx", "PK\x03\x04", ".xlsx files are not read as lists"),
        ("p.txt", "PK\x03\x04", "is a zip archive or a spreadsheet"),
        ("p.txt", "PAR1", "is Parquet; name it .parquet"),
        ("p.jsonl.zip", "\x1f", ".zip files are not read as lists"),
        ("p.tar.gz", "\x1f", ".tar files are not read as lists"),
        ("p.tgz", "\x1f", ".tgz files are not read as lists"),
        ("p.txt.lz4", '\x04"M\x18a cat', ".lz4 files are not read as lists"),
        ("p.txt.Z", "a cat", ".z files are not read as lists"),
        ("p.json", '"a cat"', "holds no list of prompts"),
        ("p.json", '{"a": ["a cat"]}', "without a list under prompts or captions"),
        ("p.json", '["a cat"\n "a dog"]', "line 2 is not JSON"),
        ("p.json", '["a cat",\n 3]', "line 2 has no string under caption, prompt, text"),
        ("p.json", "[" * 100_000, "is not JSON"),
        ("p.json", '[{"text": "a", "text": "b"}]', "has a key twice"),
        ("p.jsonl", '{"text": "a", "text": "b"}', "line 1 has a key twice"),
        ("p.parquet", "caption\na cat\n", "is not a readable Parquet file"),
        ("p.json", "[]", "holds no prompts"),
        ("p.csv", 'caption\n"On sale now\na cat\na dog\n', "line 2 has a quote that is never closed"),
        (
            "p.csv",
            'caption\na\n"On sale now\na cat\n"a dog"\n',
            "line 3 has text behind the quote that closes a cell; write quotes within",
        ),
        ("p.csv", "caption\na cat, asleep\n", "line 2 has 2 cells, the header 1"),
        ("p.csv", "id,caption\n1,a cat\n2\n", "line 3 has 1 cells, the header 2"),
        ("p.tsv", "id\tcaption\n1\ta\tcat\n", "line 2 has 3 cells, the header 2"),
        ("p.csv", "caption,caption\na,b\n", "has two columns of one name"),
        ("p.csv", "caption,Caption\na,b\n", "has caption and Caption, which differ in case alone"),
        ("p.txt", "a cat\na \0dog\n", "line 2 holds a NUL"),
        (
            "p.csv",
            '#TYPE System.Data.Row\n"id","caption"\n"1","a cat"\n',
            "with -NoTypeInformation",
        ),
    ],
)
def test_what_is_not_what_it_is_named_is_refused(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    """A list read as lines of text by mistake would be one prompt that nobody memorized."""
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(PromptFileError) as caught:
        read_prompts(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "cat" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "a photo, of a cat\na photo, of a dog\n",
        "[[cat]], (masterpiece:1.2)\n[photo] a dog\n",
        "{red|blue} cat\n",
        '"The Cat" by a painter\n',
        "text, letters, a sign\n",
        "{cat}",
        "label\n",
        "a cat\ta dog\n",
        "1girl, text, red hair\n1girl, solo\n",
    ],
)
def test_ordinary_text_is_no_table_and_no_json(tmp_path: Path, content: str) -> None:
    path = tmp_path / "p.txt"
    path.write_text(content)
    if content.startswith("text,"):
        with pytest.raises(PromptFileError, match="prompts_format txt"):
            read_prompts(path)
        assert read_prompts(path, "txt").texts == (content.strip(),)
    else:
        found = read_prompts(path)
        assert found.texts == tuple(content.strip().split("\n"))
        assert [
            note for note in found.notes if "as it stands" not in note and "as they stand" not in note
        ] == []


def test_a_format_that_is_given_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text('["a cat, asleep", "a dog"]')
    assert read_prompts(path, "txt").texts == (path.read_text(),)
    assert read_prompts(path, "json").texts == TWO


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("p.json", '"a cat, asleep"\n"a dog"\n', "holds JSON lines, and was read so"),
        ("p.json", '{"text": "a cat, asleep"}\n{"text": "a dog"}\n', "holds JSON lines"),
        ("p.jsonl", '[\n"a cat, asleep",\n"a dog"\n]', "holds one JSON document, and was read so"),
        ("p.csv", "n\tcaption\n1\ta cat, asleep\n2\ta dog\n", "is separated by tabs"),
        ("p.tsv", 'n,caption\n1,"a cat, asleep"\n2,a dog\n', "is separated by commas"),
        ("p.list", "a cat, asleep\na dog\n", "read as text, one prompt a line"),
    ],
)
def test_a_mismatch_without_doubt_is_said(tmp_path: Path, name: str, content: str, note: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    found = read_prompts(path)
    assert found.texts == TWO
    (said,) = found.notes
    assert note in said
    assert str(path) in said


def test_nulls_are_blank(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('[null, "a cat", {"text": null}, ""]')
    assert read_prompts(path).counts == {"prompts_read": 1, "merged": 0, "blank": 3}


def test_labels_beside_a_list_are_said(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"caption": ["a cat"], "type": ["VM"]}')
    found = read_prompts(path, labels=True)
    assert (found.texts, found.labels) == (("a cat",), None)
    (note,) = found.notes
    assert "its list of labels is not used" in note


def test_a_header_in_a_text_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("Caption\na cat\n")
    (note,) = read_prompts(path).notes
    assert "its first line is a column's name" in note


# -------------------------------------------------------------------------------- compressed lists


def _zstd(content: bytes) -> bytes:
    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return bytes(out.getvalue().to_pybytes())


@pytest.mark.parametrize("name", ["p.csv", "p.tsv"])
def test_a_table_of_one_column_in_quotes_is_no_json(tmp_path: Path, name: str) -> None:
    assert _read(tmp_path, name, b'"caption"\n"a cat"\n"a dog, asleep"\n') == ("a cat", "a dog, asleep")


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": _zstd}


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compressed_list_is_read_as_its_name_says(tmp_path: Path, suffix: str) -> None:
    pack = PACKERS[suffix]
    lines = b'{"caption": "a cat"}\n{"caption": "a dog"}\n'
    assert _read(tmp_path, f"p.jsonl.{suffix}", pack(lines)) == ("a cat", "a dog")
    assert _read(tmp_path, f"p.{suffix}", pack(b"a cat\na dog\n")) == ("a cat", "a dog")
    # Pieces that were compressed one by one and put together, as logs are.
    assert _read(tmp_path, f"p.txt.{suffix}", pack(b"a cat\n") + pack(b"a dog")) == ("a cat", "a dog")
    # What is in it is held against its name as ever.
    with pytest.raises(PromptFileError, match=r"p\.csv\..*: holds JSON lines, not CSV"):
        _read(tmp_path, f"p.csv.{suffix}", pack(lines))
    path = tmp_path / f"plain.txt.{suffix}"
    path.write_text("a cat\n")
    found = read_prompts(path)
    assert found.texts == ("a cat",)
    assert "is not compressed, whatever its name" in found.notes[0]


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compressed_list_that_is_cut_off_or_damaged_is_refused(tmp_path: Path, suffix: str) -> None:
    """Never read as far as it goes: the rest may hold what is memorized."""
    pack = PACKERS[suffix]
    whole = pack(b"\n".join(b"caption %d" % n for n in range(2000)))
    for content in (whole[: len(whole) // 2], whole[:8], whole + b"garbage", whole + pack(b"x")[:-3]):
        with pytest.raises(PromptFileError, match="is damaged or cut off") as caught:
            _read(tmp_path, f"p.txt.{suffix}", content)
        assert "\n" not in str(caught.value)
    with pytest.raises(PromptFileError, match="is compressed more than once"):
        _read(tmp_path, f"p.txt.{suffix}", pack(whole))
    with pytest.raises(PromptFileError, match=rf"is compressed with \w+, .*; name it p\.txt\.{suffix}"):
        _read(tmp_path, "p.txt", whole)


def test_a_compressed_list_is_bounded_when_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MAX_BYTES", 1000)
    for suffix, pack in PACKERS.items():
        with pytest.raises(PromptFileError, match="is too large, more than 1000 bytes"):
            _read(tmp_path, f"p.txt.{suffix}", pack(b"caption\n" * 100_000))


def test_frames_of_zstd_without_text_are_passed_over(tmp_path: Path) -> None:
    """As pzstd and seekable zstd write them, in front, between and behind."""
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    packed = skipped * 2 + _zstd(b"a cat\n") + skipped + _zstd(b"a dog") + skipped
    assert _read(tmp_path, "p.txt.zst", packed) == ("a cat", "a dog")
    with pytest.raises(PromptFileError, match=r"is compressed with zstd, .*; name it p\.txt\.zst"):
        _read(tmp_path, "p.txt", packed)
    with pytest.raises(PromptFileError, match="is damaged or cut off"):
        _read(tmp_path, "p.txt.zst", packed[:30])
    with pytest.raises(PromptFileError, match=r"holds no prompts|is damaged"):
        _read(tmp_path, "p.txt.zst", skipped)
    with pytest.raises(PromptFileError, match="is compressed more than once"):
        _read(tmp_path, "p.txt.zst", _zstd(packed))


@pytest.mark.parametrize(("name", "mark"), [("p.csv", ","), ("p.csv", "|"), ("p.tsv", "\t")])
def test_cells_beyond_the_limit_of_csv_are_read(tmp_path: Path, name: str, mark: str) -> None:
    """The limit is one for the whole process, so it is left as it is."""
    limit, long = csv.field_size_limit(), "x" * 200_000
    rows = [["id", "thumb", "caption"], ["1", long, "a cat"], ["2", "y", 'a "dog", asleep'],
            ["3", f'{long}{mark}"q"', f'an "owl"{mark} a fox'], ["4", long, ""]]  # fmt: skip
    out = io.StringIO()
    csv.writer(out, delimiter=mark).writerows(rows)
    path = tmp_path / name
    path.write_text(out.getvalue())
    texts = ("a cat", 'a "dog", asleep', f'an "owl"{mark} a fox')
    found = read_prompts(path)
    assert (found.texts, found.blank) == (texts, 1)
    assert [line for _, line in found.places] == [2, 3, 4]
    assert [one.text for block in PromptStream([path]).blocks(2) for one in block.prompts] == [*texts]
    for broken in (f'5{mark}"{long}', f'5{mark}"{long}\n{long}"{mark}a cow', f'5{mark}"{long}"x{mark}y'):
        path.write_text(f"{out.getvalue()}{broken}\n")
        with pytest.raises(PromptFileError, match=r"line 6 has (a cell of more than 131072|text beh)"):
            read_prompts(path)
    path.write_text(f"{out.getvalue()}5{mark}{long}\n")
    with pytest.raises(PromptFileError, match="line 6 has 2 cells, the header 3"):
        read_prompts(path)
    assert csv.field_size_limit() == limit


def test_text_behind_a_closing_quote_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text('?item\t?caption\n<x>\t"a cat"@en\n')
    what = (
        r'line 2 has text behind .* \("\.\.\."@en\); export it as CSV.*its columns are item, caption\)'
    )
    with pytest.raises(PromptFileError, match=what):
        read_prompts(tmp_path / "p.tsv")
    with pytest.raises(PromptFileError, match=r"line 2 has text behind .*; write quotes"):
        _read(tmp_path, "p.csv", b'caption,n\n"a" cat,1\n')


def test_zstd_without_pyarrow_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PromptFileError, match="zstd is read with pyarrow, which is not installed"):
        _read(tmp_path, "p.txt.zst", _zstd(b"a cat"))


# -------------------------------------------------------------------------------- parquet, columns


def _parquet(path: Path, **columns: object) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "p.parquet", n=[1, 2, 3, 4], Caption=[*TWO, None, "a dog"],
                    type=["VM", "N", "N", "N"])  # fmt: skip
    found = read_prompts(path, labels=True)
    assert found.texts == TWO
    assert found.labels == (True, False)
    assert found.counts == {"prompts_read": 3, "merged": 1, "blank": 1}
    named = _parquet(tmp_path / "p.pq", words=TWO, memorized=[1.0, 0.0])
    assert read_prompts(named, column="Words", labels=True).labels == (True, False)
    with pytest.raises(PromptFileError, match="no column named caption, prompt, text"):
        read_prompts(named)
    numbers = _parquet(tmp_path / "n.parquet", text=[1, 2])
    with pytest.raises(PromptFileError, match="line 1 has no string under"):
        read_prompts(numbers)


@pytest.mark.parametrize("features", ["label", "Label"])
def test_labels_of_a_parquet_by_their_names(tmp_path: Path, features: str) -> None:
    """Hugging Face datasets write numbers, and what they mean beside them: 0 may be memorized."""

    def write(names: list[str]) -> Path:
        told = {"info": {"features": {features: {"names": names, "_type": "ClassLabel"}}}}
        table = pyarrow.table({"text": TWO, features: [0, 1]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
        parquet.write_table(table, tmp_path / "p.parquet")
        return tmp_path / "p.parquet"

    path = write(["memorized", "ordinary"])
    assert read_prompts(path, labels=True).labels == (True, False)
    packed = tmp_path / "p.parquet.gz"  # is read whole
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_prompts(packed, labels=True).labels == (True, False)
    assert read_prompts(write(["0", "1"]), labels=True).labels == (False, True)
    for names in (["cat", "dog"], ["ordinary"]):
        with pytest.raises(PromptFileError, match=r"line \d has (another word|nothing) under label"):
            read_prompts(write(names), labels=True)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _parquet(tmp_path / "p.parquet", text=TWO)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PromptFileError, match=r"pip install 'nemo-prune\[parquet\]'"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", 'words,text\n"a cat, asleep",x\na dog,y\n'),
        ("p.tsv", "text\tWords\nx\ta cat, asleep\ny\ta dog\n"),
        ("p.jsonl", '{"Words": "a cat, asleep", "text": "x"}\n{"words": "a dog"}\n'),
        ("p.json", '{"words": ["a cat, asleep", "a dog"]}'),
    ],
)
def test_a_column_by_name(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert read_prompts(path, column="words").texts == TWO
    if name != "p.json":
        with pytest.raises(PromptFileError, match="prompt_column"):
            read_prompts(path, column="none")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a cat\n"),
        ("p.json", '["a cat", "a dog"]'),
        ("p.json", '{"prompts": ["a cat", "a dog"]}'),
        ("p.jsonl", '"a cat"\n"a dog"\n'),
    ],
)
def test_text_has_no_columns(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(PromptFileError, match="text without columns, so prompt_column names none"):
        read_prompts(path, column="words")


# --------------------------------------------------------------------- pipes, several files, counts


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    given(b"a cat, asleep\na dog\n")
    found = read_prompts(STDIN)
    assert found.texts == TWO
    assert found.places == (("stdin", 1), ("stdin", 2))
    given(b'["a cat, asleep", "a dog"]')
    with pytest.raises(PromptFileError, match=r"-: holds JSON, not text; .*prompts_format json"):
        read_prompts(STDIN)
    given(b'["a cat, asleep", "a dog"]')
    assert read_prompts(STDIN, "json").texts == TWO
    monkeypatch.setattr(source, "MAX_BYTES", 10)
    given(b"a cat, asleep")
    with pytest.raises(PromptFileError, match="is too large, more than 10 bytes"):
        read_prompts(STDIN)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_read_once_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def piped(content: str) -> threading.Thread:
        writer = threading.Thread(target=lambda: _ignoring_a_closed_pipe(path, content))
        writer.start()
        return writer

    writer = piped("\n".join(f"a photo of {number} cats" for number in range(20_000)))
    assert len(read_prompts(path).texts) == 20_000
    writer.join()
    monkeypatch.setattr(source, "MAX_BYTES", 10)
    writer = piped("a cat, asleep" * 1_000)
    with pytest.raises(PromptFileError, match="is too large"):
        read_prompts(path)
    writer.join()


def _ignoring_a_closed_pipe(path: Path, content: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        path.write_text(content)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no process substitution")
def test_process_substitution_waits_for_a_slow_writer() -> None:
    program = "import sys, pathlib; from nemo_prune.files.prompts import read_prompts as r; " \
              "print(r(pathlib.Path(sys.argv[1])).texts)"  # fmt: skip
    command = f'"{sys.executable}" -c "{program}" <(sleep 2.2; echo a cat; echo a dog)'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "('a cat', 'a dog')\n", done.stderr


def test_several_files_and_patterns(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("a dog\na cat\n")
    (tmp_path / "a.txt").write_text("a cat\n\n")
    (tmp_path / "c[1].csv").write_text("text\na fox\n")
    paths = expand([tmp_path / "*.txt", tmp_path / "c[1].csv", tmp_path / "a.txt"])
    assert [path.name for path in paths] == ["a.txt", "b.txt", "c[1].csv"]
    found = read_prompts(paths)
    assert found.texts == ("a cat", "a dog", "a fox")
    assert [(Path(file).name, line) for file, line in found.places] == [
        ("a.txt", 1), ("b.txt", 1), ("c[1].csv", 2)
    ]  # fmt: skip
    assert found.counts == {"prompts_read": 4, "merged": 1, "blank": 1}
    with pytest.raises(PromptFileError, match="no file matches"):
        expand([tmp_path / "*.jsonl"])
    for left_out in ("!a.txt", "!*.txt"):
        with pytest.raises(PromptFileError, match="patterns cannot exclude"):
            expand([tmp_path / "*.txt", Path(left_out)])


def test_an_expected_number_pins_the_list(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a cat\na cat\n\na dog\n")
    found = read_prompts(path)
    check_count(found, None)
    check_count(found, 2)
    with pytest.raises(PromptFileError) as caught:
        check_count(found, 3)
    assert rendered(str(caught.value)) == (
        f"{path}: expect_prompts 3, and 2 distinct prompts were read (1 repetitions merged, 1 blank)"
    )


def test_a_line_that_stands_a_hundred_times_is_said(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a dog\n" + "a cat\n" * 99)
    assert read_prompts(path).notes == ()
    path.write_text("a dog\n" + "a cat\n" * 100)
    assert read_prompts(path).notes == (f"{path}: the prompt of line 2 stands there 100 times",)


def test_a_prompt_has_an_id_of_its_own() -> None:
    assert prompt_id("a cat") == prompt_id("a cat") != prompt_id("a dog")
    assert len(prompt_id("a cat")) == 12


# ------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("t.csv", ";Caption;type\n0;a;VM\n1;b;N\n", "type"),
        ("t.tsv", "Caption\tKind\na\ttemplate\nb\tordinary\n", "kind"),
        (
            "t.jsonl",
            '{"text": "a", "memorized": true}\n{"text": "b", "memorized": false}\n',
            "memorized",
        ),
        (
            "t.json",
            '[{"text": "a", "label": 1}, {"text": "b", "label": 0.0}]',
            "label; 1 is taken for memorized",
        ),
    ],
)
def test_labels_of_other_columns_and_lists(tmp_path: Path, name: str, content: str, column: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    found = read_prompts(path, labels=True)
    assert found.texts == ("a", "b")
    assert found.labels == (True, False)
    assert found.notes == (f"{path}: the labels are those of the column {column}",)
    assert read_prompts(path).labels is None


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("text,type\na,VM\nb,photo\n", "the column type is not used as labels: line 3 has another word"),
        ("text,type\na,VM\nb,\n", "the column type is not used as labels: line 3 is blank there"),
        ("text,overfit\na,VM\nb,N\n", "the column overfit looks like labels and is not used; name it"),
        ("text,a cat on a mat\na,1\nb,yes\n", "column 2 looks like labels and is not used; name it"),
    ],
)
def test_what_looks_like_labels_and_is_not_used_is_said(tmp_path: Path, content: str, note: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    found = read_prompts(path, labels=True)
    assert found.labels is None
    (said,) = found.notes
    assert note in said
    (tmp_path / "u.txt").write_text("c\n")
    path.write_text("text,label\na,1\n")
    both = read_prompts([path, tmp_path / "u.txt"], labels=True)
    assert both.labels is None
    assert both.notes == (
        f"{path}: the labels are those of the column label; 1 is taken for memorized",
        "labels are not used: not every list has them",
    )


def test_a_key_that_looks_like_labels_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"caption": "a", "overfit_type": "MV"}\n{"caption": "b", "overfit_type": "N"}\n')
    (said,) = read_prompts(path, labels=True).notes
    assert "the key overfit_type looks like labels and is not used" in said


def test_columns_of_numbers_do_not_look_like_labels(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("n,text\n0,a\n1,b\n")
    assert read_prompts(path, labels=True).notes == ()


# -------------------------------------------------------------------------------- what is easily missed


def test_lines_that_other_programs_would_end_elsewhere_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text(f"a cat\n{ODD}\n", encoding="utf-8")
    (note,) = read_prompts(path).notes
    assert "1 prompts hold line breaks, the first at line 2" in note


def test_a_prompt_that_nobody_sees_is_blank(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a cat\n\u200b\n\ufeff\u2060 \n\U0001f468\u200d\U0001f469\n", encoding="utf-8")
    found = read_prompts(path)
    assert found.texts == ("a cat", "\U0001f468\u200d\U0001f469")
    assert found.blank == 2


def test_utf_32_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="is UTF-32, not UTF-8"):
        _read(tmp_path, "p.txt", "a cat\n".encode("utf-32"))


@pytest.mark.parametrize(
    ("cell", "what"),
    [(b"a cat", "bytes"), (["a cat"], "a list"), ({"en": "a cat"}, "an object"), (7, "a number")],
)
def test_a_column_of_something_else_than_text_is_called_so(
    tmp_path: Path, cell: object, what: str
) -> None:
    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"text": [cell]}), path)
    with pytest.raises(
        PromptFileError,
        match=f"line 1 has no string under text, but {what}[,;] (mend it|whose text stands under text)",
    ):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "p.jsonl",
            '{"id": "0", "image": "0.jpg", "conversations": [{"value": "a cat"}]}',
            "; its keys are id, image, conversations: prompt_column names one that holds strings",
        ),
        (
            "p.jsonl",
            '{"_id": "0", "_source": {"caption": "a cat"}}',
            "; it has one under _source.caption, where none is read: bring it to the top",
        ),
        (
            "p.json",
            '[{"id": 1, "data": {"meta": {"Text": "a cat"}}}]',
            "; it has one under data.meta.Text, where none is read: bring it to the top",
        ),
        ("p.jsonl", '{"n": 1, "words": ["a"]}', "; its keys (n, words) hold no strings: write the"),
        ("p.jsonl", '{"a secret cat": "0.98"}', "; mend it"),
        ("p.jsonl", '{"a secret cat": 0.98, "n": 1}', "; its keys (n) hold no strings: write the"),
        (
            "p.json",
            '{"images": [], "annotations": [{"caption": "a cat"}]}',
            "; captions stand in its annotations: prompt_column annotations reads them",
        ),
        (
            "p.json",
            '{"images": [], "notes": [{"x": "a cat"}]}',
            "; its lists are images, notes: prompt_column names the one of prompts",
        ),
        (
            "p.json",
            '{"a secret cat/0.png": {"caption": "a cat", "tags": "x"}}',
            "objects that hold the captions, one for each picture or row; write them as JSON lines",
        ),
        (
            "p.json",
            '{"0.png": "a secret cat", "1.png": "a secret dog"}',
            "a JSON object of texts, which are no list; if they are the prompts, write them as",
        ),
        (
            "p.json",
            '{"columns": ["caption"], "index": [0], "data": [["a cat"]]}',
            'pandas writes it (orient="split"); write a list of objects (orient="records")',
        ),
        (
            "p.jsonl",
            '{\n  "caption": "a cat"\n}\n{\n  "caption": "a dog"\n}\n',
            "line 1 is not JSON by itself; write each value on one",
        ),
        (
            "p.jsonl",
            '{"caption": "a cat"}\n{"caption": 1,',
            "line 2 is not JSON by itself; write each",
        ),
        ("p.csv", "id,caption_x\n0,a cat\n", "prompt, text (its columns are id, caption_x); name the"),
        (
            "p.tsv",
            "0\ta secret cat\n1\ta dog\n",
            "has no column named caption, prompt, text in its first",
        ),
    ],
)
def test_of_json_without_a_usual_key_it_is_said_what_it_has(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    with pytest.raises(PromptFileError) as caught:
        _read(tmp_path, name, content.encode())
    assert words in rendered(caught.value.message)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("column", ["annotations", "caption"])
def test_the_list_that_has_captions_is_read_by_its_name_or_by_their_key(
    tmp_path: Path, column: str
) -> None:
    """As COCO's annotations, where other lists stand beside it."""
    path = tmp_path / "coco.json"
    other = '"info": {"x": "y"}, "images": [{"id": 1, "file_name": "0.jpg"}]'
    path.write_text(
        f'{{{other},\n"annotations": [{{"id": 1, "caption": "a cat"}},\n{{"caption": "a dog"}}]}}'
    )
    read = read_prompts(path, column=column)
    assert (read.texts, read.places) == (("a cat", "a dog"), ((str(path), 2), (str(path), 3)))
    (block,) = PromptStream([path], column=column).blocks(9)
    assert [one.text for one in block.prompts] == ["a cat", "a dog"]


@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_json_records_may_begin_with_a_separator(tmp_path: Path, name: str) -> None:
    """RFC 7464, which jq --seq writes."""
    assert _read(tmp_path, name, b'\x1e{"text": "a cat"}\n\x1e{"text": "a dog"}\n') == ("a cat", "a dog")
    assert _read(tmp_path, name, b'\x1e{\n"text": "a cat"}\n') == ("a cat",)
    with pytest.raises(PromptFileError, match="line 1 is not JSON by itself"):
        _read(tmp_path, "q.jsonl", b'\x1e{\n"text": "a cat"}\n' * 2)


def test_a_completion_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "describe it", "completion": "a cat on a mat"}\n')
    (note,) = read_prompts(path).notes
    assert "the column prompt is read, completion not" in note


def test_the_fault_of_an_array_on_one_line_has_its_place(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match=r"line 1 has no string under .* \(item 3\)"):
        _read(tmp_path, "p.json", b'["a cat", "a dog", 7]')


def test_of_two_columns_of_labels_it_is_said_which_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("caption,memorized,label\na cat,1,0\na dog,0,1\n")
    found = read_prompts(path, labels=True)
    assert found.labels == (True, False)
    assert "labels are those of the column memorized, not of label" in found.notes[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_told_by_its_content(tmp_path: Path) -> None:
    """Its name says nothing, so it may be compressed, and nobody is told to rename it."""
    path = tmp_path / "63"
    os.mkfifo(path)

    def piped(content: bytes) -> threading.Thread:
        writer = threading.Thread(target=lambda: path.write_bytes(content))
        writer.start()
        return writer

    writer = piped(gzip.compress("\n".join(TWO).encode()))
    assert read_prompts(path).texts == TWO
    writer.join()
    writer = piped(b'{"text": "a cat"}\n{"text": "a dog"}\n')
    with pytest.raises(PromptFileError) as caught:
        read_prompts(path)
    writer.join()
    assert "holds JSON lines, not text; give prompts_format jsonl" in str(caught.value)
    assert "name it" not in str(caught.value)


def test_lines_of_options_are_no_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text('--prompt "a red fox" --steps 20\n--prompt "b"\n')
    with pytest.raises(PromptFileError, match="begins with options"):
        read_prompts(path)
    assert len(read_prompts(path, "txt").texts) == 2


def test_the_header_of_a_joined_file_is_no_prompt(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text('caption,url\na,x\n"Caption",URL\nb,y\n')
    with pytest.raises(PromptFileError, match="line 3 is the header again"):
        read_prompts(path)
    path.write_text("caption,url\ncaption,x\nb,url\n")
    assert read_prompts(path).texts == ("caption", "b")
