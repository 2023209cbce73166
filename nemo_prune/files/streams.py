"""Prompts of lists of any length, one at a time and in constant memory, with where each stands.

    stream = PromptStream([Path("captions.csv.gz"), Path("more.parquet")])
    for block in stream.blocks(256):
        ...  # block.prompts; block.position, from where another stream can go on

The checks are those of `nemo_prune.files.lists`: a list's name and its first MiB must agree before
anything is read further, and a fault in a line is raised when all prompts before it were given. A JSON
document (not JSON lines) is one piece, so it is read whole, as is Parquet through a pipe.
"""

import contextlib
import hashlib
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy

from nemo_prune.errors import PromptFileError
from nemo_prune.files.columns import unread_columns
from nemo_prune.files.content import odd_cells
from nemo_prune.files.lists import FORMATS, LOOKED_THROUGH, STDIN, Format, Listing, is_packed
from nemo_prune.files.names import asked_name
from nemo_prune.files.prompts import (
    holds_break,
    label_column,
    label_of,
    no_prompts,
    prompt_key,
    spanning_note,
    text_of,
)
from nemo_prune.files.source import Source, opened, size_of

LONG = 16 * 2**20
"""Bytes of text from which on a list is long: some 200,000 captions."""
_RATIO = 6  # of compressed files and Parquet, as far as that can be known from outside
_TAIL = 2**16  # bytes before a position, by which a list is known again


class Placed(NamedTuple):
    """A prompt, where it stands, and whether its list calls it memorized."""

    text: str
    file: str
    line: int
    label: bool | None = None


@dataclass
class Position:
    """How far lists were read.

    list: the number of the list from 0. offset: in it, bytes of text, rows of Parquet or records of
    JSON. line: the line reached.
    read, merged, blank: prompts so far, those of them that were repetitions, and blank lines.
    spanning: prompts with line breaks in this list, and spanned: the line of the first.
    """

    list: int = 0
    offset: int = 0
    line: int = 0
    read: int = 0
    merged: int = 0
    blank: int = 0
    spanning: int = 0
    spanned: int = 0
    empty: bool = True


@dataclass(frozen=True)
class Block:
    """Prompts one after another, the keys by which `Seen` knows them, and the position after them."""

    prompts: list[Placed]
    keys: list[int]
    position: Position
    done_bytes: int


class Seen:
    """Hashes of prompts, 63 bits each, with their labels; 128 MiB, and at most `most` of them.

    Two of ten million prompts share a hash with a probability of 5 in a million. Prompts beyond `most`
    are not remembered: repetitions of them are scored again.
    """

    _SLOTS = 2**24

    def __init__(self, most: int = _SLOTS * 3 // 4) -> None:
        self.most, self.count = most, 0
        # Zeros that take no memory until they are written over.
        self._slots = numpy.zeros(self._SLOTS, dtype=numpy.uint64).data

    @staticmethod
    def key(text: str, label: bool | None) -> int:
        """What stands for a prompt; the lowest bit is its label."""
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "little") & ~1 or 2) | bool(label)

    def add(self, key: int) -> int | None:
        """Remember a key; one of the same prompt that was there before, if there was one."""
        slots, mask = self._slots, self._SLOTS - 1
        place = (key >> 1) & mask
        while found := slots[place]:
            if (found ^ key) < 2:
                return int(found)
            place = (place + 1) & mask
        if self.count < self.most:
            slots[place] = key
            self.count += 1
        return None


def is_long(paths: Sequence[Path]) -> bool:
    """Whether the files at `paths` likely hold more text together than `LONG`; pipes do not count."""
    size = 0
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            status = path.stat()
            if path != STDIN and stat.S_ISREG(status.st_mode):
                size += status.st_size * (_RATIO if is_packed(path) else 1)
    return size > LONG


