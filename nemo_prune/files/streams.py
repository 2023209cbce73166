"""Prompts of lists of any length, one at a time and in constant memory, with where each stands.

    stream = PromptStream([Path("captions.csv.gz"), Path("more.parquet")])
    for block in stream.blocks(256):
        ...  # block.prompts; block.position, from where another stream can go on

The checks are those of `nemo_prune.files.lists`: a list's name and its first MiB must agree before
anything is read further, and a fault in a line is raised when all prompts before it were given. A JSON
document (not JSON lines) is one piece, so it is read whole, as is Parquet through a pipe.
"""

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy

from nemo_prune.errors import PromptFileError, option
from nemo_prune.files.lists import (
    COLUMNS,
    COMPRESSED,
    FOREIGN,
    FORMATS,
    STDIN,
    WANTED,
    Format,
    Listing,
    Record,
    agreed,
    bounded,
    check_magic,
    decoded_list,
    json_line,
    json_list,
    open_parquet,
    open_pipe,
    parquet_columns,
    parquet_list,
    refused,
    separator_of,
    table_rows,
    text_line,
    unreadable_parquet,
    zstd_unknown,
)
from nemo_prune.files.prompts import label_column, label_of, prompt_column, text_of, unread_columns
from nemo_prune.files.text import MAX_BYTES, check_regular

LONG = 16 * 2**20
"""Bytes of text from which on a list is long: some 200,000 captions."""
_RATIO = 6  # of compressed files and Parquet, as far as that can be known from outside
_HEAD = 2**20
_LINE = 2**24  # bytes of a line; a longer one is no caption, nor a row with one
_CHUNK = 2**20
_LABELLED = 1000  # records by which a column is known for one of labels
_BATCH = 4096  # rows of Parquet at once
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
                packed = (
                    path.suffix.lower() in COMPRESSED or FORMATS.get(path.suffix.lower()) == "parquet"
                )
                size += status.st_size * (_RATIO if packed else 1)
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
        self._format, self._column = format, None if column is None else column.strip().lower()
        self._seen = Seen()
        for key in keys:
            self._seen.add(key)
        sizes = [_size(path) for path in self.paths]
        self.total_bytes = None if None in sizes else sum(size or 0 for size in sizes)
        self._before = [0, *accumulate(size or 0 for size in sizes)]
        self._begin = at or Position()
        self._at = replace(self._begin)
        self._source: _Source | None = None
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
            if _size(path) is not None or not (path == STDIN or path.exists()):
                with _opened(path, self._format, self._column, 0, 0) as source:
                    labelled |= self._columns_of(source, [])[1] is not None
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
            with _opened(path, self._format, self._column, at.offset, at.line) as source:
                source.offset, source.reached = at.offset, at.line
                self._source = source
                try:
                    yield from self._of_list(source)
                finally:  # also where the rest is faulty: the position is before that
                    at.offset, at.line = source.offset, source.reached
                    self._done, self._source = self._before[number] + source.done_bytes(), None
            if at.empty:
                raise PromptFileError(f"{path}: holds no prompts; write one per line")
            if at.spanning:
                self._note(
                    f"{path}: {at.spanning} prompts hold line breaks, the first at line {at.spanned}; a "
                    f"quote left open joins lines"
                )
        if self._seen.count >= self._seen.most:
            self._note(
                f"beyond {self._seen.most} distinct prompts repetitions are not recognized; they are "
                f"scored again"
            )

    def _of_list(self, source: "_Source") -> Iterator[tuple[Placed, int]]:
        path, seen, at = source.path, self._seen, self._at
        name = "stdin" if path == STDIN else str(path)
        key, label = self._columns_of(source, self.notes)
        memorized = None
        for offset, reached, line, record in source.records:
            text = "" if record is None else (text_of(record, key, path, line) or "").strip()
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
            if "\n" in text:
                at.spanning, at.spanned = at.spanning + 1, at.spanned or line
            if before is None:
                yield Placed(text, name, line, memorized), hashed
            else:
                at.merged += 1

    def _columns_of(self, source: "_Source", notes: list[str]) -> tuple[str | None, str | None]:
        """The column of prompts, and of labels if there is one and it is wanted."""
        begin = source.begin(_LABELLED if self.labelled else 1)
        for note in source.notes:
            if note not in notes:
                notes.append(note)
        listing = Listing(source.path, source.format, begin, columns=source.columns)
        if source.format == "txt" and self._column is not None:
            raise PromptFileError(
                f"{source.path}: is text without columns, so {option('prompt_column')} names none"
            )
        key = self._column if source.columns is None else prompt_column(listing, self._column)
        found: list[str] = []
        if source.columns is not None and key is not None:
            found += unread_columns(listing, self._column, key)
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
    for block in stream.blocks(_BATCH):
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
        status = path.stat() if _size(path) is not None else None
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
    suffix = path.suffix.lower()
    return suffix not in COMPRESSED and FORMATS.get(suffix, "txt") not in ("parquet", "json")


