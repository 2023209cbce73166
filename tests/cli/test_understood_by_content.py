"""Lists whose marks, columns and shapes no list of names holds: known by what is in them."""

import csv
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from nemo_prune.errors import PromptFileError, rendered
from nemo_prune.files.content import odd_lines
from nemo_prune.files.marks import (
    ONE_LETTER,
    SHARES,
    joints,
    odd_marks,
    shared_words,
    spaced_letters,
)
from nemo_prune.files.names import is_text
from nemo_prune.files.prompts import bundled_captions, read_prompts
from nemo_prune.files.streams import PromptStream

CAPTIONS = (
    "a yellow sailboat on a ploughed field at sunset",
    "Portrait of NASA Astronaut Eileen Collins",
    "Pikolo Espresso Bar Coffee Cup, Montreal",
    "Chelsea the Cat by Stefan van der Walt",
)
Row = dict[str, object]


def _said(path: Path) -> tuple[str, ...]:
    """The notes, which are the same of a list that is streamed."""
    notes = read_prompts(path).notes
    stream = PromptStream([path])
    assert sum(len(block.prompts) for block in stream.blocks(9))
    assert {*stream.notes} == {*notes}
    return tuple(map(rendered, notes))


def _refused(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(PromptFileError) as caught:
        read_prompts(path)
    with pytest.raises(PromptFileError):
        list(PromptStream([path]).blocks(9))
    return rendered(caught.value.args[0])


# ------------------------------------------------------------------------------------------ marks


def test_the_table_of_marks_is_of_the_bundled_captions() -> None:
    captions = bundled_captions()
    marks = Counter(
        one for text in captions for one in {*text} if not one.isalnum() and not one.isspace()
    )
    assert {mark: round(count / len(captions), 4) for mark, count in marks.items()} == SHARES
    words = [word for text in captions for word in text.split()]
    assert round(sum(len(word) == 1 for word in words) / len(words), 4) == ONE_LETTER
    within = {mark for text in captions for mark in re.findall(r"\w([^\w\s]+)(?=\w)", text)}
    assert within == {"-"}
    assert not any(re.search(r"\s{2}|[^\S ]", text) for text in captions)


@pytest.mark.parametrize("size", [1, 5, 20, 200])
def test_lists_of_ordinary_captions_have_no_note(size: int) -> None:
    random, captions = Random(size), bundled_captions()
    if size == 1:  # of a very long line alone it is said that it may be several captions
        captions = tuple(text for text in captions if len(text.split()) <= 40)
    lists = [random.sample(captions, size) for _ in range(200 if size < 200 else 20)]
    assert not any(odd_lines(Path("p.txt"), "\n".join(one)) for one in lists[:20])
    assert not any(odd_marks(one, ())[0] or spaced_letters(one) for one in lists)
    assert not any(joints(one)[0] or [*shared_words(one)] for one in lists)


ELSEWHERE = {
    "ja": ["窓辺で眠る猫、午後の光", "東京タワーの夜景「ライトアップ」", "少女・春", "海辺を走る犬。"],
    "de": ["Eine Katze schläft.", "„Der Kuß“ – Gemälde von Klimt", "Straße in München", "Öl (Bayern)"],
    "ru": ["Кошка спит на диване", "«Звёздная ночь» — картина Ван Гога", "Я и ты у моря"],
    "ar": ["القط الأسود الكبير", "المدينة القديمة، ليلاً", "صورةُ امرأةٍ تقرأُ كتابًا"],
    "fr": ["L'arrivée d'un train", "Qu'est-ce que c'est ?", "Château de l'Île-d'Yeu"],
    "es": ["¿Qué hace el gato?", "¡Feliz año!", "Retrato de una niña"],
    "hi": ["सोफे पर सोती हुई बिल्ली", "लाल साड़ी में महिला।", "समुद्र तट"],
    "ko": ["소파에서 자는 고양이", "빨간 드레스를 입은 여자 그림"],
    "zh": ["一只猫坐在沙发上,阳光明媚", "日落时的海滩——油画", "红色自行车,靠着砖墙,街景"],
    "th": ["แมวนอนบนโซฟา", "ภาพวาดทะเลตอนพระอาทิตย์ตก"],
    "he": ["חתול ישן על הספה", "צה״ל בירושלים, 1967", "ג׳ירפה בגן חיות"],
    "pl": ["Kot śpi na kanapie, wieczór", "Łódź o świcie – widok z mostu"],
    "pt": ["Um gato dorme no sofá", "Praça d'Água — São Paulo"],
    "it": ["L'arrivo del treno", "Un gatto sull'erba, d'estate"],
    "ca": ["Una col·lecció de gats al sofà", "L'illa d'en Colom"],
}


@pytest.mark.parametrize("lines", ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_languages_are_written_with_is_no_mark(lines: list[str]) -> None:
    for some in (lines, lines * 9, *([line] for line in lines)):
        assert (odd_marks(some, ()), spaced_letters(some)) == (("", set()), set())
        assert (joints(some), [*shared_words(some)]) == (("", set()), [])


@pytest.mark.parametrize(
    ("around", "named"),
    [
        (lambda text: " ".join(f"\u2581{word}" for word in text.split()), "marks (\u2581 in 4)"),
        (lambda text: text.replace("e", "e ##"), "marks (# in 4)"),
        (lambda text: text.replace("e", "e@@ "), "marks (@ in 4)"),
        (lambda text: " ".join(f"{word}/NN" for word in text.split()), "marks (/ in 4)"),
        (lambda text: " ".join(f"\u0120{word}" for word in text.split()), "marks (\u0120 in 4)"),
        (lambda text: f"{text}$", "marks ($ in 4)"),
        (lambda text: f"{text} (512x512)", "marks (( ) in 4)"),
        (lambda text: f"\U0001f3a8 {text}", "marks (\U0001f3a8 in 4)"),
        (lambda text: f"{text} key=value", "marks (= in 4)"),
        (lambda text: f"on 12:30 {text}", "marks (: in 4)"),
        (lambda text: text.replace("a", "a++", 1), "marks (+ in 4)"),
        (" ".join, "4 of its lines are single letters between blanks"),
        (lambda text: text.replace("a", "a\\"), "marks (\\ in 4)"),
        (lambda text: f"{text}.png", "names of pictures"),
        (lambda text: f"{text} AND a cat", "hold BREAK or AND, at which programs part prompts"),
        (lambda text: f"Nov 29 01:50:01 {text}", "begin with a date and time"),
        (lambda text: f'echo "{text}"', "a text in quotes behind the same word"),
    ],
)
def test_marks_that_stand_out_are_named(
    tmp_path: Path, around: Callable[[str], str], named: str
) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(map(around, CAPTIONS)))
    (note,) = _said(path)
    assert named in note
    assert "addresses" not in note
    assert named.startswith("marks") == ("marks (" in note)


@pytest.mark.parametrize(
    "front",
    [
        "Nov 29 10:50:1{n} gpu-box-3 gen[2713]: ", "Nov  9 10:50:1{n} host kernel: ",
        "2026-11-29T10:50:1{n}.123456+00:00 host gen[27]: ", "<165>1 2026-11-29T10:50:1{n}Z host gen - ",
        "<34>Nov 29 10:50:1{n} host gen: ", "Sun 2026-11-29 10:50:1{n} UTC host gen[2713]: ",
        "[ 1234.56789{n}] ", "2026-11-29 10:50:1{n},123 - gen - INFO - ", "[10:50:1{n}] INFO     ",
        "2026-11-29 10:50:1{n}.123 | INFO     | gen:main:12 - ", "10:50:1{n}.1 [main] INFO  gen.Main - ",
        "I1129 10:50:1{n}.123456 2713 gen.py:12] ", "2026-11-29T10:50:1{n}.123456789Z stdout F ",
        '10.0.0.{n} - - [29/Nov/2026:10:50:1{n} +0000] "GET /p?q=', "gen[2713]: ", "worker-1  | ",
        "2026-11-29T10:50:1{n}.123456+00:00 app[web.1]: ", "[pod/a-1/main] ", "INFO:root:",
    ],
)  # fmt: skip
def test_lines_of_a_log_are_called_so(tmp_path: Path, front: str) -> None:
    (tmp_path / "p.txt").write_text(
        "\n".join(f"{front.format(n=n)}{text}" for n, text in enumerate(CAPTIONS))
    )
    (note,) = _said(tmp_path / "p.txt")
    assert "4 of its lines begin as a program's log does" in note


@pytest.mark.parametrize("row", ["{n} & {} & 201{n} \\\\", "{n}~{}~201{n}", "  {n} | {} ## x"])
def test_marks_beside_a_number_in_front_are_named_too(tmp_path: Path, row: str) -> None:
    (tmp_path / "p.txt").write_text(
        "\n".join(row.format(text, n=n) for n, text in enumerate(CAPTIONS, 1))
    )
    notes = _said(tmp_path / "p.txt")
    assert ["a number" in notes[0], "marks (" in notes[1]] == [True, True], notes
    assert all(f"{mark} " in notes[1] for mark in row if mark in "&\\~#")


def test_marks_of_which_something_is_said_are_not_said_again(tmp_path: Path) -> None:
    lines = [f"{n}. ({text}:1.2) on a mat" for n, text in enumerate(CAPTIONS, 1)]
    (tmp_path / "p.txt").write_text("\n".join(lines))
    numbers, weights = _said(tmp_path / "p.txt")
    assert "begin with a number that counts up" in numbers
    assert "4 of its lines hold weights" in weights


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("Image caption generated {}", "begin with the same 3 words"),
        ("Alamy Stock Photo {}", "begin with the same 3 words"),
        ("{} Photo by Bo {n} Li on Unsplash", "end with the same 3 words"),
        ("Bo Li{n} on Twitter {}", "have the same 2 words near their beginning"),
        ("{}, best quality", "end with the same 2 words"),
        ("Image caption generated a {}", "begin with the same 3 words"),
        ("a photo of {}", ""), ("a yellow drawing of a {}", ""), ("This is {}", ""), ("the red {}", ""),
        ("{} on a white background", ""), ("the {n} pictures of {}", ""), ("x{n} pictures here {}", ""),
    ],
)  # fmt: skip
def test_the_same_words_around_every_caption_are_said(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "p.txt"
    lines = [row.format(text, n="abcd"[n]) for n, text in enumerate(CAPTIONS)]
    path.write_text("\n".join(lines))
    assert [said in note and f": 4 of its lines {said}" in note for note in _said(path)] == [
        True
    ] * bool(said)
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, [*lines * 4, "a cat"])))
    if said:  # of repetitions one counts, and one of five is another
        assert _said(tmp_path / "p.jsonl") == ()
    path.write_text("\n".join(lines[:3]))
    assert _said(path) == ()