class PromptStream:
    """The distinct prompts of lists, in their order.

    Args:
        paths, format, column, labels: as `read_prompts` takes them. A column type or kind holds labels
            if the first thousand records say so; another word further on is a fault.
        at: from where on to read; `keys` are then those of the prompts before.

    `notes` grows as lists are read. `total_bytes`: of all files; None with a pipe.
    """

    def __init__(
        self, paths: Sequence[Path], format: Format | None = None, column: str | None = None,
        labels: bool = False, at: Position | None = None, keys: Iterable[int] = (),
    ) -> None:  # fmt: skip
        self.paths = tuple(paths)
        self.notes: list[str] = []
        self.labelled = labels
        self._spelled = column
        self._format, self._column = format, asked_name(column)
        self._seen = Seen()
        for key in keys:
            self._seen.add(key)
        sizes = [size_of(path) for path in self.paths]
        self.total_bytes = None if None in sizes else sum(size or 0 for size in sizes)
        self._before = [0, *accumulate(size or 0 for size in sizes)]
        self._begin = at or Position()
        self._at = replace(self._begin)
        self._source: Source | None = None
        self._done = 0  # bytes of lists that were read to their ends

    @property
    def position(self) -> Position:
        """How far it is read."""
        if self._source is not None:
            self._at.offset, self._at.line = self._source.offset, self._source.reached
        return replace(self._at)

    @property
    def counts(self) -> dict[str, int]:
        """As `PromptList.counts`."""
        return {"prompts_read": self._at.read, "merged": self._at.merged, "blank": self._at.blank}

    @property
    def done_bytes(self) -> int:
        """How much of `total_bytes` is read."""
        return self._before[self._at.list] + self._source.done_bytes() if self._source else self._done

    def check(self) -> bool:
        """Read the beginning of every list that is a file; raises PromptFileError.

        Returns whether one of them has labels, if they are wanted; of a pipe it may be so.
        """
        labelled = False
        for path in self.paths:
            if size_of(path) is not None or not (path == STDIN or path.exists()):
                with opened(path, self._format, self._spelled, 0, 0) as source:
                    key, label = self._columns_of(source, [])
                    labelled |= label is not None
                    for line, record in source.begin(LOOKED_THROUGH):
                        text_of(record, key, path, line, self._column is not None and key is not None)
            else:
                labelled |= self.labelled
        return labelled

    def blocks(self, size: int) -> Iterator[Block]:
        """Prompts, `size` at a time; the last ones before a fault are given before it is raised."""
        fault = None
        found = self._distinct()
        while fault is None:
            prompts: list[Placed] = []
            keys: list[int] = []
            try:
                for placed, key in islice(found, size):
                    prompts.append(placed)
                    keys.append(key)
            except PromptFileError as error:
                fault = error
            if prompts:
                yield Block(prompts, keys, self.position, self.done_bytes)
            if fault is None and len(prompts) < size:
                return
        raise fault

    def _distinct(self) -> Iterator[tuple[Placed, int]]:
        for number in range(self._begin.list, len(self.paths)):
            path, at = self.paths[number], self._at
            if at.list != number:
                at.list, at.offset, at.line, at.spanning, at.spanned, at.empty = number, 0, 0, 0, 0, True
            with opened(path, self._format, self._spelled, at.offset, at.line) as source:
                source.offset, source.reached = at.offset, at.line
                self._source = source
                try:
                    yield from self._of_list(source)
                finally:  # also where the rest is faulty: the position is before that
                    at.offset, at.line = source.offset, source.reached
                    self._done, self._source = self._before[number] + source.done_bytes(), None
            if at.empty:
                raise no_prompts(path, source.format)
            if at.spanning:
                self._note(spanning_note(path, at.spanning, at.spanned))
        if self._seen.count >= self._seen.most:
            self._note(
                f"beyond {self._seen.most} distinct prompts repetitions are not recognized; they are "
                f"scored again"
            )

    def _of_list(self, source: Source) -> Iterator[tuple[Placed, int]]:
        path, seen, at = source.path, self._seen, self._at
        name = "stdin" if path == STDIN else str(path)
        key, label = self._columns_of(source, self.notes)
        memorized, asked = None, self._column is not None and key is not None
        for offset, reached, line, record in source.records:
            text = "" if record is None else text_of(record, key, path, line, asked)
            if text and label is not None and record is not None:
                memorized = label_of(record, label, path, line)
            hashed = Seen.key(text, memorized)
            before = seen.add(hashed) if text else None
            if before is not None and before != hashed:
                raise PromptFileError(
                    f"{path}: line {line} labels a prompt otherwise than a line before"
                )
            # Only now: a fault in a record leaves the position before it.
            source.offset, source.reached = offset, reached
            if not text:
                at.blank += 1
                continue
            at.empty = False
            at.read += 1
            if holds_break(text):
                at.spanning, at.spanned = at.spanning + 1, at.spanned or line
            if before is None:
                yield Placed(text, name, line, memorized), hashed
            else:
                at.merged += 1

    def _columns_of(self, source: Source, notes: list[str]) -> tuple[str | None, str | None]:
        """The column of prompts, and of labels if there is one and it is wanted."""
        begin = source.begin(LOOKED_THROUGH)
        for note in source.notes:
            if note not in notes:
                notes.append(note)
        listing = Listing(
            source.path,
            source.format,
            begin,
            columns=source.columns,
            named=source.named,
            beside=source.beside,
        )
        key = prompt_key(listing, self._column)
        found = unread_columns(listing, self._column, key)
        found += odd_cells(listing, key)
        label = label_column(listing, found) if self.labelled else None
        for note in found:
            if note not in notes:
                notes.append(note)
        return key, label

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True)
class Lists:
    """Lists to be read, and how; see `PromptStream`."""

    paths: tuple[Path, ...]
    format: Format | None = None
    column: str | None = None
    labels: bool = False

    def stream(self, at: Position | None = None, keys: Iterable[int] = ()) -> PromptStream:
        """A new stream of them, from a position on; see `PromptStream`."""
        return PromptStream(self.paths, self.format, self.column, self.labels, at, keys)