def _text_before(path: Path, offset: int) -> str:
    with path.open("rb") as file:
        file.seek(max(0, offset - _TAIL))
        return hashlib.sha256(file.read(min(offset, _TAIL))).hexdigest()


def _size(path: Path) -> int | None:
    """The size of a regular file; None for a pipe, standard input and what is not there."""
    with contextlib.suppress(OSError, ValueError):
        status = path.stat()
        if path != STDIN and stat.S_ISREG(status.st_mode):
            return status.st_size
    return None


# ----------------------------------------------------------------------------------- one list


_Records = Iterator[tuple[int, int, int, Record | None]]
"""The offset and the line reached, and a record with the line where it begins; None: a blank one."""


class _Source:
    """One list, opened. offset, reached: as `Position` counts, after the record that was given last."""

    def __init__(
        self, path: Path, format: Format, notes: list[str], columns: tuple[str, ...] | None,
        records: _Records, done_bytes: Callable[[], int],
    ) -> None:  # fmt: skip
        self.path, self.format, self.notes, self.columns = path, format, notes, columns
        self.done_bytes = done_bytes
        self.offset = self.reached = 0
        self.records = records

    def begin(self, count: int) -> list[tuple[int, Record]]:
        """The next records, which stay to be given. A fault among them stays for its turn."""
        taken: list[tuple[int, int, int, Record | None]] = []
        fault: PromptFileError | None = None
        try:
            taken.extend(islice(self.records, count))
        except PromptFileError as error:
            fault = error
        self.records = chain(taken, _raising(fault) if fault else self.records)
        return [(line, record) for _, _, line, record in taken if record is not None]


def _raising(fault: PromptFileError) -> _Records:
    raise fault
    yield  # makes it an iterator


@contextlib.contextmanager
def _opened(
    path: Path, format: Format | None, column: str | None, offset: int, line: int
) -> Iterator[_Source]:
    """A list from `offset` on, its name held against its first MiB. Raises PromptFileError."""
    suffix = path.suffix.lower() if path != STDIN else ""
    if format is None and suffix in FOREIGN:
        raise refused(path, f"{suffix} files are not read as lists", None)
    with contextlib.ExitStack() as closing:
        first, raw = _raw(path)
        if path != STDIN:
            closing.callback(raw.close)
        first += _read(raw, 8 - len(first))
        notes: list[str] = []
        if path == STDIN:
            # It has no name, so what it begins with decides.
            suffix = next((s for s, magic in COMPRESSED.items() if first.startswith(magic)), "")
        plain: io.RawIOBase = _Chained(path, first, raw)
        packed = suffix in COMPRESSED and first.startswith(COMPRESSED[suffix])
        if packed:
            plain = _Chained(path, b"", _unpacked(path, suffix, io.BufferedReader(plain, _CHUNK)))
        elif suffix in COMPRESSED and first.strip():
            notes.append(f"{path}: is not compressed, whatever its name, and was read as it is")
        if suffix in COMPRESSED:
            suffix = path.with_suffix("").suffix.lower() if path != STDIN else ""
            if format is None and suffix in FOREIGN:
                raise refused(path, f"{suffix} files are not read as lists", None)
        head = _read(plain, _HEAD)
        if packed and head.startswith(tuple(COMPRESSED.values())):
            raise PromptFileError(
                f"{path}: is compressed more than once; decompress it, and give the list"
            )
        kind = format or FORMATS.get(suffix, "txt")
        if format is None:
            check_magic(path, head, kind)
        if kind == "parquet" and not packed and _size(path) is not None:
            yield _rows(path, column, offset)
            return
        cut = len(head) if len(head) < _HEAD else head.rfind(b"\n") + 1 or len(head)
        if kind != "parquet":
            text = decoded_list(path, head[:cut])
            if format is None and text.strip():
                kind, said = agreed(path, text, kind)
                notes += said
                if suffix not in FORMATS:
                    notes.append(f"{path}: read as text, one prompt a line")
        if kind in ("parquet", "json"):
            content = bounded(path, head + _read(plain, MAX_BYTES + 1 - len(head)))
            yield _whole(path, kind, content, column, notes, offset)
            return
        lines = _Lines(path, io.BufferedReader(_Chained(path, head, plain), _CHUNK))
        done = raw.tell if _size(path) is not None else lambda: 0
        columns, records = _of_lines(path, kind, text, lines, notes, offset, line)
        yield _Source(path, kind, notes, columns, records, done)


