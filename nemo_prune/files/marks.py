"""Marks that stand in far more lines of a list than captions have them, whatever program wrote them.

No list of programs' marks ends, so they are known by how often they stand: `SHARES` says how often in
ordinary captions, and what stands in far more lines is named. Letters of any script, and what sentences
are written with in it, are no marks; but how they stand may be one: between two words without a blank,
of which ordinary captions have hyphens alone, or as several blanks where those have one.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

SHARES = {",": 0.4355, "-": 0.023}
"""In which part of the bundled captions each mark stands; the others in none."""
ONE_LETTER = 0.1468
"""Which part of the bundled captions' words are one letter (all of them: a)."""
_FAR = 4  # times as many
# What lines may hold beyond that without a word: few a mark such as # or @, most what any writing has.
_FEW, _MOST = 0.2, 0.8
_WRITTEN = frozenset("-:;!?()/&")
_SENTENCE = frozenset(".,'\"")
_SIGNS = re.compile("[\u00a7\u00b6\u2016\u2017\u2020-\u2025\u2027\u2030-\u2038\u203b-\u205e\u2022]")
_ENOUGH = 3  # lines, or times in a line alone
_SHOWN = 8
# Marks that no caption has, by which one line is enough.
_NEVER = re.compile(r"[<>\[\]{}=_\\`~^]|\*\*|::|\|\||\"\s?(?=:)|%(?=[0-9A-Fa-f]{2})|(?<=\s):(?=\d)")
_ENTITY = re.compile(r"&#?\w+;")
_JOINED = "[\u0e00-\u0fff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]"  # of scripts without blanks
_LETTER = rf"(?!{_JOINED})[^\W_]"  # or a digit
_WITHIN = re.compile(rf"\w([^\w\s'\u2019-])(?=\w)(?!(?<={_JOINED}.){_JOINED})")
_WIDE = "\u2000-\u2003\u3000"  # blanks
# How captions are joined that ordinary ones are not written: each with its name, and whether only
# phrases of several words show it. Full stops stand so in abbreviations (St.Petersburg) and addresses.
_JOINTS = (
    ("commas without a blank", True, re.compile(
        rf"(?<={_LETTER})[,\u3001\uff0c](?={_LETTER})(?!(?<=\d,)\d)")),
    ("full stops without a blank", True, re.compile(
        rf"(?<=[^\W\d_]{{2}})(?<!\b[A-Z]\w)(?<!\b[A-Z]\w\w)\.(?=(?!\d){_LETTER})(?!(?:ai|app|co|com|de"
        r"|eu|fr|gg|gif|gov|info|io|it|jpe?g|js|me|net|nl|org|png|ru|tv|txt|uk|us|webp|xyz)\b)")),
    ("marks such as ... ! ? or dashes without a blank", True, re.compile(
        rf"(?<={_LETTER})(?:\.{{2,}}|[!?)]+|\u2026|--|[\u2013-\u2015])(?=(?!\d){_LETTER})")),
    ("\u00b6", False, re.compile("\u00b6")),
    ('","', False, re.compile(r"(?<=\w)[.!?]?[\"'\u201d]\s?[,;]\s?[\"'\u201c](?=\w)")),
    ("several blanks in a row", False, re.compile(
        rf"(?<=[^\s.!?:])[^\S\r\n]{{2,}}(?=\S)|[^\S\r\n]{{3,}}(?=\S)"
        rf"|(?<={_LETTER})[{_WIDE}](?={_LETTER})")),
)  # fmt: skip
_SHARED = 0.9  # of the lines
_LINES = 4  # with the same words
_PLACES = 5  # words from the front
# With what words go on in a phrase, as a template's do: a photo of, a drawing of a.
_GOES_ON = frozenset({
    "of", "in", "on", "with", "by", "for", "to", "from", "at", "and", "or", "is", "are", "shows",
    "showing", "depicts", "depicting", "featuring",
})  # fmt: skip
_ARTICLES = frozenset({"a", "an", "the"})
_DECORATED = re.compile("[\u0100-\u024f]")  # with which words seldom begin in any language


def odd_marks(lines: Sequence[str], told: Collection[int]) -> tuple[str, set[int]]:
    """The marks that stand out, each with in how many lines it stands, and those lines; "" for none.

    told: the lines of which something is said already, and which are left out.
    """
    lines = [_ENTITY.sub("x", line) for line in lines]  # of which something else is said
    held = {n: _marks(line) for n, line in enumerate(lines) if n not in told}
    counts = Counter(mark for marks in held.values() for mark in marks)
    found = {mark for mark, count in counts.items() if _stands_out(mark, count, lines)}
    never = {n: {mark.strip() for mark in _NEVER.findall(lines[n])} for n in held}
    counts.update(mark for marks in never.values() for mark in marks if len(mark) > 1)
    found |= set[str]().union(*never.values())
    found |= set(_within_words([lines[n] for n in held]))
    letters = {mark for mark in found if mark.isalpha()}
    for n, marks in held.items():
        held[n] = ((marks | never[n]) & found) | {mark for mark in letters if mark in lines[n]}
    counts = Counter(mark for marks in held.values() for mark in marks)
    have = {n for n, marks in held.items() if marks}
    shown: dict[int, list[str]] = {}
    for mark, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]:
        shown.setdefault(count, []).append(mark)
    named = ", ".join(f"{' '.join(marks)} in {count}" for count, marks in shown.items())
    return named + ", ..." * (len(counts) > _SHOWN), have