def test_few_marks_among_many_captions_are_not_said(tmp_path: Path) -> None:
    lines = [*bundled_captions()[:30], "cats & dogs + #3, $45", "a cat | Poster", "C++ code @ night"]
    (tmp_path / "p.txt").write_text("\n".join(lines))
    assert _said(tmp_path / "p.txt") == ()


# --------------------------------------------------------------------------------- several in one


JOINED = {
    ",": "commas", "\u3001": "commas", ".": "full stops", "\u2014": "dashes", "...": "...",
    "\u2026": "...", "!": "!", "--": "dashes", " \u00b6 ": "\u00b6", '","': '","', "', '": '","',
    **dict.fromkeys(("  ", " " * 20, "\u3000", "\u00a0\u00a0"), "several blanks"),
}  # fmt: skip


@pytest.mark.parametrize("mark", JOINED)
@pytest.mark.parametrize("name", ["p.txt", "p.csv"])
def test_captions_joined_as_no_caption_is_written_are_said(tmp_path: Path, mark: str, name: str) -> None:
    texts = [f"{one}{mark}{two}" for one in CAPTIONS[:2] for two in CAPTIONS[2:]]
    for lines in (texts, texts[:2], [mark.join(CAPTIONS)], [*texts, *bundled_captions()[:12]]):
        for number in ("", "{}. ") if len(lines) == 4 else ("",):
            numbered = [number.format(n) + line for n, line in enumerate(lines, 1)]
            with (tmp_path / name).open("w", newline="") as file:
                if name == "p.csv":
                    csv.writer(file).writerows([["caption"], *([one] for one in numbered)])
                else:
                    file.write("\n".join(numbered))
            notes = _said(tmp_path / name)
            assert sum("several captions may stand in" in note for note in notes) == 1, notes
            held = min(len(lines), 4)
            unit = "lines" if name == "p.txt" else "prompts"
            wanted = f": {held} of its {unit} hold "
            (note,) = (note for note in notes if "several captions may stand in" in note)
            assert (wanted in note and JOINED[mark] in note) or "joined without a blank" in note