def _of_lines(
    path: Path, kind: Format, head: str, lines: "_Lines", notes: list[str], offset: int, line: int
) -> tuple[tuple[str, ...] | None, "_Records"]:
    """The columns and the records of text, JSON lines or a table."""
    if kind not in ("csv", "tsv"):
        first, _, more = head.partition("\n")
        if kind == "txt" and first.strip().lower() in COLUMNS and more.strip():
            notes.append(
                f"{path}: its first line is a column's name and was taken as a prompt; name the file "
                f".csv"
            )
        if offset:
            lines.skip_to(offset, line)
        return None, _single(path, kind, lines)
    body = head.lstrip("\r\n")
    skipped = head[: len(head) - len(body)].count("\n")
    for _ in range(skipped):
        next(lines)
    separator = separator_of(path, body.partition("\n")[0], kind, notes)
    rows = table_rows(path, lines, separator, skipped)
    header = next(rows, None)
    names = [] if header is None or header[1] is None else header[1]
    if offset:
        lines.skip_to(offset, line)
        rows = table_rows(path, lines, separator, line, names)
    return tuple(names), _cells(lines, rows, names)


def _single(path: Path, kind: Format, lines: "_Lines") -> "_Records":
    for text in lines:
        text = text.removesuffix("\n").removesuffix("\r")
        number = lines.number
        record: Record | None = None
        if text.strip():
            record = (text_line if kind == "txt" else json_line)(path, number, text)
        yield lines.offset, number, number, record


def _cells(
    lines: "_Lines", rows: Iterator[tuple[int, list[str] | None]], names: Sequence[str]
) -> "_Records":
    for number, row in rows:
        record = None if row is None else dict(zip(names, row, strict=True))
        yield lines.offset, lines.number, number, record


def _whole(
    path: Path, kind: Format, content: bytes, column: str | None, notes: list[str], offset: int
) -> _Source:
    """A list that is one piece."""
    if kind == "parquet":
        listing = parquet_list(path, content, column)
    else:
        text = decoded_list(path, content)
        listing = json_list(path, text, column, notes) if text.strip() else Listing(path, kind, [])
    records = listing.records
    left = ((n, n, line, record) for n, (line, record) in enumerate(records[offset:], start=offset + 1))
    return _Source(path, kind, notes, listing.columns, left, lambda: _size(path) or 0)