def drawn(stream: PromptStream, most: int, seed: int) -> tuple[list[str], int]:
    """At most so many distinct prompts of a stream, each as likely as any other; and how many there are.

    In their order; in the memory of those that are drawn (reservoir sampling, algorithm R). Raises
    PromptFileError.
    """
    chosen: list[tuple[int, str]] = []
    random, count = Random(seed), 0
    for block in stream.blocks(4096):
        for placed in block.prompts:
            if count < most:
                chosen.append((count, placed.text))
            elif (place := random.randrange(count + 1)) < most:
                chosen[place] = count, placed.text
            count += 1
    return [text for _, text in sorted(chosen)], count


# ------------------------------------------------------------------------------ known again


def marks(paths: Sequence[Path], at: Position) -> list[dict[str, Any]]:
    """By what lists that were read up to `at` are known again: size, time, and the text before it."""
    found = []
    for number, path in enumerate(paths[: at.list + 1]):
        status = path.stat() if size_of(path) is not None else None
        here = number == at.list and status is not None and _is_plain_text(path)
        found.append({
            "size": status and status.st_size, "time": status and status.st_mtime_ns,
            "before": _text_before(path, at.offset) if here else None,
        })  # fmt: skip
    return found


def changed_since(
    paths: Sequence[Path], at: Position, known: Sequence[Mapping[str, Any]]
) -> Path | None:
    """The first list that is not the one that was read up to `at`, or None.

    A plain text whose part before the position is as it was may be mended behind it.
    """
    for path, was, now in zip(paths, known, marks(paths, at), strict=False):
        if was["size"] is None or (
            was != now and (was["before"] is None or was["before"] != now["before"])
        ):
            return path
    return None


def _is_plain_text(path: Path) -> bool:
    return not is_packed(path) and FORMATS.get(path.suffix.lower()) != "json"


def _text_before(path: Path, offset: int) -> str:
    with path.open("rb") as file:
        file.seek(max(0, offset - _TAIL))
        return hashlib.sha256(file.read(min(offset, _TAIL))).hexdigest()