def spaced_letters(lines: Sequence[str]) -> set[int]:
    """The lines whose words are letters, far more of them than in captions: P o r t r a i t."""
    found = set()
    for n, line in enumerate(lines):
        words = line.split()
        # Letters with a large and a small form: other scripts have words of one letter.
        single = sum(len(word) == 1 and word.lower() != word.upper() for word in words)
        if single > _ENOUGH and single > _FAR * ONE_LETTER * len(words):
            found.add(n)
    return found if 2 * len(found) > len(lines) else set()


def _marks(line: str) -> set[str]:
    return {one for one in set(line) if not one.isalnum() and unicodedata.category(one)[0] in "PS"}


def _stands_out(mark: str, count: int, lines: Sequence[str]) -> bool:
    if mark in _SENTENCE or (
        not mark.isascii() and unicodedata.category(mark)[0] == "P" and not _SIGNS.match(mark)
    ):
        return False
    written = mark in _WRITTEN
    if count < _ENOUGH and (
        written or count < len(lines) or (len(lines) == 1 and lines[0].count(mark) < _ENOUGH)
    ):
        return False
    return count > ((_MOST if written else _FEW) + _FAR * SHARES.get(mark, 0)) * len(lines)


def _within_words(lines: Sequence[str]) -> Iterator[str]:
    """Marks that stand within most words (word/NN), and such letters in front of most."""
    words = [word for line in lines for word in line.split()]
    if len(words) < 2 * _ENOUGH:
        return
    within = Counter(
        mark for word in words for mark in set(_WITHIN.findall(word))
        if mark.isascii() or unicodedata.category(mark)[0] == "S"
    )  # fmt: skip
    front = Counter(word[0] for word in words if _DECORATED.match(word))
    for mark, count in (within + front).items():
        if 2 * count > len(words):
            yield mark


def joints(lines: Sequence[str]) -> tuple[str, set[int]]:
    """What joins captions in far more of the lines than ordinary ones have it, and those lines.

    "" for none. A line that is left out is "".
    """
    names, have = [], set[int]()
    for name, phrases, pattern in _JOINTS:
        parts = {n: pattern.split(line.strip()) for n, line in enumerate(lines) if pattern.search(line)}
        if phrases:
            parts = {n: some for n, some in parts.items() if all(" " in one.strip() for one in some)}
        enough = len(parts) >= _ENOUGH and len(parts) > _FEW * len(lines)
        if len(lines) < _ENOUGH:  # of one line two halves are usual
            enough = len(parts) == len(lines) > 1 or any(len(some) >= _ENOUGH for some in parts.values())
        if enough:
            names.append(name)
            have |= parts.keys()
    return " and ".join(names), have


def shared_words(lines: Sequence[str]) -> Iterator[tuple[str, set[int]]]:
    """That nearly all lines have the same words, at least two, in front or at the end, and those lines.

    A name may stand before those in front. Nothing is said of words as ordinary captions of one subject
    or by one template share them: in front with an article or going on in a phrase (photo of), at the
    end with an article (on a white background).
    """
    rows = {line: line.split() for line in dict.fromkeys(lines)}
    for where, step in (("begin", 1), ("end", -1)):
        for first in range(_PLACES if step > 0 else 1):
            run: list[str] = []
            have = {*rows}
            while True:
                at = first + len(run)
                counts = Counter(words[::step][at] for line in have if len(words := rows[line]) > at + 1)
                word, _ = counts.most_common(1)[0] if counts else ("", 0)
                left = {
                    line for line in have
                    if len(words := rows[line]) > at + 1 and words[::step][at] == word
                }  # fmt: skip
                if len(left) < max(_LINES, _SHARED * len(rows)):
                    break
                run, have = [*run, word], left
            words = run[::step]
            while words and step > 0 and words[-1].lower() in _ARTICLES:
                words.pop()
            plain = all(word.strip(",.").isalpha() for word in words[:2])
            usual = any(word.lower() in _ARTICLES for word in (words[:1] if step > 0 else words))
            if step > 0 and words:
                usual |= words[-1].lower() in _GOES_ON
                usual |= first > 0 and not any(word[0].isupper() for word in words)
            if len(words) > 1 and plain and not usual:
                how = f"{where} with the same {len(words)} words"
                if first:
                    how = f"have the same {len(words)} words near their beginning"
                yield how, {n for n, line in enumerate(lines) if line in have}
                break