@pytest.mark.parametrize(
    "line",
    [
        "A view of St.Petersburg at night", "Portrait by J.R.R.Tolkien in oil", "a girl,solo,long hair",
        "a picture from flickr.com of cats", "Portland,Oregon in the snow,Maine", "10,000 cats at sea",
        "A sentence ends here.  Another one begins", "a photo(s) of cats", "a red/blue car of 9x5 inch",
        "picture of the U.S.S.Enterprise model", "a man at noon,asleep", "a mid-century chair",
    ],
)  # fmt: skip
def test_captions_that_are_written_without_care_are_not_said(tmp_path: Path, line: str) -> None:
    (tmp_path / "p.txt").write_text(line)
    assert _said(tmp_path / "p.txt") == ()
    assert joints([line] * 4) == ("", set())
    sloppy = "a man,his dog on a beach  at noon"
    (tmp_path / "p.txt").write_text("\n".join([sloppy, *bundled_captions()[:3]]))
    assert _said(tmp_path / "p.txt") == ()


@pytest.mark.parametrize("mark", ["\\n", "\\r\\n", "\\t"])
def test_captions_joined_by_breaks_in_letters_are_said(tmp_path: Path, mark: str) -> None:
    (tmp_path / "p.txt").write_text(mark.join(CAPTIONS))
    (tmp_path / "p.jsonl").write_text(json.dumps({"text": mark.join(CAPTIONS)}))
    for name in ("p.txt", "p.jsonl"):
        (note,) = _said(tmp_path / name)
        assert "in letters, as programs write line breaks and tabs: several captions may" in note


