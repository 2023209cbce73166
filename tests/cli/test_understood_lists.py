"""Lists of prompts that are not what a user takes them for: one clear line."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import rawfiles

from nemo_prune.errors import PromptFileError
from nemo_prune.files.prompts import read_prompts
from nemo_prune.files.streams import Lists, PromptStream

_SELDOM = "2 of its lines hold what captions seldom do, read by the tokenizer as it stands: "
AROUND = [
    "3f2a91c0-8b1d-4e6f-9a0b-aa {}", "[12:34:50] {}", "12:34:50 | generating: {}", "001_{}", "No. 1: {}",
    "**Prompt 1:** {}", "00000-3141592653-{}", "{} --w 512 --h 512 --d 1", '"{}" -s50 -S123 -W512 -C7.5',
    '!dream "{}" -n 4 -g', "/imagine prompt: {}", "{}::2 blurry::-0.5", "{} AND a cat :0.5",
    "{} [blurry, low quality]", "{} https://a.b/c.jpg", "[{}](https://x)", "<caption>{}</caption>",
    "<|startoftext|>{}", "[CLS] {} [SEP]", "prompt0 = {}", 'PROMPT_0="{}"', "caption = {}",
    "{} (score: 0.93)", "{}, seed: 4711, steps: 30", "{}  # verbatim", "{} & 0.93 & VM \\\\", "a%20{}",
    "Q: {}", '"0" :"{}",', "photo ||| {}",
]  # fmt: skip


APART = [
    "n0144{n} {}", "B07XJ{n} {}", "a1b2c{n} {}", "SKU-443{n} {}", "P{n} {}", "4711{n} {}", "v1.{n} {}",
    "28.11.2{n} {}", "A{n}. {}", "\u2460 {}", "{}|{n}", "{} img{n}.jpg", "{} a.jpg", "{} VM",
    "{} memorized", "{};", "\u201c{}\u201d", "'{}'", "// {}", "{n}\u3001{}",
]  # fmt: skip
APART_IN_LISTS = [
    "{n} {}", "{n}- {}", "Prompt {n} {}", "12:3{n} {}", "{} 81{n}", "{} (#{n})", "{}, 1", "{},",
    "{}...", "1 {}",
]  # fmt: skip


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return rawfiles.sd1(Path("m.safetensors"))


def test_an_encrypted_list_is_to_be_decrypted(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"Salted__" + b"\x93" * 99)
    with pytest.raises(PromptFileError, match="is encrypted by openssl"):
        read_prompts(tmp_path / "p.txt")


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("count", [1, 3])
def test_what_stands_around_a_caption_is_said(tmp_path: Path, around: str, count: int) -> None:
    """By what captions seldom hold, whichever program wrote it."""
    texts = [around.format(one) for one in ("A Cat, Asleep", "Clock by Wayfair", "Coins 7")[:count]]
    (tmp_path / "p.txt").write_text("\n".join(texts))
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"caption": one}) for one in texts))
    for name, unit in (("p.txt", "lines"), ("p.jsonl", "prompts")):
        notes = read_prompts(tmp_path / name).notes
        assert any(f"{count} of its {unit}" in note for note in notes), notes
        stream = Lists((tmp_path / name,)).stream()
        assert len(next(iter(stream.blocks(256))).prompts) == count
        assert any(f"{count} of its {unit}" in note for note in stream.notes)


@pytest.mark.parametrize(
    ("around", "count"), [(a, n) for a in APART for n in (1, 3)] + [(a, 3) for a in APART_IN_LISTS]
)
def test_what_stands_apart_from_a_caption_is_said(tmp_path: Path, around: str, count: int) -> None:
    """Identifiers, numbers, labels and marks, with whatever mark or blank between."""
    captions = ("A Cat, Asleep", "Clock by Wayfair", "Coins and a Lamp")[:count]
    texts = [around.format(caption, n=n) for n, caption in enumerate(captions, 1)]
    (tmp_path / "p.txt").write_text("\n".join(texts))
    (note,) = read_prompts(tmp_path / "p.txt").notes
    assert f"{count} of its lines" in note
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"caption": one}) for one in texts))
    assert read_prompts(tmp_path / "p.jsonl").notes


@pytest.mark.parametrize(
    "lines",
    [
        ["2 dogs", "1980s car", "3D render of a cat", "4k photo", "16:9 picture"],
        ["1girl, solo", "2girls, 8k"],
        ["12 monkeys"],
        ["4k photo of a dog"],
        ["1980s car"],
        ["a cat, 8k", "a dog in 1968", "R2-D2 on a beach"],
        ["B-52 in the sky", "a cat", "a dog"],
        [" " * 600 + "a cat", "a dog"],
        ['The "Cat" 3', '\'Tis a "dog" house', '"Lamp" by a painter'],
    ],
)
def test_captions_with_numbers_and_quotations_are_not_said(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(lines))
    assert read_prompts(path).notes == ()


@pytest.mark.parametrize(
    "line", ['"{n}" "{}" 81', '{n} "{}" 81', '"{}" 81', "'a' '{}'", '{n} "{}" VM', '"a \\"b\\"" "{}" NA']
)
@pytest.mark.parametrize("head", ["", '"caption" "n"\n', " caption n\n", '"caption"\n'])
@pytest.mark.parametrize("count", [1, 3])
def test_cells_in_quotes_between_blanks_are_a_table(
    tmp_path: Path, line: str, head: str, count: int
) -> None:
    if count == 1 and '"n"' not in head:
        head = ""  # of two lines, one is not most
    texts = [line.format(caption, n=n) for n, caption in enumerate(("A cat", "B", "C, d")[:count], 1)]
    (tmp_path / "p.txt").write_text(head + "\n".join(texts))
    for read in (read_prompts, lambda path: list(PromptStream([path]).blocks(9))):
        with pytest.raises(PromptFileError, match="is a table separated by blanks, with cells in quo"):
            read(tmp_path / "p.txt")


@pytest.mark.parametrize(("name", "head"), [("p.jsonl", '"caption"'), ("p.txt", "id caption")])
def test_a_header_in_quotes_or_of_several_columns_is_said(tmp_path: Path, name: str, head: str) -> None:
    (tmp_path / name).write_text(f'{head}\n"a cat on a mat"\n"a dog"\n')
    assert any(
        "its first line is a column's name" in note for note in read_prompts(tmp_path / name).notes
    )


@pytest.mark.parametrize("name", ["captions.gsheet", "p.json"])
def test_a_pointer_to_a_document_of_google_is_no_list(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"":"WARNING! DO NOT EDIT","doc_id":"1aB2","resource_key":""}')
    with pytest.raises(PromptFileError, match=r"points to a Google document .*; download that as CSV"):
        read_prompts(tmp_path / name)


def test_what_is_no_text_at_all_is_said(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("portrait.of.nasa.astronaut.eileen.collins\n")
    (note,) = read_prompts(tmp_path / "p.txt").notes
    assert "no blank between words" in note
    (tmp_path / "p.txt").write_bytes(b"\0GITCRYPT\0\x93\xfe")
    with pytest.raises(PromptFileError, match="is locked by git-crypt"):
        read_prompts(tmp_path / "p.txt")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cinematic still {prompt} . emotional", "they are templates"),
        ("a photo of a [name], [filewords]", "they are templates"),
        ("Caf\u00c3\u00a9 at night", "look like UTF-8 read as Windows-1252"),
        ("Pompeii \u00e2\u20ac\u201c Brooklyn Museum", "look like UTF-8 read as Windows-1252"),
        ("\u00d0\u0178\u00d1\u20ac\u00d0\u00b8", "look like UTF-8 read as Windows-1252"),
        ("a) a cat on a mat", "letters or times in front"),
        ("a cat on\na mat\n\na dog in\nthe sun", "its 4 lines stand in paragraphs"),
        ("a cat on a mat; a dog; a bird", "is one line of several parts"),
        (
            "CAF\u00c9\u00ae \u00abCAF\u00c9\u00bb \u00e0 la carte, S\u00e3o Tom\u00e9\u2026\n\nan eye",
            "",
        ),
    ],
)
def test_lists_of_something_else_are_said(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "p.txt").write_text(text, encoding="utf-8")
    assert [words in note for note in read_prompts(tmp_path / "p.txt").notes] == (
        [True] if words else []
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"prompts": ["ENC[AES256_GCM,data:x,type:str]"], "sops": {}}',
            "is encrypted by SOPS; decrypt it",
        ),
        ("-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\n", "is encrypted by age"),
        ("$ANSIBLE_VAULT;1.1;AES256\n6263\n", "is encrypted by Ansible"),
    ],
)
@pytest.mark.parametrize("name", ["p.json", "p.txt"])
def test_encrypted_lists_are_refused_as_such(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PromptFileError, match=words):
        read_prompts(tmp_path / name)


def test_colours_of_a_terminal_are_no_caption(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n\x1b[35ma dog\x1b[m\n")
    with pytest.raises(PromptFileError, match=r"p\.txt: line 2 holds colours of a terminal"):
        read_prompts(tmp_path / "p.txt")


@pytest.mark.parametrize("read", [read_prompts, lambda path: list(PromptStream([path]).blocks(9))])
@pytest.mark.parametrize(
    ("text", "encoding", "words"),
    [
        ("a cat\n\u732b\n", "iso2022_jp", "line 2 holds letters of another encoding"),
        ("a cat\na dog\n", "utf-16-le", "seems to be UTF-16 without a byte order mark"),
    ],
)
def test_other_encodings_are_called_so(
    tmp_path: Path, read: Callable[[Path], object], text: str, encoding: str, words: str
) -> None:
    (tmp_path / "p.txt").write_bytes(text.encode(encoding))
    with pytest.raises(PromptFileError, match=words):
        read(tmp_path / "p.txt")


def test_a_header_with_another_separator_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id^caption\n1^a cat\n2^a dog, asleep\n")
    with pytest.raises(PromptFileError, match=r"its header seems separated by \^, which is not read"):
        read_prompts(tmp_path / "p.csv")


WHOLE = [
    '["a cat", "a dog"]', "['a cat', 'a dog']", "['a cat']", "['a cat' 'a dog']", "('a cat', 'a dog')",
    "array(['a cat', 'a dog'], dtype=object)", "array(['a cat'\n 'a dog'], dtype='<U5')", "('a cat',)",
    '{"en": "a cat"}', "{'id': 3, 'caption': 'a cat'}", '{"a cat","a dog"}', "[['a cat'], ['a dog']]",
    "[{'caption': 'a cat'}]", '"[""a cat"", ""a dog""]"', "['a cat', 'a do...", 'c("a cat", "a dog")',
    "[512, 512]", "[None, 'a cat']", '"a cat", "a dog"', "'a cat'; 'a dog'",
]  # fmt: skip
NOT_WHOLE = [
    "[photo] a cat", "[cat|dog]", "(word:1.2)", "((masterpiece)), [bad]", '["Untitled"] by X (1890)',
    '("The Kiss") by Klimt', '("The Kiss")', "{red|blue} cat", "[from:to:0.5]", '"Hello" he said',
    '"The Kiss", oil on canvas', "'Tis a 'dog' house", "[1890, oil on canvas]", "{prompt}", "[3d, 4k]",
    "(1920s, Paris)", "[[cat]]", "{{cat}}", "{'cat'|'dog'}", "[Untitled] (1890)",
]  # fmt: skip


@pytest.mark.parametrize("cell", WHOLE)
def test_whole_lists_in_cells_and_strings_are_no_captions(tmp_path: Path, cell: str) -> None:
    """As Python, numpy, JSON, R and PostgreSQL write them into a cell: refused, alone or several."""
    quoted = '"' + cell.replace('"', '""') + '"'
    (tmp_path / "p.csv").write_text(f"id,caption\n0,a fox\n1,a cow\n2,{quoted}\n3,{quoted}\n4,a hen\n")
    (tmp_path / "p.jsonl").write_text(json.dumps({"caption": cell}))
    (tmp_path / "p.json").write_text(json.dumps([cell, "a fox"]))
    for name, words in (
        ("p.csv", "2 of its prompts, the first at line"),
        ("p.jsonl", "1 of its prompts, the first at line 1,"),
        ("p.json", "1 of its prompts, the first at line 1,"),
    ):  # fmt: skip
        for read in (read_prompts, lambda path: list(PromptStream([path]).blocks(9))):
            with pytest.raises(PromptFileError, match=f"{name}: {words}.* are lists or objects"):
                read(tmp_path / name)


@pytest.mark.parametrize("line", [one for one in WHOLE if "\n" not in one])
def test_lines_of_whole_lists_are_no_captions(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.txt"
    path.write_text(f"a fox\n\n{line}\n{line}\n")
    with pytest.raises(PromptFileError) as caught:
        read_prompts(path)
    assert "2 of its lines, the first at line 3," in str(caught.value) or "is a table" in str(
        caught.value
    )
    assert len(read_prompts(path, "txt").texts) == 2  # all the same, where that is asked for
    assert any(
        "1 of its lines are lists or obj" in n for n in _notes(path, f"a fox\nx y\na hen\n{line}")
    )


def _notes(path: Path, text: str) -> tuple[str, ...]:
    path.write_text(text)
    return read_prompts(path).notes


@pytest.mark.parametrize("text", NOT_WHOLE)
def test_captions_that_begin_with_a_bracket_or_a_quotation_pass(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.txt").write_text(f"a fox\n{text}\n")
    (tmp_path / "p.jsonl").write_text(json.dumps({"caption": text}))
    assert len(read_prompts(tmp_path / "p.txt").texts) == 2
    assert not any("lists or objects" in note for note in read_prompts(tmp_path / "p.jsonl").notes)


@pytest.mark.parametrize("mark", [";", ",", "|"])
def test_quoted_captions_side_by_side_are_a_table(tmp_path: Path, mark: str) -> None:
    path, line = tmp_path / "p.txt", f'"a cat"{mark} "a dog"{mark} "a cow, asleep"\n'
    for text in (line, line + line, line + line + "a fox\n"):
        path.write_text(text)
        with pytest.raises(PromptFileError, match="is a table separated by"):
            read_prompts(path)


@pytest.mark.parametrize("mark", ["; ", ";", " / ", " // ", " \u2022 "])
@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
def test_captions_that_were_joined_are_said(tmp_path: Path, mark: str, name: str) -> None:
    lines = [mark.join(("A cat, asleep", "two dogs", "Coins 7")), mark.join(("a cow", "a fox")), "a hen"]
    text = "\n".join(lines)
    if name == "p.csv":
        text = "caption\n" + "\n".join(f'"{line}"' for line in lines)
    if name == "p.jsonl":
        text = "\n".join(json.dumps({"text": line}) for line in lines)
    (note,) = _notes(tmp_path / name, text)
    assert "2 of its" in note
    assert "several captions may stand in each" in note
    if name == "p.txt":
        (note,) = _notes(tmp_path / name, lines[0])
        assert "it is one line of several parts" in note


@pytest.mark.parametrize(
    "lines",
    [
        ["a cat; a dog", "a cow on a hill", "a hen"],
        ["Vase; 1890", "Portrait of a man; oil"],
        ["red / blue car", "Nike / Shoes"],
        ["a man and/or a cat", "24/7 shop"],
        ["a cat sits; a dog barks"],
    ],
)
def test_captions_with_a_semicolon_or_a_slash_are_not_said(tmp_path: Path, lines: list[str]) -> None:
    assert _notes(tmp_path / "p.txt", "\n".join(lines)) == ()


@pytest.mark.parametrize(
    "mark", [" \u2022 ", "<br>", "<br/>", " [SEP] ", " ||| ", "<|endoftext|>", "</s>"]
)
def test_captions_with_marks_between_are_said(tmp_path: Path, mark: str) -> None:
    notes = _notes(tmp_path / "p.txt", f"a cat{mark}a dog{mark}a cow\na fox{mark}a hen{mark}an owl\n")
    assert "2 of its lines hold marks such as ; / \u2022 or <br> between phrases: several" in notes[0]


def test_captions_in_one_cell_between_line_breaks_are_said(tmp_path: Path) -> None:
    (note,) = _notes(tmp_path / "p.csv", 'caption\n"a cat\na dog"\n"a cow\na fox"\n')
    assert "2 prompts hold line breaks, the first at line 2: several captions may stand in one" in note


def test_percent_encoded_captions_are_to_be_decoded(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a%20cat\nTwo%20dogs%2C%20asleep\n")
    (tmp_path / "p.csv").write_text("text\ncaf%C3%A9\na cat\n")
    (tmp_path / "q.txt").write_text("a=20cat=0A\ncaf=C3=A9\n")
    for name, count in (("p.txt", 2), ("p.csv", 1), ("q.txt", 2)):
        with pytest.raises(PromptFileError, match=f"{count} of its .* are percent-encoded"):
            read_prompts(tmp_path / name)
    (note,) = _notes(tmp_path / "p.txt", "a+cat+asleep\nTwo+dogs+in+the+sun\n")
    assert "2 of its lines hold + for blanks, as addresses do" in note
    assert _notes(tmp_path / "p.txt", "a 100% wool cat\n50%off\nC++ code\n") == ()


@pytest.mark.parametrize(
    "end", ["Name: caption, dtype: object", "dtype: object", "[2 rows x 3 columns]"]
)
def test_what_pandas_prints_is_no_list(tmp_path: Path, end: str) -> None:
    (tmp_path / "p.txt").write_text(f"0    a cat\n1    a dog...\n\n{end}\n")
    with pytest.raises(PromptFileError, match="line 4 ends a column or table as pandas prints it"):
        read_prompts(tmp_path / "p.txt")


def test_cells_are_looked_at_as_lines_are(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("image,caption\n1,img/0.txt\n2,img/1.txt\n")
    with pytest.raises(PromptFileError, match="2 of its prompts begin with the name of a picture"):
        read_prompts(tmp_path / "p.csv")
    with pytest.raises(PromptFileError, match="2 of its prompts begin with the name of a picture"):
        list(Lists((tmp_path / "p.csv",)).stream().blocks(256))


@pytest.mark.parametrize(
    ("lines", "note"),
    [
        (["1. a cat", "2. a dog", "3. a cow"], "3 of its lines begin with a number that counts up"),
        (["1) a cat", "2) a dog", "3) a cow", "x"], "3 of its lines begin with a number"),
        (["- a cat", "* a dog"], "2 of its lines begin as items of a list"),
        (["\u2022\ta cat", "\u2022\ta dog"], "2 of its lines begin as items of a list"),
        (["# captions", "a cat"], "1 of its lines begin with #, as comments do"),
        (["a cat", "Negative prompt: bad", "Steps: 20, Seed: 1"], "2 of its lines hold a picture's"),
        (["0.jpg: a cat", "a dog", "a cow"], "1 of its lines begin with the name of a picture"),
        (["a cat", "a dog", "a cow", "======="], "1 of its lines are rules (===, ---)"),
        (["4711: a cat", "42: a dog"], "2 of its lines begin with a number or an identifier"),
        ([" 0 | a cat", " 1 | a dog"], "2 of its lines begin with a number or an identifier"),
        (["caption: a cat", "caption: a dog"], "2 of its lines begin with the same words and a"),
        (["/imagine prompt: a cat"] * 3 + ["x"], "3 of its lines begin with the same words and a"),
        (["/imagine a cat", "/imagine a dog"], _SELDOM + "a command in front (/imagine"),
        (['  "a cat",', "  'a dog',"], "2 of its lines stand in quotes with a comma behind"),
        (["a-cat-in-the-sun", "two_dogs_asleep"], "2 of its lines hold - or _ for blanks"),
        (
            ["2024-01-01 10:00:01 a cat", "[2024-01-01T10:00] a dog"],
            "2 of its lines begin with a date and time",
        ),
        (["0.98 a cat", "0.75 a dog"], "2 of its lines begin or end with a decimal number"),
        (["a cat", "NULL", "nan"], "2 of its lines are NULL, None, an error"),
        (["000000397133", "000000037777"], "2 of its lines are, or begin with, identifiers or hashes"),
        (["a) a cat", "b) a dog"], "2 of its lines begin as items of a list"),
        (["https://x.org/0 a cat", "a dog"], "1 of its lines begin with an address"),
        (["(a cat:1.2)", "<lora:x:1> a dog", "a {red|blue} cow"], "3 of its lines hold weights, LoRAs"),
        (["a cat --ar 16:9 --v 5", "a dog"], "1 of its lines hold options (--ar 16:9)"),
        (["a cat|at night", "a dog|oil on wood|at sea", "a cow"], "2 of its lines hold bars (|)"),
        (["a cat|oil on wood|at night"], "1 of its lines hold bars (|) between words: several captions"),
        (["a cat | Poster", "a dog", "a cow"], None),
        (["500: a space odyssey", "a cat"], None),
        (["500: a space odyssey"], None),
        (["Forbidden City"], None),
        (["12:30 at night", "7:00 in the morning"], None),
        (["1,000 cats", "a film in 16:9 (16:9)", "a dog -- a friend"], None),
        (["WEBVTT", "00:00.000 --> 00:01.000", "a cat"], "1 of its lines begin as subtitles do"),
        (["1. a cat", "101 dalmatians", "3. a cow"], None),
        (["- a dash alone", "a cat", "a dog"], None),
        (["#hashtag", "7 cats", "8 dogs", "9 cows"], None),
    ],
)
def test_lines_that_hold_more_than_prompts(tmp_path: Path, lines: list[str], note: str | None) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(lines) + "\n")
    stream = PromptStream([path])
    assert sum(len(block.prompts) for block in stream.blocks(9)) == len({*lines})
    for notes in (read_prompts(path).notes, stream.notes):
        assert [one.startswith(f"{path}: {note}") for one in notes] == ([] if note is None else [True])


def test_the_separator_that_excel_is_told(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(b"sep=;\r\nid;caption\r\n1;a cat, asleep\r\n")
    read = read_prompts(path)
    assert (read.texts, read.places) == (("a cat, asleep",), ((str(path), 3),))
    (block,) = PromptStream([path]).blocks(9)
    assert [(one.text, one.line) for one in block.prompts] == [("a cat, asleep", 3)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", "sep=;\nid;caption\n", "begins with sep=, as a table does; name it .csv"),
        ("p.txt", "a/0.jpg|a cat\n1.PNG,a dog\n", "2 of its lines begin with the name of a picture"),
        ("p.txt", "0.jpg\n1.jpg\n", "2 of its lines begin with the name of a picture"),
        ("p.txt", "https://x.org/a?b\ntrain/0.json\n", "2 of its lines are addresses or paths; give"),
        (
            "p.txt",
            " id | caption\n----+---------\n  0 | a cat\n(1 row)\n",
            "line 2 is of a table as databases",
        ),
        (
            "p.txt",
            "+----+\n| id |\n+----+\n",
            "line 1 is of a table .*; export it as CSV, or",
        ),
        ("p.txt", "caption | id\n:---: | ---\na cat | 0\n", "line 2 is of a table"),
        ("p.txt", "\u2502 id \u2502\n\u251c\u2500\u2500\u2500\u2500\u2524\n", "line 2 is of a table"),
        ("p.txt", "-[ RECORD 1 ]\ncaption | a cat\n", "line 1 is of a table"),
        ("p.txt", "a cat\n<<<<<<< HEAD\n=======\n>>>>>>> b", "line 2 is the mark of a merge conflict"),
        (
            "p.csv",
            "text\na cat\n>>>>>>> b\n",
            "line 3 is the mark of a merge conflict; resolve it first",
        ),
        ("p.txt", "|| id || caption ||\n| 0 | a cat |\n", "line 1 is of a table"),
        ("p.txt", "diff --git a/p b/p\n", "begins as a web page"),
        ("p.txt", "p.txt:1:a cat\n", "1 of its lines begin with the name of a picture or a text"),
        ("p.txt", "404: Not Found", "is what a server or a program says where .*; get the list again"),
        ("p.txt", "AccessDenied\n", "is what a server or a program says"),
        ("p.txt", '{"message": "Not Found"}', "is what a server or a program says"),
        ("p.txt", "curl: (22) The requested URL ...\n", "is what a server or a program says"),
        ("p.txt", "<Error><Code>AccessDenied", "begins as a web page"),
        ("p.sql", "INSERT INTO t", r"\.sql files are not read as lists"),
        ("p.csv", "text\ra cat\ra dog\r", "is not a readable CSV: line 1 has a carriage return that"),
        ("p.csv", "text\ra cat\r", ".*so several may be one; end lines with LF or CR LF"),
        (
            "p.txt",
            "\x10\0\0\0\0\0\0\0" + '{"a":{"dtype":1}}',
            "is not a list but a safetensors file; give text",
        ),
        ("p.json", "[]", "holds no prompts; its column or list of them is empty"),
        ("p", None, "is a folder; give the lists in it as a pattern in quotes, such as"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    path = tmp_path / name
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(PromptFileError, match=f"{path}: {words}"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a cat\r\na dog\r\n\x1a"),
        ("p.txt", "a cat\na dog\x1a"),
        ("p.txt", "a cat\n\x1a\na dog\n"),
        ("p.csv", "text\r\na cat\r\na dog\r\n\x1a"),
        ("p.jsonl", '"a cat"\n"a dog"\n\x1a'),
        ("p.json", '["a cat", "a dog"]\x1a'),
    ],
)
def test_what_ends_a_text_of_dos_is_no_prompt(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert read_prompts(path).texts == ("a cat", "a dog")
    (block,) = PromptStream([path]).blocks(9)
    assert [one.text for one in block.prompts] == ["a cat", "a dog"]


def test_labels_as_pandas_writes_them_and_where_two_disagree(tmp_path: Path) -> None:
    path, other = tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_text("caption,label\na cat,1.0\na dog,0.0\n")
    assert read_prompts(path, labels=True).labels == (True, False)
    other.write_text("caption,label\na dog,1\n")
    with pytest.raises(PromptFileError, match=f"b.csv: line 2 labels .* than line 3 of {path}"):
        read_prompts([path, other], labels=True)


@pytest.mark.parametrize(("label", "word"), [(1, "memorized (1)"), (0, "ordinary (0)")])
def test_labels_that_are_all_alike_tell_nothing_apart(tmp_path: Path, label: int, word: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"caption,label\na cat,{label}\na dog,{label}\n")
    *_, note = read_prompts(path, labels=True).notes
    assert note == f"all labels are {word}, so there is no AUROC, TPR or accuracy to tell"
    assert read_prompts(path).notes == ()


@pytest.mark.parametrize(
    ("name", "said"), [("memorised", True), ("is_memorized", True), ("is_mem", True), ("likes", False)]
)
def test_columns_of_digits_whose_name_says_labels(tmp_path: Path, name: str, said: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"caption,{name}\na cat,1\na dog,0\n")
    notes = read_prompts(path, labels=True).notes
    assert [("looks like labels" in note) for note in notes] == [True] * said


@pytest.mark.parametrize(
    "text",
    [
        "a blue house by the sea at nightPortrait of Eileen CollinsPikolo Espresso Bar",
        "A cat asleep.Two dogs in the sun.Coins by the sea",
        "Coffee Cup, MontrealChelsea the cat (black)iPhone case, wornTripod lamp\na cow\n",
    ],
)
def test_captions_joined_without_a_line_end_are_said(tmp_path: Path, text: str) -> None:
    (note,) = _notes(tmp_path / "p.txt", text)
    assert "1 of its lines hold words joined without a blank" in note


@pytest.mark.parametrize(
    "text",
    [
        "an iPhone on a MacBook by McDonald, PIXNIO, StableDiffusion model",
        "portrait, trending on ArtStation, DeviantArt, CGSociety, YouTube, by J.R.R. Tolkien",
        "a cat\na dog\nSpaceX launch by DreamWorks artists\na cow\n",
    ],
)
def test_names_with_capitals_within_are_not_said(tmp_path: Path, text: str) -> None:
    assert _notes(tmp_path / "p.txt", text) == ()


def test_one_very_long_line_is_said(tmp_path: Path) -> None:
    (note,) = _notes(tmp_path / "p.txt", "a cat asleep on a deska dog in the sun" * 15)
    assert "it is one line of 136 words, which may be several captions" in note


def test_lines_that_name_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("==> a/0.txt <==\na cat\n\n==> a/1.txt <==\na dog\n")
    with pytest.raises(PromptFileError, match="line 1 names a file"):
        read_prompts(tmp_path / "p.txt")


def test_a_pictures_parameters_in_cells_are_said(tmp_path: Path) -> None:
    behind = "Negative prompt: lowres\nSteps: 20, Sampler: Euler a, Model hash: 81761151"
    rows = [{"caption": f"a cat\n{behind}"}, {"caption": f"a dog\n{behind}"}]
    notes = _notes(tmp_path / "p.json", json.dumps(rows))
    assert "2 of its prompts hold a picture's parameters" in notes[0]
    assert len(notes) == 2  # and the line breaks
    flat = behind.replace("\n", ".")
    (note,) = _notes(tmp_path / "p.txt", f"a cat.{flat}\na dog.{flat}\n")
    assert "2 of its lines hold a picture's parameters" in note


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            '{"rows": [{"row": {"caption": "a cat"}}]}',
            "under rows.row.caption, where none is read; .*rows",
        ),
        ('{"meta": [{"name": "id"}], "data": [[0, "a cat"]]}', "whose data holds a list for each row"),
        ('[[0, "a cat"], [1, "a dog"]]', r"line 1 is a list \(item 1\); write each row as an object"),
        ('{"6": {"inputs": {"text": "a"}, "class_type": "X"}}', r"workflow of ComfyUI.*'\.\[\]\.inputs"),
        ('{"prompt": {"6": {"inputs": {}, "class_type": "X"}}}', r"workflow of ComfyUI.*'\.prompt\[\]"),
        ('{"nodes": [{"widgets_values": ["a"]}], "links": []}', "is a workflow of ComfyUI, and no list"),
    ],
)
def test_where_captions_lie_in_json_is_said(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(PromptFileError, match=what):
        read_prompts(tmp_path / "p.json")


def test_a_comment_above_a_header_is_told(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("# by DVC\n# again\nid,caption\n0,a cat\n")
    with pytest.raises(PromptFileError, match=r"line 1 is a comment .* header stands in line 3"):
        read_prompts(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("#,caption\n0,a cat\n")
    assert read_prompts(tmp_path / "p.csv").texts == ("a cat",)


def test_an_archive_within_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\n")
    with tarfile.open(tmp_path / "p.txt.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.txt", "a.txt")
    with pytest.raises(PromptFileError, match="is a tar archive; unpack it"):
        read_prompts(tmp_path / "p.txt.gz")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("~/p.txt", "the shell left ~ as it is"),
        ("p.txt q.txt", "it names 2 with blanks between"),
        ("p.txt,q.txt", "it names 2 with commas between"),
        ("p.txt ", "ends with a blank, and there is one without"),
        ("~nobody-here/p.txt", "no such file; check the path"),
        ("p.txt z.txt", "no such file; check the path"),
    ],
)
def test_names_that_a_shell_left_together_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for one in ("p.txt", "q.txt"):
        Path(one).write_text("a cat\n")
    with pytest.raises(PromptFileError, match=why):
        read_prompts(name)
