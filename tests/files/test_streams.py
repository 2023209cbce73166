"""Prompts as a stream: the same prompts, refusals and notes as the list, wherever it goes on."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet as parquet
import pytest
from test_prompts import PACKERS

from nemo_prune.errors import PromptFileError
from nemo_prune.files import source, streams
from nemo_prune.files.lists import STDIN
from nemo_prune.files.prompts import read_prompts
from nemo_prune.files.streams import (
    Block,
    Position,
    PromptStream,
    Seen,
    changed_since,
    drawn,
    is_long,
    marks,
)

TEXTS = [f"a photo of {n} cats, é" for n in range(40)]
ODD = "one\u2028two\x85three"


def everything(stream: PromptStream, size: int = 7) -> list[Block]:
    return list(stream.blocks(size))


def contents() -> dict[str, bytes]:
    cells = [f'{n},"{text}\n{n}",{n % 2}' if n % 5 == 0 else f'{n},"{text}",1' for n, text in
             enumerate(TEXTS)]  # fmt: skip
    objects = [json.dumps({"n": n, "Caption": text, "label": n % 2}) for n, text in enumerate(TEXTS)]
    lines = ["\ufeff", *TEXTS, "", TEXTS[3], ODD]
    return {
        "p.txt": "\r\n".join(lines).encode(),
        "p.csv": ("\n\nn,Caption,memorized\n" + "\n".join(cells) + "\n\n" + cells[1]).encode(),
        "p.jsonl": "\n".join([*objects, "", objects[2]]).encode(),
        "p.json": ("[" + ",\n".join(objects) + "]").encode(),
        "p.tsv": ("n\tprompt\n" + "\n".join(f"{n}\t{t}" for n, t in enumerate(TEXTS))).encode(),
    }


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def table(path: Path) -> Path:
    rows = {"n": list(range(40)), "Caption": [*TEXTS[:39], None], "label": [n % 2 for n in range(40)]}
    parquet.write_table(pyarrow.table(rows), path, row_group_size=9)
    return path


def lists(folder: Path) -> list[Path]:
    plain = [write(folder / name, content) for name, content in contents().items()]
    packed = [
        write(folder / f"{name}.{suffix}", pack(content))
        for (suffix, pack), (name, content) in zip(PACKERS.items(), contents().items(), strict=False)
    ]
    return [*plain, *packed, table(folder / "p.parquet")]


def test_a_stream_holds_what_the_list_holds(tmp_path: Path) -> None:
    for path in lists(tmp_path):
        for labels in (False, True):
            whole = read_prompts(path, labels=labels)
            stream = PromptStream([path], labels=labels)
            found = [one for block in everything(stream) for one in block.prompts]
            assert tuple(one.text for one in found) == whole.texts, path
            assert tuple((one.file, one.line) for one in found) == whole.places, path
            if whole.labels is not None:
                assert tuple(one.label for one in found) == whole.labels
            assert stream.counts == whole.counts, path
            assert stream.notes == list(whole.notes), path
            assert stream.done_bytes == stream.total_bytes == path.stat().st_size, path


def test_it_goes_on_from_any_block(tmp_path: Path) -> None:
    paths = lists(tmp_path)
    for number, path in enumerate(paths[:5]):
        path.write_bytes(path.read_bytes().replace(b"photo", b"picture %d" % number))
    blocks = everything(PromptStream(paths, labels=False), 10)
    texts = [one for block in blocks for one in block.prompts]
    assert {block.position.list for block in blocks} >= set(range(6))
    for number, block in enumerate(blocks):
        keys = [key for one in blocks[: number + 1] for key in one.keys]
        at = Position(**json.loads(json.dumps(vars(block.position))))
        later = PromptStream(paths, at=at, keys=keys)
        found = [one for block in everything(later, 10) for one in block.prompts]
        assert found == texts[10 * (number + 1) :], block.position
        assert later.counts == {"prompts_read": blocks[-1].position.read, "merged":
                                later.counts["merged"], "blank": later.counts["blank"]}  # fmt: skip


def test_what_is_done_of_a_plain_file_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_HEAD", 5000)
    path = write(tmp_path / "p.txt", b"\n".join(b"%07d" % n for n in range(4000)))
    first, *_ = PromptStream([path]).blocks(3500)
    spoilt = bytearray(path.read_bytes())
    spoilt[15_000:15_008] = b"\xff" * 8  # behind what is looked at first, before the position
    path.write_bytes(spoilt)
    later = everything(PromptStream([path], at=first.position, keys=first.keys), 500)
    assert [len(block.prompts) for block in later] == [500]
    assert later[0].prompts[0].line == 3501


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("p.csv", 'a cat\n"a dog\n', "line 2002 has a quote that is never closed"),
        ("p.csv", "a cat,asleep\n", "line 2002 has 2 cells, the header 1"),
        ("p.jsonl", "{\n", "line 2001 is not JSON"),
        ("p.jsonl", '{"caption": 3}\n', "line 2001 has no string under caption"),
        ("p.txt", "a\0b\n", "line 2001 holds a NUL"),
        ("p.txt", b"\xff\n", "line 2001 is not UTF-8"),
        ("p.txt", "a dog\ra lamp\n", "line 2001 holds carriage returns"),
        ("p.txt", "x" * 2000, "line 2001 is longer than 1000 bytes"),
    ],
)
def test_a_fault_far_down_comes_after_all_that_stands_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, bad: str | bytes, message: str
) -> None:
    monkeypatch.setattr(source, "_HEAD", 5000)
    monkeypatch.setattr(source, "_LINE", 1000)
    texts = [f"caption number {n}" for n in range(2000)]
    form = '{{"caption": "{}"}}' if name == "p.jsonl" else "{}"
    begin = "caption\n" if name == "p.csv" else ""
    if "quote" in message:
        bad, message = '"a dog\na cat\n', message
    content = (begin + "".join(form.format(text) + "\n" for text in texts)).encode()
    path = write(tmp_path / name, content + (bad if isinstance(bad, bytes) else bad.encode()))
    PromptStream([path]).check()
    found: list[str] = []
    blocks = PromptStream([path]).blocks(256)
    with pytest.raises(PromptFileError, match=message):
        found.extend(one.text for block in blocks for one in block.prompts)
    assert found == texts


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compressed_list_that_is_cut_off_is_no_whole_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(source, "_HEAD", 5000)
    pack = PACKERS[suffix]
    whole = pack(b"\n".join(b"caption %d" % n for n in range(4000)))
    for content in (whole[: len(whole) // 2], whole[:8], whole + b"garbage", whole + pack(b"x")[:-3]):
        path = write(tmp_path / f"p.txt.{suffix}", content)
        with pytest.raises(PromptFileError, match="is damaged or cut off"):
            everything(PromptStream([path]), 1000)
    with pytest.raises(PromptFileError, match="is compressed more than once"):
        everything(PromptStream([write(path, pack(whole))]))
    twice = pack(b"a cat\n") + pack(b"a dog")
    (block,) = everything(PromptStream([write(path, twice)]))
    assert [one.text for one in block.prompts] == ["a cat", "a dog"]
    (block,) = everything(PromptStream([write(path, b"a cat\n")]))
    assert [one.text for one in block.prompts] == ["a cat"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", '{"caption": "a cat"}\n' * 9, "holds JSON lines, not text"),
        ("p.txt", "id,Caption\n1,a cat\n2,a dog\n", "a table separated by commas"),
        ("p.txt", "<!DOCTYPE html>\n", "begins as a web page"),
        ("p.csv", "words\na cat\n", "has no column named"),
        ("p.yaml", "- a cat\n", ".yaml files are not read as lists"),
        ("p.xlsx", "PK\x03\x04", ".xlsx files are not read"),
        ("p.parquet", "caption\n", "is not a readable Parquet file"),
        ("gone.txt", None, "no such file"),
    ],
)
def test_every_list_is_looked_at_before_any_is_read(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    good = write(tmp_path / "good.txt", b"a cat\n")
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(PromptFileError, match=message):
        PromptStream([good, tmp_path / name]).check()


def test_labels_are_checked_where_they_stand(tmp_path: Path) -> None:
    rows = "".join(f"caption {n},{'VM' if n % 2 else 'N'}\n" for n in range(1500))
    path = write(tmp_path / "p.csv", f"caption,type\n{rows}a cat,photo\n".encode())
    with pytest.raises(PromptFileError, match="line 1502 has another word under type"):
        everything(PromptStream([path], labels=True))
    path = write(tmp_path / "p.csv", f"caption,type\n{rows}caption 7,N\n".encode())
    with pytest.raises(PromptFileError, match="line 1502 labels a prompt otherwise"):
        everything(PromptStream([path], labels=True))


def test_standard_input_and_a_list_without_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in (b"a cat\na dog\n", gzip.compress(b"a cat\na dog\n"), bz2.compress(b"a cat\na dog")):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        stream = PromptStream([STDIN])
        stream.check()  # which would use it up
        (block,) = everything(stream)
        assert [(one.text, one.file, one.line) for one in block.prompts] == [
            ("a cat", "stdin", 1), ("a dog", "stdin", 2)
        ]  # fmt: skip
        assert stream.total_bytes is None
    with pytest.raises(PromptFileError, match="holds no prompts"):
        everything(PromptStream([write(tmp_path / "p.txt", b"\n\n")]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    text = "\n".join(f"a photo of {number} cats" for number in range(20_000))
    writer = threading.Thread(target=lambda: path.write_text(text))
    writer.start()
    stream = PromptStream([path])
    stream.check()
    assert sum(len(block.prompts) for block in stream.blocks(1000)) == 20_000
    writer.join()


def test_lists_are_known_again(tmp_path: Path) -> None:
    path, packed = tmp_path / "p.txt", tmp_path / "q.txt.xz"
    path.write_text("a cat\na dog\na fox\n")
    packed.write_bytes(lzma.compress(b"a cow\na hen"))
    first, second, *_ = PromptStream([path, packed]).blocks(2)
    known = marks([path, packed], first.position)
    assert changed_since([path, packed], first.position, known) is None
    path.write_text("a cat\na dog\nmended\n")
    assert changed_since([path, packed], first.position, known) is None
    path.write_text("a cow\na dog\na fox\n")
    assert changed_since([path, packed], first.position, known) == path
    known = marks([path, packed], second.position)
    packed.write_bytes(lzma.compress(b"a cow\na sow\na hen"))
    assert changed_since([path, packed], second.position, known) == packed


def test_what_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LONG", 100)
    path = write(tmp_path / "p.txt", b"x" * 60)
    assert not is_long([path, STDIN, tmp_path / "none"])
    assert is_long([path, path])
    assert is_long([write(tmp_path / "p.txt.gz", b"x" * 20)])


def test_repetitions_beyond_the_bound_are_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(most=2)
    keys = [Seen.key(text, None) for text in ("a", "b", "c")]
    assert [seen.add(key) for key in keys] == [None] * 3
    assert [seen.add(key) for key in keys] == [*keys[:2], None]
    monkeypatch.setattr(Seen.__init__, "__defaults__", (2,))
    stream = PromptStream([write(tmp_path / "p.txt", b"a\nb\nc\nb\nc\n")])
    assert [one.text for block in everything(stream) for one in block.prompts] == list("abcc")
    assert "beyond 2 distinct prompts repetitions are not recognized" in stream.notes[-1]


def test_a_sample_holds_each_prompt_as_likely_as_any_other(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "".join(f"caption {n}\n" for n in range(40)).encode())
    counts = [0] * 40
    for seed in range(400):
        texts, count = drawn(PromptStream([path]), 10, seed)
        numbers = [int(text.split()[1]) for text in texts]
        assert count == 40
        assert numbers == sorted(set(numbers)), "distinct, in the order of the list"
        for number in numbers:
            counts[number] += 1
    # 400 draws of 1 in 4: 100 with a standard deviation of 8.7.
    assert max(abs(one - 100) for one in counts) < 4 * 8.7
    assert drawn(PromptStream([path]), 10, 3) == drawn(PromptStream([path]), 10, 3)
    assert drawn(PromptStream([path]), 50, 0)[0] == [f"caption {n}" for n in range(40)]