def test_one_line_of_cells_is_refused(tmp_path: Path) -> None:
    said = _refused(tmp_path / "p.txt", "\t".join(CAPTIONS))
    assert "is one line of 4 cells between tabs, not text; write each caption on a line" in said


# -------------------------------------------------------------------------------- what is no list


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            ["total 28", *(f"drwxr-xr-x 2 anna users 1004 Nov 28 22:14 {text}" for text in CAPTIONS)],
            "is a listing of a folder",
        ),
        ([f"-rw-r--r--. 1 a b 99 Nov 28 2025 {text}.jpg" for text in CAPTIONS], "is a listing"),
        ([f"11/28/2026  10:10 PM    <DIR>   {text}" for text in CAPTIONS], "is a listing"),
        ([".", *(f"\u251c\u2500\u2500 {text}" for text in CAPTIONS)], "is a listing of a folder"),
        ([f"id={n},caption={text},ok=1" for n, text in enumerate(CAPTIONS)], "holds records"),
        ([f'caption="{text}" id={n}' for n, text in enumerate(CAPTIONS)], "holds records with names"),
        ([f"id : {n}\ncaption : {text}\n" for n, text in enumerate(CAPTIONS)], "holds records"),
        ([f"id      {n}\ncaption {text}\n" for n, text in enumerate(CAPTIONS)], "holds records"),
        ([text.replace(" ", "\\ ") for text in CAPTIONS], "have a backslash before each blank"),
        ([f'<http://x/{n}> <http://y> "{text}" .' for n, text in enumerate(CAPTIONS)], "a web page"),
    ],
)
def test_what_programs_print_of_captions_is_no_list(
    tmp_path: Path, lines: list[str], words: str
) -> None:
    assert words in _refused(tmp_path / "p.txt", "\n".join(lines))


@pytest.mark.parametrize(
    "lines",
    [
        ["text on a wall", "image of a cat", "text in a book", "image of a dog", "a cow"],
        ["E = mc2 on a board", "a shop, open=yes", "a cat"],
        ["file cabinet", "id card", "caption contest"],
    ],
)
def test_captions_with_names_of_columns_in_them_are_read(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "p.txt").write_text("\n".join(lines))
    assert len(read_prompts(tmp_path / "p.txt").texts) == len(lines)


