"""Other words for a caption, made from it by rule: no model, no network, the same every time.

Each variation says how it was made in words that do not repeat the caption, so that a report which
keeps prompts to itself can still name it.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

AS_IT_STANDS = "as it stands"
PREFIXES = (
    "a photo of", "a picture of", "an image of", "a painting of", "a close-up of", "stock photo:",
    "a drawing of", "a poster of", "the famous", "my", "no",
)  # fmt: skip
SUFFIXES = (
    "high quality, detailed", "4k wallpaper", "on canvas", "by a famous artist", "black and white",
    "for sale", "in the style of a cartoon",
)  # fmt: skip
_PADDING = (8, 24, 60)  # commas: tokens of their own, which take the places of the padding
_NUMBERS = 100_000  # Somepalli et al. (arXiv 2305.20086) insert a random number below it


@dataclass(frozen=True)
class Variation:
    """A text to try instead of a caption.

    kind: what was done to it, one of a dozen. how: what exactly, without the caption's words.
    """

    kind: str
    how: str
    text: str


def variations(caption: str, others: Sequence[str], count: int, seed: int) -> list[Variation]:
    """The caption as it stands, then at most `count` variations of it, no two of the same text.

    Of each kind one after the other, so that few of them are still of every kind.

    Args:
        caption: the caption.
        others: the captions of its list, to be mixed in by their numbers; itself is passed over.
        count: variations at most.
        seed: of what is drawn by lot.
    """
    lot = random.Random(f"{seed} {caption}")
    kinds = [
        _first_words(caption), _case(caption), _prefixes(caption), _dropped(caption, lot),
        _punctuation(caption), _shuffled(caption, lot), _mixed(caption, others, lot),
        _doubled(caption, lot), _weights(caption), _suffixes(caption), _padded(caption),
        _numbers(caption, lot),
    ]  # fmt: skip
    found = {caption: Variation(AS_IT_STANDS, AS_IT_STANDS, caption)}
    for row in zip_longest(*kinds):
        for one in row:
            if one is not None and one.text.strip() and len(found) <= count:
                found.setdefault(one.text, one)
    return list(found.values())


def _first_words(caption: str) -> Iterator[Variation]:
    words = caption.split()
    half = (len(words) + 1) // 2
    order = [half, *sorted({*range(1, len(words))} - {half}, reverse=True)]
    for count in order:
        if count < len(words):
            how = f"its first {count} words" if count > 1 else "its first word"
            yield Variation("first words", how, " ".join(words[:count]))


def _case(caption: str) -> Iterator[Variation]:
    for name, text in (
        ("lower", caption.lower()), ("upper", caption.upper()), ("title", caption.title()),
    ):  # fmt: skip
        yield Variation("case", f"in {name} case", text)


def _prefixes(caption: str) -> Iterator[Variation]:
    for words in PREFIXES:
        yield Variation("prefix", f'"{words}" before it', f"{words} {caption}")


def _suffixes(caption: str) -> Iterator[Variation]:
    for words in SUFFIXES:
        yield Variation("suffix", f'"{words}" behind it', f"{caption}, {words}")


def _dropped(caption: str, lot: random.Random) -> Iterator[Variation]:
    words = caption.split()
    for place in lot.sample(range(len(words)), len(words)):
        text = " ".join(words[:place] + words[place + 1 :])
        yield Variation("dropped word", f"without word {place + 1}", text)


def _doubled(caption: str, lot: random.Random) -> Iterator[Variation]:
    words = caption.split()
    for place in lot.sample(range(len(words)), len(words)):
        text = " ".join(words[: place + 1] + words[place:])
        yield Variation("doubled word", f"word {place + 1} twice", text)
    yield Variation("doubled word", "all of it twice", f"{caption} {caption}")


def _punctuation(caption: str) -> Iterator[Variation]:
    yield Variation("punctuation", "without any", " ".join(re.sub(r"[^\w\s]", " ", caption).split()))
    yield Variation("punctuation", "commas between all words", ", ".join(caption.split()))
    for mark, name in ((".", "a full stop"), ("!", "an exclamation mark"), ("?", "a question mark")):
        yield Variation("punctuation", f"{name} behind it", caption.rstrip(" .!?") + mark)
    yield Variation("punctuation", "in quotation marks", f'"{caption}"')
    yield Variation("punctuation", "hyphens for spaces", "-".join(caption.split()))


def _shuffled(caption: str, lot: random.Random) -> Iterator[Variation]:
    words = caption.split()
    yield Variation("shuffled", "words backwards", " ".join(reversed(words)))
    half = len(words) // 2
    yield Variation("shuffled", "second half first", " ".join(words[half:] + words[:half]))
    for number in range(1, 11):
        text = " ".join(lot.sample(words, len(words)))
        yield Variation("shuffled", f"words in random order {number}", text)


def _mixed(caption: str, others: Sequence[str], lot: random.Random) -> Iterator[Variation]:
    known = [(place, other) for place, other in enumerate(others) if other != caption]
    half = (len(caption.split()) + 1) // 2
    for place, other in lot.sample(known, len(known)):
        name = f"prompt {place} of the list"
        yield Variation("mixed in", f"{name} behind it", f"{caption}, {other}")
        yield Variation("mixed in", f"{name} before it", f"{other}, {caption}")
        words = caption.split()[:half] + other.split()[len(other.split()) // 2 :]
        yield Variation("mixed in", f"its first half, the second of {name}", " ".join(words))


def _weights(caption: str) -> Iterator[Variation]:
    """As A1111 writes weights; who pastes such a prompt elsewhere gives the model these very letters."""
    for weight in ("1.3", "0.7", "1.5"):
        yield Variation("weights", f"written as (...:{weight})", f"({caption}:{weight})")
    yield Variation("weights", "written as ((...))", f"(({caption}))")
    yield Variation("weights", "written as [...]", f"[{caption}]")


def _padded(caption: str) -> Iterator[Variation]:
    for commas in _PADDING:
        yield Variation("padding", f"{commas} commas behind it", caption + " ," * commas)
        yield Variation("padding", f"{commas} commas before it", ", " * commas + caption)


def _numbers(caption: str, lot: random.Random) -> Iterator[Variation]:
    words = caption.split()
    for number in range(1, 9):
        place = lot.randint(0, len(words))
        text = " ".join([*words[:place], str(lot.randrange(_NUMBERS)), *words[place:]])
        yield Variation("random number", f"a random number in it, {number}", text)
