"""Prompts and their labels, from the lists that `nemo_prune.files.source` reads."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from nemo_prune.errors import PromptFileError, option
from nemo_prune.files.columns import VISIBLE, cells_of, columns_of, instead, says, unread_columns
from nemo_prune.files.content import odd_cells
from nemo_prune.files.lists import LOOKED_THROUGH, STDIN, Format, Listing, Record, named_format
from nemo_prune.files.names import COLUMNS, LABELS, asked_name, is_name, shown_keys
from nemo_prune.files.nested import lacking, within
from nemo_prune.files.source import read_list

_MEMORIZED = frozenset(
    {"1", "true", "yes", "memorized", "verbatim", "vm", "template", "tm", "mv", "rv", "tv"}
)
_ORDINARY = frozenset({"0", "false", "no", "ordinary", "not memorized", "none", "n"})
_CERTAIN = ("memorized", "label")  # columns of these names can only be labels
_BREAK = re.compile("[\n\v\f\x1c-\x1e\x85\u2028\u2029]")  # what some programs end a line with
_KINDS = {
    "verbatim": "verbatim", "vm": "verbatim", "mv": "verbatim", "rv": "verbatim",
    "template": "template", "tm": "template", "tv": "template",
}  # fmt: skip
_SAYING = re.compile(  # in the names of columns of labels
    r"memori[sz]|label|replica|verbatim|overfit|regurgitat|(?<![^\W_])(mem|vm)(?![^\W_])"
)
_REPEATED = 100  # times one prompt may stand in a list without a note


@dataclass(frozen=True)
class PromptList:
    """The distinct prompts of one or several lists, in their order.

    Attributes:
        texts: the prompts, without white space around them.
        merged: repetitions left out. blank: empty lines, cells and nulls left out.
        places: of each prompt, the file and the line where it stands first.
        labels: whether each is memorized, where that was asked for and stands in the lists.
        kinds: of each "verbatim" or "template" memorization, where a column of labels says so of any.
        notes: what its reader should know, each one line.
    """

    texts: tuple[str, ...]
    merged: int
    blank: int = 0
    places: tuple[tuple[str, int], ...] = ()
    labels: tuple[bool, ...] | None = None
    notes: tuple[str, ...] = ()
    kinds: tuple[str | None, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many prompts were read, and of these and the blank ones left out, as plain JSON."""
        read = len(self.texts) + self.merged
        return {"prompts_read": read, "merged": self.merged, "blank": self.blank}

    def locate(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """A job's result as plain JSON, with these counts, and where each of its prompts stands."""
        rows = [
            {**row, "file": file, "line": line}
            for row, (file, line) in zip(result["prompts"], self.places, strict=True)
        ]
        return {**result, **self.counts, "prompts": rows}


def counted(distinct: int, merged: int, blank: int) -> str:
    """How many prompts were read, in words."""
    return (
        f"{distinct} prompts: {distinct + merged} read, {merged} repeated prompts merged, "
        f"{blank} blank left out"
    )


def read_prompts(
    paths: Path | str | Sequence[Path | str],
    format: Format | None = None,
    column: str | None = None,
    labels: bool = False,
) -> PromptList:
    """The prompts of lists: lines of text, CSV, TSV, JSON, JSON lines or Parquet.

    A table needs a column named caption, prompt or text, in any case. A JSON list holds strings, or
    objects with such a key. Lines end at `\\n` or `\\r\\n` and nowhere else.

    Args:
        paths: one or several; `-` is standard input.
        format: of all of them; None: by name and content, which must agree.
        column: the prompts' column or key, if it is named otherwise.
        labels: also take a column memorized, label, type or kind. 1, true, yes, memorized, verbatim
            (VM, MV, RV) and template (TM, TV) mean that a prompt is memorized; 0, false, no, ordinary
            and none (N) that it is not.

    Raises:
        PromptFileError: one line, for a list without usable prompts, a table whose rows and header
            differ in length, another word or none under memorized or label, or a prompt that is
            labelled both ways.
    """
    merge = _Merge()
    for path in map(Path, [paths] if isinstance(paths, Path | str) else paths):
        merge.add(read_list(path, format, column), column, labels)
    return merge.result(labels)


class _Merge:
    """Prompts of several lists, each once."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[str, int]] = {}
        self.times: dict[str, int] = {}  # of those that stand more than once
        self.labels: dict[str, bool] = {}
        self.kinds: dict[str, str] = {}
        self.unlabelled = False
        self.blank = 0
        self.notes: list[str] = []

    def add(self, listing: Listing, column: str | None, labels: bool) -> None:
        path, name = listing.path, "stdin" if listing.path == STDIN else str(listing.path)
        wanted = asked_name(column)
        key = prompt_key(listing, wanted)
        self.notes += unread_columns(listing, wanted, key)
        self.notes += odd_cells(listing, key)
        label = label_column(listing, self.notes) if labels else None
        self.unlabelled |= label is None
        self.blank += listing.blank
        self.notes += listing.notes
        spanning: list[int] = []
        empty, asked = True, wanted is not None and key is not None
        for line, record in listing.records:
            text = text_of(record, key, path, line, asked)
            if not text:
                self.blank += 1
                continue
            empty = False
            if holds_break(text):
                spanning.append(line)
            if text in self.places:
                self.times[text] = self.times.get(text, 1) + 1
            self.places.setdefault(text, (name, line))
            if kind := next(filter(None, (_KINDS.get(_word(record, one)) for one in LABELS)), None):
                self.kinds.setdefault(text, kind)
            if label is not None:
                memorized = label_of(record, label, path, line)
                if self.labels.setdefault(text, memorized) != memorized:
                    before, at = self.places[text]
                    raise PromptFileError(
                        f"{path}: line {line} labels a prompt otherwise than line {at} of {before}"
                    )
        if empty:
            raise no_prompts(path, listing.format)
        if spanning:
            self.notes.append(spanning_note(path, len(spanning), spanning[0]))

    def result(self, labels: bool) -> PromptList:
        if self.labels and self.unlabelled:
            self.notes.append("labels are not used: not every list has them")
        text, most = max(self.times.items(), key=lambda item: item[1], default=("", 0))
        if most >= _REPEATED:
            name, line = self.places[text]
            self.notes.append(f"{name}: the prompt of line {line} stands there {most} times")
        labelled = labels and not self.unlabelled
        if labelled and len(kinds := {*self.labels.values()}) == 1:
            every = "memorized (1)" if True in kinds else "ordinary (0)"
            self.notes.append(f"all labels are {every}, so there is no AUROC, TPR or accuracy to tell")
        return PromptList(
            texts=tuple(self.places),
            merged=sum(self.times.values()) - len(self.times),
            blank=self.blank,
            places=tuple(self.places.values()),
            labels=tuple(self.labels[text] for text in self.places) if labelled else None,
            notes=tuple(self.notes),
            kinds=tuple(map(self.kinds.get, self.places)) if self.kinds else (),
        )


def check_count(prompts: PromptList, expected: int | None) -> None:
    """Raise PromptFileError if another number of distinct prompts was read than expected."""
    if expected is not None and len(prompts.texts) != expected:
        raise PromptFileError(
            f"{', '.join(dict.fromkeys(name for name, _ in prompts.places))}: "
            f"{option('expect_prompts')} {expected}, and {len(prompts.texts)} distinct prompts were "
            f"read ({prompts.merged} repetitions merged, {prompts.blank} blank)"
        )


@cache
def bundled_captions() -> tuple[str, ...]:
    """The 2,000 ordinary captions that come with the package, varied from the first on."""
    return read_prompts(Path(str(files("nemo_prune") / "data" / "ordinary.txt"))).texts


def apart_from(captions: Iterable[str], prompts: Iterable[str]) -> list[str]:
    """Those captions that are none of the prompts, in their order."""
    known = set(prompts)
    return [caption for caption in captions if caption not in known]


def prompts_hash(prompts: Sequence[str]) -> str:
    """SHA-256 of the prompts, in order, as a JSON list; 64 hexadecimal digits.

    A short list of guessable prompts can be guessed from it, as from any hash.
    """
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def prompt_id(prompt: str) -> str:
    """A name for one prompt that does not depend on its list: 12 digits of its SHA-256."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]


def told_of(
    index: int, texts: Sequence[str], places: Sequence[tuple[str, int]], show: bool
) -> dict[str, Any]:
    """How results name a prompt beside its number: where it stands, if that is known, and its text."""
    found: dict[str, Any] = {}
    if places:
        found["file"], found["line"] = places[index]
    if show:
        found["text"] = texts[index]
    return found


# ----------------------------------------------------------------------------------------- columns


def prompt_key(listing: Listing, wanted: str | None) -> str | None:
    """Under what the prompts of a list stand in its records; None: under the usual keys, or alone."""
    if listing.columns is not None:
        return _prompt_column(listing, wanted)
    alone = bool(listing.records) and isinstance(listing.records[0][1], str)
    if wanted is not None and alone and not listing.named:
        raise PromptFileError(
            f"{listing.path}: is text without columns, so {option('prompt_column')} names none"
        )
    if listing.named and all(wanted not in cells_of(record) for _, record in listing.records):
        return None  # it named the list; its objects have the usual keys
    return wanted


def _prompt_column(listing: Listing, wanted: str | None) -> str:
    names = listing.columns or ()
    for column in (wanted,) if wanted else COLUMNS:
        if column in names:
            return column
    # Where the first line is no header its cells are captions, which are not quoted.
    shown = shown_keys(names) if all(map(is_name, names)) else ""
    which = f" (its columns are {shown})" if shown else " in its first line"
    if wanted:
        raise PromptFileError(
            f"{listing.path}: has no column of the name {option('prompt_column')} gives{which}; check it"
        )
    raise PromptFileError(
        f"{listing.path}: has no column named {', '.join(COLUMNS)}{which}; name the prompts' column so, "
        f"or give {option('prompt_column')}"
    )


def holds_break(text: str) -> bool:
    """Whether a prompt holds what some program ends lines with, so that it may be several."""
    return _BREAK.search(text) is not None


def no_prompts(path: Path, format: Format) -> PromptFileError:
    """That a list is empty, or all that could be prompts in it is."""
    cure = "write one per line" if format == "txt" else "its column or list of them is empty; fill it"
    return PromptFileError(f"{path}: holds no prompts; {cure}")


def spanning_note(path: Path, count: int, first: int) -> str:
    """A note on prompts of which `holds_break` is true."""
    return (
        f"{path}: {count} prompts hold line breaks, the first at line {first}: several captions may "
        f"stand in one, or a quote left open joins lines; only LF or CR LF ends a line (not U+2028 and "
        f"the like)"
    )


def text_of(record: Record, key: str | None, path: Path, line: int, asked: bool = False) -> str:
    """The prompt of a record without white space around it; "" for a null and what nobody sees.

    key: under which it stands; None: under a usual one. asked: whether the list's reader named it; if
    not, PromptFileError where nothing stands there and a text under another usual key.
    """
    text: object = record
    if not isinstance(record, str):
        names: Iterable[str] = COLUMNS if key is None else (key,)
        read = next((name for name in names if name in record), "")
        text = record[read] if read else ...
        if not asked and not says(text) and (other := instead(record, read)):
            raise PromptFileError(
                f"{path}: line {line} has nothing under {read}, and a text under {other}: bring the "
                f"prompts under one name, or give {option('prompt_column')} {read}, which leaves such "
                f"lines out"
            )
    if text is None:
        return ""
    if not isinstance(text, str):
        # A column that was asked for is not quoted.
        asked = key is not None and key not in COLUMNS
        wanted = f"the column of {option('prompt_column')}" if asked else key or ", ".join(COLUMNS)
        cure = "; mend it"
        if text is ... and not isinstance(record, str):
            cure = lacking(record)
        elif type(text) in _WORDS:
            where = within(read, text, named_format(path) == "parquet")
            cure = f", but {_WORDS[type(text)]}{where or '; mend it'}"
        raise PromptFileError(f"{path}: line {line} has no string under {wanted}{cure}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptFileError(f"{path}: line {line} is not Unicode; mend it") from None
    return text.strip() if VISIBLE.search(text) else ""


_WORDS = {bytes: "bytes", list: "a list", dict: "an object", bool: "a truth value", int: "a number"}
_WORDS |= {float: "a number"}


def label_column(listing: Listing, notes: list[str]) -> str | None:
    """The column of labels, if there is one; what looks like one and is not used gets a note."""
    columns = columns_of(listing)
    for name in LABELS:
        if name not in columns:
            continue
        if name in _CERTAIN:
            others = [other for other in LABELS[LABELS.index(name) + 1 :] if other in columns]
            notes.append(_labels_of(listing, name, others))
            return name
        other = [(line, record) for line, record in listing.records if _word(record, name) not in _KNOWN]
        if not other:
            notes.append(_labels_of(listing, name))
            return name
        line, record = other[0]
        what = f"has another word than {_TAKEN}" if _word(record, name) else "is blank there"
        notes.append(f"{listing.path}: the column {name} is not used as labels: line {line} {what}")
    for place, name in enumerate(columns, start=1):
        words = {_word(record, name) for _, record in listing.records[:LOOKED_THROUGH]}
        said = words - _DIGITS or _SAYING.search(name.lower())
        if name not in (*LABELS, *COLUMNS) and words <= _KNOWN and said:
            # A table without a header has captions there.
            key = shown_keys([name]) if listing.columns is None or all(map(is_name, columns)) else ""
            kind = "key" if listing.columns is None else "column"
            what = f"the {kind} {key}" if key else f"column {place}"
            notes.append(f"{listing.path}: {what} looks like labels and is not used; name it memorized")
    return None


def _labels_of(listing: Listing, name: str, others: Sequence[str] = ()) -> str:
    beside = f", not of {' and '.join(others)}" if others else ""
    words = {_word(record, name) for _, record in listing.records}
    digits = "; 1 is taken for memorized" if words <= _DIGITS and name != "memorized" else ""
    return f"{listing.path}: the labels are those of the column {name}{beside}{digits}"


_KNOWN = _MEMORIZED | _ORDINARY
_TAKEN = "memorized, verbatim (VM), template (TM), 1, 0, ordinary or none (N)"
_DIGITS = frozenset({"0", "1"})


def _word(record: Record, column: str) -> str:
    value = cells_of(record).get(column)
    word = "" if value is None else str(value).strip().lower()
    # Parquet and JSON may hold 1.0, and pandas writes it.
    return word.removesuffix(".0") if word in ("0.0", "1.0") else word


def label_of(record: Record, column: str, path: Path, line: int) -> bool:
    word = _word(record, column)
    if word not in _KNOWN:
        # Not quoted: of a row whose columns slipped, it may be a prompt.
        what = "another word" if word else "nothing"
        raise PromptFileError(
            f"{path}: line {line} has {what} under {column}; write 1 (memorized) or 0 (taken are "
            f"{_TAKEN}), or rename the column if it says something else"
        )
    return word in _MEMORIZED