@pytest.mark.parametrize("suffix", [".ttl", ".arff", ".rst"])
def test_further_formats_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    said = _refused(tmp_path / f"p{suffix}", "a cat\n")
    assert f"{suffix} files are not read as lists" in said


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "p.csv",
            "id,caption\n0,a cat\ncaption,id\na dog,0\n",
            "line 3 is the header again, in another",
        ),
        ("p.csv", "prompt,negative\na cat,x\nnegative,prompt\nx,a dog\n", "line 3 is the header again"),
        ("p.tsv", "caption\tfile\na cat\t0\nFile\tCaption\n0\ta dog\n", "line 3 is the header again"),
        (
            "p.csv",
            "a,b,text\n1,2,a cat\nb,text,a\n2,a dog,1\n",
            "line 3 is the header again, in another",
        ),
        (
            "p.csv",
            "id,caption\n0,a cat\nid,caption\n1,a dog\n",
            "again, as of files that were joined; re",
        ),
        (
            "p.csv",
            "id,caption\n0,a cat\nfilename,text\n1,a dog\n",
            "line 3 is a header of other columns",
        ),
    ],
)
def test_a_header_again_in_any_order_is_refused(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    assert words in _refused(tmp_path / name, text)


@pytest.mark.parametrize(
    ("name", "parts", "words"),
    [
        ("p.csv", ("id,caption\r\n0,a cat\r\n", "caption,id\r\na dog,1\r\n"), "again, in another order"),
        ("p.csv", ("id,caption\n0,a cat\n", "id,caption\n1,a dog\n"), "line 3 is the header again, as"),
        (
            "p.csv",
            ("id,caption\n0,a cat\n", '"id","caption"\n1,a dog\n'),
            "line 3 is the header again, as",
        ),
        ("p.csv", ("caption\na cat\n", "caption\na dog\n"), "line 3 is the header again, as"),
        ("p.csv", ("caption\na cat\n", "Prompt\na dog\n"), "line 3 is a header of other columns"),
        ("p.tsv", ("id\tcaption\n0\ta cat\n", "id\tcaption\n1\ta dog\n"), "line 3 is the header again"),
        ("p.json", ('["a cat"]\n', '["a dog"]\n'), "several values one after the other"),
    ],
)
def test_a_header_behind_a_byte_order_mark_is_one(
    tmp_path: Path, name: str, parts: tuple[str, ...], words: str
) -> None:
    """Windows joins files with their byte order marks: `copy a.csv+b.csv`."""
    assert words in _refused(tmp_path / name, "".join("\ufeff" + part for part in parts))


def test_byte_order_marks_of_joined_files_are_no_text(tmp_path: Path) -> None:
    """Nor does one keep a quoted cell from being read as one."""
    marked = '\ufeffcaption,id\na cat,0\n\ufeff"a dog, asleep",1\n'
    (tmp_path / "p.csv").write_text(marked)
    assert read_prompts(tmp_path / "p.csv").texts == ("a cat", "a dog, asleep")
    (tmp_path / "p.txt").write_text("\ufeffa cat\n\ufeffa dog\n")
    assert read_prompts(tmp_path / "p.txt").texts == ("a cat", "a dog")
    (tmp_path / "p.csv").write_text("text\na cat\ntext\n")  # a caption of one word
    assert read_prompts(tmp_path / "p.csv").texts == ("a cat", "text")


def test_cells_that_are_names_are_no_header(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,kind,caption\nid,n,a cat\ntext,n,id card\n2,caption,text\n")
    assert len(read_prompts(tmp_path / "p.csv").texts) == 3


# ---------------------------------------------------------------------------------------- columns


def _csv(path: Path, rows: list[Row]) -> None:
    lines = [",".join(rows[0]), *(",".join(f'"{cell}"' for cell in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def _tsv(path: Path, rows: list[Row]) -> None:
    path.write_text("\n".join("\t".join(map(str, row)) for row in [[*rows[0]], *map(dict.values, rows)]))


def _json_lines(path: Path, rows: list[Row]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


def _json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps(rows))


def _parquet(path: Path, rows: list[Row]) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.Table.from_pylist(rows), path)


WRITERS = {"p.csv": _csv, "p.tsv": _tsv, "p.jsonl": _json_lines, "p.json": _json, "p.parquet": _parquet}
every_format = pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=WRITERS)
Write = Callable[[Path, list[Row]], None]


@every_format
def test_of_names_that_differ_in_case_the_exact_one_is_read(
    tmp_path: Path, name: str, write: Write
) -> None:
    path, rows = tmp_path / name, [{"Caption": f"a {one}", "id": 0, "caption": one} for one in CAPTIONS]
    write(path, rows)
    for read in (read_prompts, lambda *given: list(PromptStream([given[0]], *given[1:]).blocks(9))):
        with pytest.raises(PromptFileError) as caught:
            read(path)
        assert "Caption and caption, which differ in case alone; rename" in str(caught.value)
        assert "give prompt_column" in str(caught.value)
    assert read_prompts(path, None, "caption").texts == CAPTIONS
    assert read_prompts(path, None, "Caption").texts == tuple(f"a {one}" for one in CAPTIONS)
    (block,) = PromptStream([path], None, "Caption").blocks(9)
    assert [one.text for one in block.prompts] == [f"a {one}" for one in CAPTIONS]
    with pytest.raises(PromptFileError, match="differ in case"):
        read_prompts(path, None, "CAPTION")
    write(path, [{"id": 0, "Title": f"a {one}", "title": one} for one in CAPTIONS])
    assert read_prompts(path, None, "Title").texts == tuple(f"a {one}" for one in CAPTIONS)


@every_format
@pytest.mark.parametrize("other", ["response", "title", "x_17"])
def test_a_column_with_texts_is_named_whatever_its_name(
    tmp_path: Path, name: str, write: Write, other: str
) -> None:
    path = tmp_path / name
    write(
        path, [{"prompt": f"a cat {'abcd'[n]}", "id": n, other: text} for n, text in enumerate(CAPTIONS)]
    )
    (note,) = _said(path)
    assert f"the column prompt is read, {other} not; prompt_column names another" in note
    assert read_prompts(path, column=other).texts == CAPTIONS


@every_format
def test_a_column_with_one_text_alone_is_said_with_it(tmp_path: Path, name: str, write: Write) -> None:
    path = tmp_path / name
    rows: list[Row] = [
        {"prompt": "Describe this.", "answer": f"{text} {n}"} for text in CAPTIONS for n in "ab"
    ]
    write(path, rows)
    note, *_ = _said(path)
    assert "the column prompt, with the same text in all of 8 records, is read, answer not;" in note


@every_format
def test_tables_of_pictures_have_no_column_of_texts_beside(
    tmp_path: Path, name: str, write: Write
) -> None:
    """As LAION, COCO and img2dataset have them."""
    path = tmp_path / name
    rows: list[Row] = [
        {
            "url": f"https://x.org/a b/{n}.jpg", "caption": text, "key": f"{n:09}", "status": "success",
            "error_message": "HTTP Error 404: Not Found", "width": 512, "sha256": f"{n:064x}",
            "exif": "{'Image Orientation': 'Horizontal (normal)'}", "similarity": 0.3,
            "license": "Attribution-NonCommercial License by the author", "nsfw": "UNLIKELY",
            "path": f"C:/my own pictures/no {n} of them.jpg", "artist": f"Vincent {n}",
            "date": f"Thu, {n} Nov 2013 11:18:45 GMT", "negative_prompt": f"no blur at all {n}",
        }
        for n, text in enumerate(CAPTIONS, 10)
    ]  # fmt: skip
    write(path, rows)
    assert _said(path) == ()


def test_what_few_records_have_beside_is_no_column_of_prompts(tmp_path: Path) -> None:
    rows = [{"caption": f"a cat {n} on a mat"} for n in range(100)]
    rows[3]["error"], rows[5]["error"] = "it was not found", "the server did not answer"
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert _said(tmp_path / "p.jsonl") == ()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a cat on a mat", True), ("窓辺で眠る猫", True), ("Кошка спит на диване", True),
        ("a cat", False), ("https://x.org/a cat on", False), ("my cat on a mat.jpg", False),
        ("2013-11-14 17:02:52", False), ('{"a": "cat on a mat"}', False), (7, False), (None, False),
    ],
)  # fmt: skip
def test_what_looks_like_a_text(value: object, text: bool) -> None:
    assert is_text(value) is text


def test_a_column_of_labels_is_named_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("caption,memorized?\na cat,1\na dog,0\n")
    (note,) = read_prompts(tmp_path / "p.csv", labels=True).notes
    assert "the column memorized? looks like labels and is not used; name it memorized" in note


# --------------------------------------------------------------------------------- where they lie


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.json", '{"a": 1}{"caption": "a cat"}', "several values one after the other"),
        ("p.jsonl", '{"caption": "a"}{"caption": "b"}', "of its own (jq -c .)"),
        ("p.json", '["a cat"]\n["a dog"]\n', "of its own (jq -c '.[]')"),
        ("p.jsonl", '[\n{"caption": "a cat"}\n]\n[\n{"caption": "a dog"}\n]\n', "jq -c '.[]'"),
        ("p.jsonl", '{"caption": "a"},\n{"caption": "b"}', "a comma stands behind its first value"),
        ("p.jsonl", '{"0.jpg": "a cat on a mat"}', "its keys are no names of columns: write objects"),
        (
            "p.json",
            '[{"id": "0", "talk": [{"from": "x", "value": "Describe."}, {"value": "a cat on a mat"}]}]',
            "its texts stand under talk[].value, where none is read: bring them to the top",
        ),
        (
            "p.json",
            '{"hits": {"hits": [{"_id": 0, "_source": {"x": "a cat on a mat"}}]}}',
            "texts stand under hits.hits[]._source.x, where none is read; write them as JSON lines "
            "(jq -c '.hits.hits[]._source.x')",
        ),
        (
            "p.json",
            '{"images": [{"file": "0.jpg", "sentences": [{"raw": "a cat on a mat"}]}]}',
            "(jq -c '.images[].sentences[].raw')",
        ),
        ("p.json", '{"1.jpg": ["a cat on a mat"]}', "texts stand under *[], where none is read"),
        ("p.json", '{"rows": [{"x": "a cat on a mat"}]}', "in its rows[].x: prompt_column x reads them"),
        ("p.json", '{"rows": ["a cat on a mat"]}', "in its rows[]: prompt_column rows reads them"),
    ],
)
def test_where_texts_lie_in_json_is_said(tmp_path: Path, name: str, text: str, words: str) -> None:
    assert words in _refused(tmp_path / name, text)


