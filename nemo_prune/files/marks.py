"""Marks that stand in far more lines of a list than captions have them, whatever program wrote them.

No list of programs' marks ends, so they are known by how often they stand: `SHARES` says how often in
ordinary captions, and what stands in far more lines is named. Letters of any script, and what sentences
are written with in it, are no marks.
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
_SIGNS = re.compile("[\u2016\u2017\u2020-\u2025\u2027\u2030-\u2038\u203b-\u205e\u2022]")
_ENOUGH = 3  # lines, or times in a line alone
_SHOWN = 8
# Marks that no caption has, by which one line is enough.
_NEVER = re.compile(r"[<>\[\]{}=_\\`~^]|\*\*|::|\|\||\"\s?(?=:)|%(?=[0-9A-Fa-f]{2})|(?<=\s):(?=\d)")
_WITHIN = re.compile(r"\w([^\w\s'\u2019-])(?=\w)")
_ENTITY = re.compile(r"&#?\w+;")
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
