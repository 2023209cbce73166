"""Letters that are not what they look like, cells that hold nothing, and lines broken at a width."""

import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest

from nemo_prune.errors import PromptFileError
from nemo_prune.files.letters import folded, parted
from nemo_prune.files.prompts import bundled_captions, read_prompts
from nemo_prune.files.streams import PromptStream

CAPTION = "Portrait of a Cat, Asleep"


def streamed(path: Path) -> tuple[str, ...]:
    stream = PromptStream([path])
    assert list(stream.blocks(9))
    return tuple(stream.notes)


BOTH = pytest.mark.parametrize("notes_of", [lambda path: read_prompts(path).notes, streamed])


# ------------------------------------------------------------------------------- letters


@BOTH
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Por\u00adtrait of a Cat", "what nobody sees (U+00AD soft hyphen)"),
        ("Portrait \u200bof a Cat", "what nobody sees (U+200B zero width space)"),
        ("Portrait\ufeff of a Cat", "what nobody sees (U+FEFF zero width no-break space)"),
        (
            "\u2066Portrait of a Cat\u2069",
            "what nobody sees (U+2066 left-to-right isolate, U+2069 pop directional isolate)",
        ),
        ("Portrait of\u200e a Cat", "what nobody sees (U+200E left-to-right mark)"),
        ("Por\u200dtrait of a Cat", "what nobody sees (U+200D zero width joiner)"),
        ("Portrait of a Cat\U000e0041", "what nobody sees (U+E0041 tag latin capital letter a)"),
        ("Portrait\x07 of a Cat", "what nobody sees (U+0007 a control character)"),
        ("P\u043ertrait of a Cat", "letters of another script that look like Latin ones"),
        ("Portrait of \u0430 cat", "letters of another script that look like Latin ones"),
        ("\u03a1ortrait of a Cat", "letters of another script that look like Latin ones"),
        ("\u043a\u043e\u0442 \u0438 c\u043e\u0431\u0430\u043a\u0430", "letters of another script"),
        ("Portrait of a \ufb01ne Cat", "letters in another form (ligatures"),
        ("\U0001d411\U0001d41e\U0001d41d cat", "letters in another form (ligatures"),
        ("\uff30\uff4f\uff52trait", "letters in another form (ligatures"),
        ("Portrait of a Caf\ufffd", "U+FFFD, which stands where a letter was lost"),
        ("Cats &amp; Dogs", "HTML's names of letters (&amp;, &#39;)"),
        ("A Cat&#39;s House", "HTML's names of letters (&amp;, &#39;)"),
        ("A Cat&#x27;s House", "HTML's names of letters (&amp;, &#39;)"),
        ("A Cat&nbsp;Asleep by&hellip;", "HTML's names of letters (&amp;, &#39;)"),
    ],
)
def test_letters_that_are_others_than_they_seem_are_said_with_their_lines(
    tmp_path: Path, suffix: str, text: str, words: str, notes_of: Callable[[Path], tuple[str, ...]]
) -> None:
    path = tmp_path / f"p.{suffix}"
    texts = [CAPTION, text]
    if suffix == "jsonl":
        texts = [json.dumps({"caption": one}) for one in texts]
    path.write_text(texts[0] + "\n\n" + texts[1] + "\n")
    unit = "lines" if suffix == "txt" else "prompts"
    assert any(
        note.startswith(f"{path}: 1 of its {unit} (line 3) hold {words}") for note in notes_of(path)
    )
    assert read_prompts(path).texts == (CAPTION, text.strip()), "it is scored as it stands"


@pytest.mark.parametrize(
    "text",
    [
        "An astronaut \U0001f469\u200d\U0001f680 and a heart \u2764\ufe0f",
        "The flag of Scotland \U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0928\u094d\u200d\u092f\u093e\u092f",
        "A grain of 5 \u03bcm, 5\u03bcm wide, TGF\u03b2 and \u03a9mega, \u0394t",
        "Moscow (\u041c\u043e\u0441\u043a\u0432\u0430), a stamp of the \u0421\u0421\u0421\u0420",
        "\u041a\u043e\u0442 \u043d\u0430 USB-\u043a\u0430\u0431\u0435\u043b\u0435",
        "\u0391\u0395\u039a Athens", "\u03a7\u03ac\u03bf\u03c2",
        "Caf\u00e9 \u00c5ngstr\u00f6m na\u00efve \u0141\u00f3d\u017a",
        "\uff34\u30b7\u30e3\u30c4", "a cat\u00a0: asleep", "Cats & Dogs, R&B; Q&A, AT&T, B&W photo",
        "Johnson &Johnson; a box",
    ],
)  # fmt: skip
def test_letters_that_belong_where_they_stand_are_not_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.txt"
    path.write_text(text)
    assert read_prompts(path).notes == ()


def test_many_lines_are_named_by_the_first(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(f"a cat &amp; {word}" for word in "abcdefghij"))
    (note,) = read_prompts(path).notes
    assert "10 of its lines (lines 1, 2, 3, 4, 5, 6, 7, 8, ...) hold HTML's" in note