@pytest.mark.parametrize(
    ("value", "place", "way"),
    [
        ({"rendered": "<p>a cat on a mat</p>"}, "caption.rendered", ".caption?.rendered?"),
        ({"rendered": "Cat"}, "caption.rendered", ".caption?.rendered?"),
        ({"en": {"text": "a cat"}}, "caption.en.text", ".caption?.en?.text?"),
        (["a cat on a mat", "b"], "caption[]", ".caption?[]?"),
        ([{"raw": "a cat"}], "caption[].raw", ".caption?[]?.raw?"),
    ],
)
@pytest.mark.parametrize("name", ["p.json", "p.jsonl"])
def test_an_object_in_a_captions_place_is_told_with_its_text(
    tmp_path: Path, name: str, value: object, place: str, way: str
) -> None:
    text = json.dumps([{"id": 1, "caption": value}])
    path = tmp_path / name
    words = _refused(path, text if name == "p.json" else f"{text[1:-1]}\n{text[1:-1]}\n")
    assert f", whose text stands under {place}; write it as JSON lines (jq -c '.. | {way}" in words
    if shutil.which("jq"):
        found = re.search(r"jq -c '(.*)'\)", words)
        assert found
        lines = subprocess.run(["jq", "-c", found[1], path], capture_output=True, text=True, check=True)
        (tmp_path / "q.jsonl").write_text(lines.stdout)
        assert "at" in read_prompts(tmp_path / "q.jsonl").texts[0]