def _rows(path: Path, column: str | None, offset: int) -> _Source:
    """The rows of a Parquet file, from one of them on."""
    arrow, file = open_parquet(path, path)
    every, names = parquet_columns(path, file, column)
    size = path.stat().st_size
    total = max(1, file.metadata.num_rows)
    source = _Source(path, "parquet", [], every, iter(()), lambda: size * source.offset // total)

    def records() -> "_Records":
        groups = range(file.metadata.num_row_groups)
        begins = [0, *accumulate(file.metadata.row_group(group).num_rows for group in groups)]
        left = [group for group in groups if begins[group + 1] > offset]
        number = begins[left[0]] if left else 0
        try:
            for batch in file.iter_batches(_BATCH, left, names) if names and left else ():
                for row in batch.to_pylist():
                    number += 1
                    if number > offset:
                        record = {key.strip().lower(): value for key, value in row.items()}
                        yield number, number, number, record
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise unreadable_parquet(path, error) from None

    source.records = records()
    return source


# ----------------------------------------------------------------------------------- bytes


class _Lines:
    """Lines of UTF-8 with their ends; `offset` bytes and `number` lines were read."""

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        self.offset = self.number = 0
        self._path, self._file = path, file

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        raw = self._file.readline(_LINE)
        if not raw:
            raise StopIteration
        self.number += 1
        self.offset += len(raw)
        if len(raw) == _LINE:
            raise PromptFileError(
                f"{self._path}: line {self.number} is longer than {_LINE} bytes; mend it"
            )
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise PromptFileError(
                f"{self._path}: line {self.number} is not UTF-8; give a UTF-8 text file"
            ) from None
        if "\0" in text:
            raise PromptFileError(
                f"{self._path}: is not a text file (line {self.number} holds a NUL); give one prompt "
                f"per line"
            )
        return text.removeprefix("\ufeff") if self.number == 1 else text

    def skip_to(self, offset: int, number: int) -> None:
        """Go on behind so many bytes, which are as many lines; of a plain file they are not read."""
        chained = self._file.raw
        assert isinstance(chained, _Chained)
        if chained.seek_source(offset):
            self._file.detach()  # else it would close what lies below
            self._file = io.BufferedReader(chained, _CHUNK)
        else:
            left = offset - self.offset
            while left > 0 and (piece := self._file.read(min(left, _CHUNK))):
                left -= len(piece)
        self.offset, self.number = offset, number


class _Chained(io.RawIOBase):
    """Bytes that were read already, then those of `source`; its faults are PromptFileError."""

    def __init__(self, path: Path, first: bytes, source: Any) -> None:
        self._path, self._first, self._source = path, first, source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = len(buffer)
        if self._first:
            piece, self._first = self._first[:wanted], self._first[wanted:]
        else:
            try:
                piece = self._source.read(wanted)
            except (EOFError, ValueError, zlib.error, lzma.LZMAError, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise PromptFileError(f"{self._path}: cannot be read ({error.strerror})") from None
                raise PromptFileError(
                    f"{self._path}: is damaged or cut off, so it cannot be decompressed; make it anew"
                ) from None
        buffer[: len(piece)] = piece
        return len(piece)

    def seek_source(self, offset: int) -> bool:
        """Go to a place of a plain file; False if what lies below is none."""
        below = self._source
        while isinstance(below, _Chained):
            below = below._source
        if not isinstance(below, io.FileIO) or not below.seekable():
            return False
        below.seek(offset)
        self._first, self._source = b"", below
        return True


class _Unpacked(io.RawIOBase):
    """What bzip2 or xz packed, stream after stream.

    Not bz2.open and lzma.open: they end at a second stream that is damaged, without a word.
    """

    def __init__(self, file: Any, new: Callable[[], Any]) -> None:
        self._file, self._new, self._stream = file, new, new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            data = b""
            if self._stream.eof:
                data = self._stream.unused_data.lstrip(b"\0")
                while not data and (more := self._file.read(_CHUNK)):
                    data = more.lstrip(b"\0")
                if not data:
                    return 0
                self._stream = self._new()
            elif self._stream.needs_input:
                data = self._file.read(_CHUNK)
                if not data:
                    raise EOFError
            piece = self._stream.decompress(data, len(buffer))
            if piece:
                buffer[: len(piece)] = piece
                return len(piece)


def _unpacked(path: Path, suffix: str, file: Any) -> Any:
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=file)
    if suffix == ".bz2":
        return _Unpacked(file, bz2.BZ2Decompressor)
    if suffix == ".xz":
        return _Unpacked(file, lzma.LZMADecompressor)
    try:
        import pyarrow as arrow
    except ImportError:
        raise zstd_unknown(path) from None
    return arrow.CompressedInputStream(arrow.PythonFile(file, "r"), "zstd")


def _raw(path: Path) -> tuple[bytes, Any]:
    """What was read already, and the file, pipe or standard input; raises PromptFileError."""
    if path == STDIN:
        if sys.stdin is None:
            raise PromptFileError(f"{path}: standard input is closed; give a file")
        return b"", sys.stdin.buffer
    with contextlib.suppress(OSError, ValueError):
        if stat.S_ISFIFO(path.stat().st_mode):
            return open_pipe(path)
    check_regular(path, PromptFileError, WANTED)
    try:
        return b"", io.FileIO(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PromptFileError(f"{path}: cannot be read ({reason})") from None


def _read(source: Any, count: int) -> bytes:
    """So many bytes, or what there is."""
    pieces = []
    while count > 0 and (piece := source.read(count)):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)