def test_byte_order_marks_of_joined_files_and_blank_lines_are_not_said(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\ufeffa cat\n\ufeffa dog\n\u200b\n\x1a\n")
    found = read_prompts(path)
    assert (found.texts, found.notes) == (("a cat", "a dog"), ())


# ------------------------------------------------------------------------------- nothing

NOTHING = [
    "null", "None", "NaN", "nat", "n/a", "undefined", "NA", "<NA>", "\\N", "'null'", "(null)", "[NULL]",
    "#NAME?", "#REF!", "#N/A", "#VALUE!", "#DIV/0!", "#NUM!", "#NULL!", "#SPILL!", "#ERROR!", "#WERT!",
    "#NV", "#NOM?", "#\u00a1REF!", "#\u00bfNOMBRE?", "Err:502", "[object Object]", "System.Object[]",
    "<__main__.Row object at 0x7f00aa>", "<class 'float'>",
]  # fmt: skip


@BOTH
@pytest.mark.parametrize("text", NOTHING)
def test_cells_that_hold_nothing_are_said_and_refused_where_all_do(
    tmp_path: Path, text: str, notes_of: Callable[[Path], tuple[str, ...]]
) -> None:
    for name, begin, unit in (("p.txt", "", "lines"), ("p.tsv", "caption\n", "prompts")):
        path = tmp_path / name
        quoted = f'"{text.replace(chr(34), chr(34) * 2)}"' if begin else text
        path.write_text(f"{begin}{quoted}\n{CAPTION}\n")
        assert any(f"1 of its {unit} are NULL, None, an error of a" in note for note in notes_of(path))
        path.write_text(f"{begin}{quoted}\n{quoted}\n")
        with pytest.raises(PromptFileError, match=f"all 2 of its {unit} are NULL, None, an error of a"):
            notes_of(path)


@pytest.mark.parametrize("text", ["None of us", "#cats", "NASA", "Nil by mouth", "#WOW!", "Nan at home"])
def test_captions_that_begin_so_are_captions(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.txt"
    path.write_text(text)
    assert not any("NULL" in note for note in read_prompts(path).notes)


# ------------------------------------------------------------------------------- width


@pytest.mark.parametrize("width", [30, 40])
@pytest.mark.parametrize("blank", ["", " "])  # fold -s keeps the blank at which it breaks
@pytest.mark.parametrize("first", [0, 500, 1000])
def test_lines_broken_at_a_width_are_said(tmp_path: Path, width: int, blank: str, first: int) -> None:
    path = tmp_path / "p.txt"
    broken = (textwrap.wrap(one, width) for one in bundled_captions()[first : first + 40])
    path.write_text("\n".join(f"{blank}\n".join(lines) for lines in broken))
    (note,) = (note for note in read_prompts(path).notes if "broken at about" in note)
    assert (
        f": its lines seem broken at about {width} characters, so that captions go on in the next"
        in note
    )


def test_captions_of_one_length_are_not_called_broken() -> None:
    things = [f"a photo of a {colour} {thing}" for colour in ("red", "blue") for thing in ("cat", "car")]
    assert folded(things) == folded([one.title() for one in things]) == folded(things * 9) == 0
    for order in (sorted(bundled_captions(), key=len), sorted(bundled_captions())):
        for first in range(0, 2000, 25):
            assert folded(order[first : first + 25]) == 0


# ------------------------------------------------------------------------------- blanks alone

LIST = (
    "a yellow sailboat on a ploughed field at sunset", "Portrait of NASA Astronaut Eileen Collins",
    "a pink mushroom on a clear day", "Pikolo Espresso Bar Coffee Cup, Montreal",
    "painting of an orange cat in the snow", "Chelsea the Cat by Stefan van der Walt",
    "a small dog beside a lamp",
)  # fmt: skip


def _by_words(texts: Sequence[str], count: int) -> list[str]:
    words = " ".join(texts).split()
    return [" ".join(words[at : at + count]) for at in range(0, len(words), count)]


@BOTH
@pytest.mark.parametrize(
    "lines", [_by_words(LIST, 6), _by_words(LIST, 10), textwrap.wrap(" ".join(LIST), 75)]
)
def test_lists_broken_without_regard_to_captions_are_said(
    tmp_path: Path, lines: list[str], notes_of: Callable[[Path], tuple[str, ...]]
) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(lines))
    (note,) = notes_of(path)
    assert "of its lines go on in the next within a phrase" in note or "seem broken at about" in note


def test_captions_on_one_line_or_a_few_are_said(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text(" ".join(LIST))
    assert "it is one line of 50 words, which may be several captions" in read_prompts(path).notes[0]
    path.write_text(f"{' '.join(LIST)}\n{' '.join(LIST[::-1])} again\n")
    assert "it is 2 lines of 50 words or more, which may" in read_prompts(path).notes[0]


@pytest.mark.parametrize("count", [4, 6, 9])
@pytest.mark.parametrize("size", [8, 20, 100])
def test_most_lists_of_captions_that_are_broken_after_words_are_said(size: int, count: int) -> None:
    random, captions = Random(size), bundled_captions()
    lists = [random.sample(captions, size) for _ in range(40)]
    assert sum(parted(_by_words(one, count)) > 0 for one in lists) >= 36
    assert not any(map(parted, lists))


def test_one_caption_among_many_that_is_cut_is_not_said() -> None:
    assert parted([*bundled_captions()[:20], "Portrait of the", *bundled_captions()[20:40]]) == 0


def test_captions_that_begin_alike_are_no_text_that_was_broken() -> None:
    assert parted([f"a photo of vitamin {letter}" for letter in "abcdek"]) == parted([]) == 0