def test_an_object_in_parquet_is_told_with_its_text(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = arrow.table({"caption": [{"en": "a cat on a mat"}]})
    parquet.write_table(rows, tmp_path / "p.parquet")
    with pytest.raises(PromptFileError, match=r"caption\.en; write that as a column of its own"):
        read_prompts(tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_text('{"caption": {"0.jpg": 7}}')
    with pytest.raises(PromptFileError, match="but an object; mend it"):
        read_prompts(tmp_path / "p.jsonl")


@pytest.mark.parametrize("column", ["x", "rows"])
def test_the_advice_is_right(tmp_path: Path, column: str) -> None:
    text = '{"rows": [{"x": "a cat on a mat"}]}' if column == "x" else '{"rows": ["a cat on a mat"]}'
    (tmp_path / "p.json").write_text(text)
    assert read_prompts(tmp_path / "p.json", column=column).texts == ("a cat on a mat",)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["0.json", "1.json", "2.txt"], "**/*.json'"),
        (["0.txt", "0.jpg"], "**/*.txt'"),
        (["a.arrow", "dataset_info.json"], "its data are in .arrow, which is not read; write them as"),
        (["0.jpg"], "it holds no list by its files' names"),
        ([], "**/*.parquet'"),
    ],
)
def test_a_folders_pattern_is_of_what_lies_in_it(tmp_path: Path, files: list[str], words: str) -> None:
    (tmp_path / "p" / "q").mkdir(parents=True)
    for name in files:
        (tmp_path / "p" / "q" / name).touch()
    with pytest.raises(PromptFileError) as caught:
        read_prompts(tmp_path / "p")
    assert words in caught.value.args[0]
