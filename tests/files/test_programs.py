"""What programs print is no list of captions, whichever program and dialect it is."""

import base64
import io
import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_prune.errors import PromptFileError
from nemo_prune.files.lists import STDIN
from nemo_prune.files.prompts import bundled_captions, read_prompts
from nemo_prune.files.streams import PromptStream

CAPTIONS = (
    "Portrait of a Cat, Asleep",
    "Coffee Cup; Montreal (black & white)",
    "Coins from Pompeii's sea",
)


def streamed(path: Path) -> None:
    list(PromptStream([path]).blocks(9))


BOTH = pytest.mark.parametrize("read", [read_prompts, streamed])


# ------------------------------------------------------------------------------- SQL


def _inserts(form: str) -> str:
    return "".join(form.format(n, one.replace("'", "''")) + "\n" for n, one in enumerate(CAPTIONS))


SQL = {
    "sqlite insert": _inserts("INSERT INTO \"table\" VALUES('{1}');"),
    "mysqldump": "-- MySQL dump 10.13  Distrib 8.0\n--\n"
    + _inserts("INSERT INTO `c` VALUES ({0},'{1}');"),
    "pg_dump": "--\n-- PostgreSQL database dump\n--\n\nSET statement_timeout = 0;\n",
    "pg_dump rows": "COPY public.captions (id, caption) FROM stdin;\n1\tA Cat\n\\.\n",
    "pg_dump restricted": "\\restrict a8f\n\n-- Dumped by pg_dump\n",
    "tsql": _inserts("INSERT [dbo].[captions] ([id], [caption]) VALUES ({0}, N'{1}')"),
    "tsql script": "USE [db]\nGO\n/****** Object:  Table [dbo].[c] ******/\n",
    "oracle": "REM INSERTING into C\nSET DEFINE OFF;\n"
    + _inserts("Insert into C (ID,CAPTION) values ({0},'{1}');"),
    "sqlite replace": _inserts("insert or replace into c(id, caption) values ({0}, '{1}');"),
    "ignore": _inserts("INSERT IGNORE INTO db.`my captions` (caption) VALUES ('{1}');"),
    "several": 'INSERT INTO "captions" ("id", "caption")\nVALUES\n' + _inserts("({0}, '{1}'),"),
    "update": _inserts('update "c" set "caption" = \'{1}\' where "id" = {0};'),
    "table": "create table if not exists c (\n  id int,\n  caption text\n);\n",
    "query": "SELECT caption FROM captions WHERE id < 9;\n",
    "unions": "BEGIN;\nINSERT INTO c SELECT 'A Cat' UNION ALL SELECT 'A Dog';\nCOMMIT;\n",
    "conditional": "/*!40101 SET NAMES utf8 */;\n" + _inserts("INSERT INTO c VALUES ('{1}');"),
}


