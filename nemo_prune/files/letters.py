"""What letters of a prompt are not what they look like, and lines that a program broke at a width.

Prompts are scored as they stand, with all that nobody sees in them: it makes other tokens, and a
checkpoint that gets the prompt so gets it with them. So nothing is taken out, and all is said.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from html.entities import html5
from itertools import pairwise

# Joiners belong to emoji and to scripts whose letters join; between Latin letters nothing joins. Tags
# spell the flags of regions behind a black flag.
_UNSEEN = re.compile(
    "[\x01-\x08\x0e-\x19\x7f-\x84\x86-\x9f\xad\u034f\u115f\u1160\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u2064\u2066-\u206f\u3164\ufeff\ufff9-\ufffb]"
    "|(?<![^\0-\u024f])[\u200c\u200d]|(?<![\U0001f3f4\U000e0001-\U000e007f])[\U000e0001-\U000e007f]"
)
_LOST = re.compile("\ufffd")
_ENTITY = re.compile(r"&(#\d{2,7}|#[xX][\da-fA-F]{2,6}|[A-Za-z]\w{1,31});")
_FORMS = re.compile(
    "[\ufb00-\ufb06\U0001d400-\U0001d7ff]"
    "|^(?!.*[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]).*[\uff21-\uff3a\uff41-\uff5a]"
)
# Cyrillic and Greek letters that look as Latin ones do.
_ALIKE = (
    "\u0405\u0406\u0408\u0410\u0412\u0415\u041a\u041c-\u041e\u0420-\u0423\u0425\u0430\u0435\u043e\u0440"
    "\u0441\u0443\u0445\u0455\u0456\u0458\u04bb\u0501\u051b\u051d\u0391\u0392\u0395-\u0397\u0399\u039a"
    "\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf"
)
_LATIN = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
# In one word with Latin letters: Greek ones that look otherwise too may stand so (\u03bcm, TGF\u03b2).
_MIXED = re.compile(
    rf"[{_LATIN}][^\W\d_]{{0,40}}[{_ALIKE}\u0530-\u058f\u13a0-\u13ff]"
    rf"|[{_ALIKE}\u0530-\u058f\u13a0-\u13ff][^\W\d_]{{0,40}}[{_LATIN}]"
)
_ALONE = re.compile(rf"(?<![^\W\d_])[{_ALIKE}]+(?![^\W\d_])")
_FOREIGN = re.compile(rf"(?![{_ALIKE}])[\u0370-\u03ff\u0400-\u052f]")
_SHOWN = 4  # kinds of what is unseen
# With what a line goes on: a caption does not end so, nor begin with what follows.
_UNFINISHED = re.compile(
    r"(^|\s)(a|an|the|of|and|or|in|on|with|by|for|to|from|at|into|its|his|her|their|is|are|van|der|de|la"
    r"|le|von|und|mit|&|-|\u2013|\u2014)\s*$|\w-\s*$",
    re.I,
)
_FOLLOWS = re.compile(r"\s*(of|and|or|with|by|into|is|are)\s")
_ENOUGH = 3  # lines that a program broke
_PARTED = 1 / 8  # of the lines; of captions and titles one in 2000 ends or begins so
_EVEN = 0.75  # of the longest line's length: so fmt fills all lines but the last


def odd_letters(lines: Sequence[str]) -> Iterator[tuple[str, set[int]]]:
    """What is said of lines whose letters are others than they seem, and which those are."""
    unseen = {
        n: found
        for n, line in enumerate(lines)
        if (found := _UNSEEN.findall(line)) and _UNSEEN.sub("", line).strip()  # else it is blank
    }
    if unseen:
        kinds = list(dict.fromkeys(mark for found in unseen.values() for mark in found))
        names = ", ".join(map(_named, kinds[:_SHOWN])) + (", ..." if len(kinds) > _SHOWN else "")
        yield (
            f"hold what nobody sees ({names}), which makes another prompt: scored as they stand",
            set(unseen),
        )
    others = [(n, line) for n, line in enumerate(lines) if not line.isascii()]
    if mixed := {n for n, line in others if _is_mixed(line)}:
        yield (
            "hold letters of another script that look like Latin ones (Cyrillic, Greek), which makes "
            "another prompt: scored as they stand",
            mixed,
        )
    if forms := {n for n, line in others if _FORMS.search(line)}:
        yield (
            "hold letters in another form (ligatures, full-width, mathematical), which makes another "
            "prompt: scored as they stand",
            forms,
        )
    if lost := {n for n, line in others if _LOST.search(line)}:
        yield "hold U+FFFD, which stands where a letter was lost; save the list anew", lost
    if entities := {n for n, line in enumerate(lines) if "&" in line and _has_entity(line)}:
        yield (
            "hold HTML's names of letters (&amp;, &#39;), scored as they stand; undo them "
            "(html.unescape) unless the model was trained on them",
            entities,
        )


def folded(lines: Sequence[str]) -> int:
    """The width, in characters, at which a program broke texts into these lines; 0 where none did.

    A line that was broken had no room for the next one's first word. That alone is true of many a list
    with captions of one length, so such lines must also show by themselves that they go on, and others
    must not.
    """
    if len(lines) <= _ENOUGH:
        return 0
    lengths = sorted(len(line.rstrip()) for line in lines)
    width = lengths[math.ceil(0.99 * len(lengths)) - 1]  # a long word stands out
    capital = sum(line.lstrip()[:1].isupper() for line in lines)
    lower = sum(line.lstrip()[:1].islower() for line in lines)
    full = shown = other = 0
    for line, following in pairwise(lines):
        first = following.split(maxsplit=1)[0]
        broken = len(line.rstrip()) <= width < len(line.rstrip()) + 1 + len(first)
        goes_on = (
            _UNFINISHED.search(line) is not None
            or line.rstrip().endswith(",")
            or (lower < capital and first[0].islower())
            or line.rstrip("\r\n") != line.rstrip()
        )
        full += broken
        shown += broken and goes_on
        other += goes_on and not broken
    return width if full >= _ENOUGH and shown >= max(2, full / 4) and other <= shown / 3 else 0


def parted(lines: Sequence[str]) -> int:
    """After how many lines a phrase goes on in the next, as words tell it; 0 where only few do.

    So it is wherever a program broke all captions as one text: at a width (fmt), or after so many words.
    Where all lines but the last are nearly as long, or have as many words, one is enough. Lines of which
    most begin alike are captions.
    """
    if len(lines) < 2:
        return 0
    count = sum(
        _UNFINISHED.search(line) is not None or _FOLLOWS.match(following) is not None
        for line, following in pairwise(lines)
    )
    words = [line.split() for line in lines]
    sizes = [len(line) for line in lines[:-1]]
    even = len({*map(len, words[:-1])}) == 1 or min(sizes) >= _EVEN * max(sizes)
    alike = Counter(row[0] for row in words).most_common(1)[0][1]
    return count if 2 * alike <= len(lines) and (even or count >= _PARTED * len(lines)) else 0


def _named(mark: str) -> str:
    name = unicodedata.name(mark, "a control character").lower()
    return f"U+{ord(mark):04X} {name}"


def _is_mixed(line: str) -> bool:
    """Whether letters that look Latin and are not stand in Latin words, or alone among such."""
    if _MIXED.search(line):
        return True
    if not re.search(rf"[{_LATIN}]", line) or _FOREIGN.search(line):
        return False
    return any(word[0].islower() for word in _ALONE.findall(line))


def _has_entity(line: str) -> bool:
    return any(name[0] == "#" or f"{name};" in html5 for name in _ENTITY.findall(line))
