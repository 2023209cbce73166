"""Names of columns and keys: the usual ones, and what is a name, a text, or neither."""

import re
from collections.abc import Iterable, Sequence

COLUMNS = ("caption", "prompt", "text")
LABELS = ("memorized", "label", "type", "kind")
BESIDE = ("id", "n", "no", "number", "index", "score", "url", "image", "file", "filename", "seed")
HEADERS = (*COLUMNS, *LABELS, *BESIDE)
LISTS = ("prompts", "captions")
_NAME = re.compile(r"[A-Za-z_$][\w$.-]{0,39}\??")  # of a key, that is no caption
_SHOWN = 6  # keys
_TEXT = 3  # words
_WORD = re.compile(r"[^\W\d_]{2,}")
# Scripts without blanks between words.
_JOINED = re.compile("[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_PATH = re.compile(r"\s*([{\[]|\w+://|\S*[\\/]\S*\s*$)|.*\.[A-Za-z]\w{1,4}\s*$", re.S)


def names_of(cells: Sequence[str]) -> list[str]:
    return [cell.strip().strip('"').strip().lower() for cell in cells]


def asked_name(column: str | None) -> str | None:
    """The name of a column that was asked for, in lower case as `names_of` has them."""
    return None if column is None else column.strip().lower()


def names_header(line: str) -> bool:
    """Whether a line of text, or a text of JSON lines, is a column's name, or several (`id caption`)."""
    names = names_of(line.split())
    return any(name in COLUMNS for name in names) and {*names} <= {*HEADERS}


def is_name(key: str) -> bool:
    """Whether a key or a column's name looks like one, so that it is no caption and may be shown."""
    return _NAME.fullmatch(key) is not None


def shown_keys(keys: Iterable[str]) -> str:
    """Some keys in words; "" for none. Only names are shown: elsewhere keys are the captions."""
    names = list(filter(is_name, keys))
    return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)


def is_text(value: object) -> bool:
    """Whether a cell looks like a text: three words or more, and no path, address or JSON."""
    if not isinstance(value, str) or _PATH.match(value):
        return False
    if len(_JOINED.findall(value)) >= 2 * _TEXT:
        return True
    words = value.split()
    said = sum(_WORD.search(word) is not None for word in words)
    return said >= _TEXT and said > len(words) / 2  # a date holds more numbers