@BOTH
@pytest.mark.parametrize("name", SQL)
def test_sql_of_any_dialect_is_no_list(
    tmp_path: Path, name: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "p.txt"
    path.write_text(SQL[name])
    with pytest.raises(
        PromptFileError, match=r"is a statement of SQL, .*; export .* as CSV|as a script"
    ):
        read(path)


@BOTH
def test_a_dump_of_sqlite_is_no_list(tmp_path: Path, read: Callable[[Path], object]) -> None:
    database = sqlite3.connect(":memory:")
    database.execute("create table captions(id integer primary key, caption text)")
    database.executemany("insert into captions(caption) values (?)", [(one,) for one in CAPTIONS])
    path = tmp_path / "p.txt"
    path.write_text("PRAGMA foreign_keys=OFF;\n" + "\n".join(database.iterdump()))
    with pytest.raises(PromptFileError, match="line 1 is a statement of SQL"):
        read(path)


def test_statements_among_captions_are_said(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    texts = [*CAPTIONS, "INSERT INTO c VALUES ('A Dog');"]
    path.write_text("\n".join(json.dumps({"caption": one}) for one in texts))
    (note,) = read_prompts(path).notes
    assert "1 of its prompts begin as statements of SQL do" in note


# ------------------------------------------------------------------------------- complaints

COMPLAINTS = [
    "Error: in prepare, no such table: captions",
    "Parse error near line 1: no such table: captions\n  select x from captions;\n   ^--- error here",
    'Error: unable to open database "caps.db": unable to open database file',
    "sqlite3: Error: unknown option: -csvv\nUse -help for a list of options.",
    'ERROR:  relation "captions" does not exist\nLINE 1: select caption from captions\n             ^',
    "ERROR 1146 (42S02): Table 'x.captions' doesn't exist",
    "jq: error (at <stdin>:1): Cannot index array with string \"caption\"",
    "parse error: Invalid numeric literal at line 1, column 8",
    "Catalog Error: Table with name captions does not exist!",
    "Error from server (NotFound): pods \"captions\" not found",
    "Error response from daemon: No such container: captions",
    "CommandException: No URLs matched: gs://bucket/captions.txt",
    "fatal error: Unable to locate credentials",
    "Unable to locate credentials. You can configure credentials by running \"aws configure\".",
    "ssh: connect to host nowhere port 22: Connection refused",
    "bash: line 1: duckdb: command not found",
    "zsh: command not found: duckdb",
    "grep: captions: Is a directory",
    "cat: captions.txt: Permission denied",
    "gzip: captions.txt: not in gzip format",
    "python3: can't open file '/x.py': [Errno 2] No such file or directory",
    "ModuleNotFoundError: No module named 'pandas'",
    "usage: tool [-h] [--out OUT]\ntool: error: unrecognized arguments: --csv",
    "'sqlite3' is not recognized as an internal or external command,\noperable program or batch file.",
    "sqlite3 : The term 'sqlite3' is not recognized as the name of a cmdlet",
    "The system cannot find the file specified.",
    "Exception in thread \"main\" java.lang.NullPointerException",
    "thread 'main' panicked at src/main.rs:2:5:\nindex out of bounds",
    "panic: runtime error: index out of range",
    "TypeError: captions.map is not a function",
    "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error.",
    "Segmentation fault (core dumped)",
    "Killed",
    "Permission denied (publickey).",
]  # fmt: skip


@BOTH
@pytest.mark.parametrize("text", COMPLAINTS)
def test_what_a_program_complains_of_is_no_list(
    tmp_path: Path, text: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "p.txt"
    path.write_text(text + "\n")
    with pytest.raises(PromptFileError, match="is what a server or a program says where it has no list"):
        read(path)


def test_a_complaint_through_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(COMPLAINTS[0].encode())))
    with pytest.raises(PromptFileError, match="get the list again"):
        read_prompts(STDIN)


# ------------------------------------------------------------------------------- scripts, base64


@BOTH
@pytest.mark.parametrize(
    "text",
    [
        '/*O_o*/\ngoogle.visualization.Query.setResponse({"version": "0.6", "table": {}});',
        'callback({"captions": ["a cat"]});',
        'jQuery123_4([{"caption": "a cat"}])',
        ')]}\'\n[["a cat"]]',
        'for(;;);{"captions": []}',
        "/* captions */\nlet a = 1\n",
    ],
)
def test_json_in_a_script_is_no_list(tmp_path: Path, text: str, read: Callable[[Path], object]) -> None:
    path = tmp_path / "p.txt"
    path.write_text(text)
    with pytest.raises(PromptFileError, match=r"begins as a script, perhaps with JSON in it \(JSONP\)"):
        read(path)


@BOTH
@pytest.mark.parametrize("form", ["whole", "wrapped", "lines", "url"])
def test_base64_is_no_list(tmp_path: Path, form: str, read: Callable[[Path], object]) -> None:
    text = "\n".join(("caf\u00e9 at night?>", *CAPTIONS))
    encode = base64.urlsafe_b64encode if form == "url" else base64.b64encode
    code = {
        "wrapped": base64.encodebytes(text.encode()),
        "lines": b"\n".join(encode(one.encode()) for one in text.split("\n")),
    }.get(form, encode(text.encode()))
    path = tmp_path / "p.txt"
    path.write_bytes(code + b"\n")
    with pytest.raises(PromptFileError, match=r"is in base64, .*; decode it \(base64 -d\)"):
        read(path)


def test_base64_among_captions_is_said(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\n".join((*CAPTIONS, base64.b64encode(b"a cat on a mat").decode())))
    assert any("1 of its lines are in base64" in note for note in read_prompts(path).notes)


# ------------------------------------------------------------------------------- records

RECORDS = {
    "PowerShell": "@{{id={0}; caption={1}}}",
    "PowerShell, alone": "@{{caption={1}}}",
    "PySpark": "Row(id={0}, caption={1!r})",
    "Java": "{{caption={1}, id={0}}}",
    "Java's record": "Caption[id={0}, text={1}]",
    "dataclass": "Caption(text={1!r}, id={0})",
    "Go": "{{ID:{0} Caption:{1}}}",
    "Go's pointer": "&{{ID:{0} Prompt:{1}}}",
    "Clojure": '{{:id {0}, :caption "{1}"}}',
    "Ruby": '{{:id=>{0}, :caption=>"{1}"}}',
    "Ruby's object": '#<Caption id: {0}, text: "{1}">',
    "Rust": 'Caption {{ id: {0}, text: "{1}" }}',
    "JavaScript": "  {{ id: {0}, caption: '{1}' }},",
}


@BOTH
@pytest.mark.parametrize("name", RECORDS)
def test_records_in_brackets_are_no_list(
    tmp_path: Path, name: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "p.txt"
    for captions in (CAPTIONS, CAPTIONS[:1], bundled_captions()[:40]):
        path.write_text("\n".join(RECORDS[name].format(n, one) for n, one in enumerate(captions)))
        with pytest.raises(PromptFileError, match="holds records with names in them"):
            read(path)


@pytest.mark.parametrize(
    "form",
    ["({}, text:1.2)", "(masterpiece), {}, text: (hello)", "[{}]", "{{{}}}", "({}, caption contest)",
     "{} (caption: {})", "<lora:text:1> {} <lora:b:1>", "<lora:a:1> {}, text: hello <lora:b:1>"],
)  # fmt: skip
def test_captions_in_brackets_are_no_records(tmp_path: Path, form: str) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(form.format(one, one) for one in CAPTIONS))
    assert len(read_prompts(path).texts) == len(CAPTIONS)
    path.write_text("\n".join((*CAPTIONS, "{caption: a cat}")))  # one among others
    assert len(read_prompts(path).texts) == len(CAPTIONS) + 1


@pytest.mark.parametrize("prefix", ["[pod/gen-7c9f8d-x2x/main] ", "worker-1  | ", "gen-svc-12 | "])
def test_lines_of_containers_logs_are_said(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(prefix + one for one in CAPTIONS))
    assert any("3 of its lines begin as a program's log does" in n for n in read_prompts(path).notes)


# ------------------------------------------------------------------------------- captions


ORDINARY = [
    ["Insert into the slot", "Drop table lamp", "Create a table with chairs", "Set of 3 vases, oak"],
    ["Update your wardrobe: set of 3", "Select wines from France", "Use of color; a study"],
    ["Copy of a painting from Rome", "Values of a family (oil on canvas)", "Begin again"],
    [
        "Trial and errors",
        "An error of judgement",
        "The Exception to the Rule poster",
        "Panic at the Disco",
    ],
    [
        "Lost and not found",
        "Nessie does not exist",
        "A dog cannot find its bone",
        "Fatal Attraction (1987)",
    ],
    ["Photographyofcats", "Llanfairpwllgwyngyll", "a cat"],
    ["Cat(s) and dogs", "Forbidden City (Beijing)", "while sleeping", "For (love)"],
]


@pytest.mark.parametrize("lines", ORDINARY)
def test_captions_with_such_words_stay_captions(tmp_path: Path, lines: list[str]) -> None:
    for count in (1, len(lines)):
        path = tmp_path / "p.txt"
        path.write_text("\n".join(lines[:count]))
        assert read_prompts(path).notes == ()


def test_nothing_is_said_of_ordinary_captions(tmp_path: Path) -> None:
    captions = bundled_captions()
    for first in range(0, len(captions), 50):
        path = tmp_path / "p.txt"
        path.write_text("\n".join(captions[first : first + 50]))
        assert read_prompts(path).notes == ()
