"""Prompts and their labels, from the lists that `nemo_prune.files.lists` reads."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from nemo_prune.errors import PromptFileError, option
from nemo_prune.files.lists import BARE, COLUMNS, LABELS, STDIN, Format, Listing, Record, read_list

_MEMORIZED = frozenset(
    {"1", "true", "yes", "memorized", "verbatim", "vm", "template", "tm", "mv", "rv", "tv"}
)
_ORDINARY = frozenset({"0", "false", "no", "ordinary", "not memorized", "none", "n"})
_CERTAIN = ("memorized", "label")  # columns of these names can only be labels
_REPEATED = 100  # times one prompt may stand in a list without a note


@dataclass(frozen=True)
class PromptList:
    """The distinct prompts of one or several lists, in their order.

    Attributes:
        texts: the prompts, without white space around them.
        merged: repetitions left out. blank: empty lines, cells and nulls left out.
        places: of each prompt, the file and the line where it stands first.
        labels: whether each is memorized, where that was asked for and stands in the lists.
        notes: what its reader should know, each one line.
    """

    texts: tuple[str, ...]
    merged: int
    blank: int = 0
    places: tuple[tuple[str, int], ...] = ()
    labels: tuple[bool, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many prompts were read, and of these and the blank ones left out, as plain JSON."""
        read = len(self.texts) + self.merged
        return {"prompts_read": read, "merged": self.merged, "blank": self.blank}


def read_prompts(
    paths: Path | Sequence[Path],
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
    paths = (paths,) if isinstance(paths, Path) else tuple(paths)
    found: dict[str, tuple[str, int]] = {}
    labelled: dict[str, bool] = {}
    repeated: dict[str, int] = {}
    notes: list[str] = []
    blank, every_labelled = 0, labels
    for path in paths:
        name = "stdin" if path == STDIN else str(path)
        listing = read_list(path, format, column)
        blank += listing.blank
        notes += listing.notes
        key = None if column is None else column.strip().lower()
        if listing.columns is not None and listing.records:
            key = _prompt_column(listing, key)
        label = _label_column(listing, notes) if labels else None
        every_labelled = every_labelled and label is not None
        spanning: list[int] = []
        empty = True
        for line, record in listing.records:
            text = _text_of(record, key, path, line)
            if text is None or not (text := text.strip()):
                blank += 1
                continue
            empty = False
            if "\n" in text:
                spanning.append(line)
            if text in found:
                repeated[text] = repeated.get(text, 1) + 1
            else:
                found[text] = (name, line)
            if label is not None:
                memorized = _label_of(record, label, path, line)
                if labelled.setdefault(text, memorized) != memorized:
                    raise PromptFileError(
                        f"{path}: line {line} labels a prompt otherwise than a line before"
                    )
        if empty:
            if listing.columns is not None:
                _prompt_column(listing, key)
            raise PromptFileError(f"{path}: holds no prompts; write one per line")
        if spanning:
            notes.append(
                f"{path}: {len(spanning)} prompts hold line breaks, the first at line {spanning[0]}; a "
                f"quote left open joins lines"
            )
    if labels and labelled and not every_labelled:
        notes.append("labels are not used: not every list has them")
    if repeated and (most := max(repeated.values())) >= _REPEATED:
        text = next(text for text, times in repeated.items() if times == most)
        notes.append(f"{found[text][0]}: the prompt of line {found[text][1]} stands there {most} times")
    return PromptList(
        texts=tuple(found),
        merged=sum(repeated.values()) - len(repeated),
        blank=blank,
        places=tuple(found.values()),
        labels=tuple(labelled[text] for text in found) if every_labelled else None,
        notes=tuple(notes),
    )


def check_count(prompts: PromptList, expected: int | None) -> None:
    """Raise PromptFileError if another number of distinct prompts was read than expected."""
    if expected is not None and len(prompts.texts) != expected:
        raise PromptFileError(
            f"{', '.join(dict.fromkeys(name for name, _ in prompts.places))}: "
            f"{option('expect_prompts')} {expected}, and {len(prompts.texts)} distinct prompts were "
            f"read ({prompts.merged} repetitions merged, {prompts.blank} blank)"
        )


def bundled_captions() -> tuple[str, ...]:
    """The 2,000 ordinary captions that come with the package, varied from the first on."""
    return read_prompts(Path(str(files("nemo_prune") / "data" / "ordinary.txt"))).texts


def prompts_hash(prompts: Sequence[str]) -> str:
    """SHA-256 of the prompts, in order, as a JSON list; 64 hexadecimal digits.

    A short list of guessable prompts can be guessed from it, as from any hash.
    """
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def prompt_id(prompt: str) -> str:
    """A name for one prompt that does not depend on its list: 12 digits of its SHA-256."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]


# ----------------------------------------------------------------------------------------- columns


def _prompt_column(listing: Listing, wanted: str | None) -> str:
    names = listing.columns or ()
    for column in (wanted,) if wanted else COLUMNS:
        if column in names:
            return column
    if wanted:
        raise PromptFileError(
            f"{listing.path}: has no column of the name {option('prompt_column')} gives"
        )
    raise PromptFileError(
        f"{listing.path}: has no column named {', '.join(COLUMNS)}; name the prompts' column so, or "
        f"give {option('prompt_column')}"
    )


def _text_of(record: Record, key: str | None, path: Path, line: int) -> str | None:
    """The prompt of a record; None for a null."""
    if BARE in record and (key is None or key not in record):
        text = record[BARE]
    else:
        names: Iterable[str] = COLUMNS if key is None else (key,)
        text = next((record[name] for name in names if name in record), ...)
    if text is None:
        return None
    if not isinstance(text, str):
        wanted = ", ".join(COLUMNS) if key is None else f"the column of {option('prompt_column')}"
        raise PromptFileError(f"{path}: line {line} has no string under {wanted}; mend it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptFileError(f"{path}: line {line} is not Unicode; mend it") from None
    return text


def _label_column(listing: Listing, notes: list[str]) -> str | None:
    """The column of labels, if there is one; what looks like one and is not used gets a note."""
    columns = listing.columns
    if columns is None:
        columns = tuple(dict.fromkeys(name for _, record in listing.records for name in record))
    for name in LABELS:
        if name not in columns:
            continue
        if name in _CERTAIN:
            return name
        other = [line for line, record in listing.records if _word(record, name) not in _KNOWN]
        if not other:
            return name
        notes.append(
            f"{listing.path}: the column {name} is not used as labels: line {other[0]} has another word "
            f"than memorized, verbatim (VM), template (TM), 1, 0, ordinary or none (N)"
        )
    for place, name in enumerate(columns, start=1):
        words = {_word(record, name) for _, record in listing.records[:1000]}
        if name not in (*LABELS, *COLUMNS, BARE) and words <= _KNOWN and words - _DIGITS:
            notes.append(
                f"{listing.path}: column {place} looks like labels and is not used; name it memorized"
            )
    return None


_KNOWN = _MEMORIZED | _ORDINARY
_DIGITS = frozenset({"0", "1"})


def _word(record: Mapping[str, object], column: str) -> str:
    value = record.get(column)
    # A number as its whole part: Parquet and JSON may hold 1.0.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip().lower()


def _label_of(record: Record, column: str, path: Path, line: int) -> bool:
    word = _word(record, column)
    if word not in _KNOWN:
        # Not quoted: of a row whose columns slipped, it may be a prompt.
        what = "another word" if word else "nothing"
        raise PromptFileError(f"{path}: line {line} has {what} under {column}; write 1 (memorized) or 0")
    return word in _MEMORIZED
