"""One list, opened: its records as they are read, and how far it is read.

A list is a file, a pipe or standard input, compressed or not. Its name and its first MiB must agree
before anything is read further. A JSON document (not JSON lines) is one piece, so it is read whole, as
is Parquet through a pipe.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

from nemo_prune.errors import PromptFileError, option
from nemo_prune.files.content import agreed, check_magic, odd_lines, refused
from nemo_prune.files.lists import (
    COMPRESSED,
    FOREIGN,
    FORMATS,
    SEPARATOR_LINE,
    SEPARATORS,
    STDIN,
    TYPE_LINE,
    WANTED,
    Format,
    Listing,
    Record,
    class_names,
    decoded_list,
    json_line,
    json_list,
    nameless,
    open_parquet,
    open_pipe,
    packing_of,
    parquet_beside,
    parquet_columns,
    parquet_list,
    parquet_record,
    separator_of,
    table_rows,
    text_line,
    unreadable_parquet,
    zstd_unknown,
)
from nemo_prune.files.names import COLUMNS, names_header, names_of
from nemo_prune.files.text import MAX_BYTES, check_regular, of_no_text

_HEAD = 2**20
_LINE = 2**24  # bytes of a line; a longer one is no caption, nor a row with one
_CHUNK = 2**20
_DATA = frozenset({".arrow", ".avro", ".feather", ".orc", ".tar"})
_NAMES = 1000  # files of a folder
_COMMENTS = 100  # lines above a header
_BATCH = 4096  # rows of Parquet at once


def read_list(path: Path, format: Format | None = None, column: str | None = None) -> Listing:
    """The records of the list at `path`; `-` is standard input, and a pipe is read to its end.

    Args:
        path: a list of at most 256 MiB of text.
        format: what it is, whatever its name and content look like; None: by both.
        column: the column that holds the texts, if it is named otherwise than `COLUMNS`.

    Raises:
        PromptFileError: one line, for a list that cannot be read, or that its content contradicts.
    """
    if (size_of(path) or 0) > MAX_BYTES:
        raise _too_large(path)
    records: list[tuple[int, Record]] = []
    blank = size = 0  # bytes so far, of Parquet characters
    with opened(path, format, column, 0, 0) as source:
        for offset, _, line, record in source.records:
            if record is None:
                blank += 1
                continue
            records.append((line, record))
            if source.format == "parquet" and not isinstance(record, str):
                size += sum(len(cell) for cell in record.values() if isinstance(cell, str))
            else:
                size = offset
            if size > MAX_BYTES:
                raise _too_large(path)
    return Listing(path, source.format, records, blank, tuple(source.notes), source.columns,
                   source.named, source.beside)  # fmt: skip


def size_of(path: Path) -> int | None:
    """The size of a regular file; None for a pipe, standard input and what is not there."""
    with contextlib.suppress(OSError, ValueError):
        status = path.stat()
        if path != STDIN and stat.S_ISREG(status.st_mode):
            return status.st_size
    return None


Records = Iterator[tuple[int, int, int, Record | None]]
"""The offset and the line reached, and a record with the line where it begins; None: a blank one."""


class Source:
    """One list, opened. offset, reached: as `Position` counts, after the record that was given last."""

    def __init__(
        self, path: Path, format: Format, notes: list[str], columns: tuple[str, ...] | None,
        records: Records, done_bytes: Callable[[], int],
    ) -> None:  # fmt: skip
        self.path, self.format, self.notes, self.columns = path, format, notes, columns
        self.done_bytes = done_bytes
        self.offset = self.reached = 0
        self.records = records
        self.named = False  # as `Listing` has it
        self.beside: Mapping[str, Sequence[object]] = {}

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


def _raising(fault: PromptFileError) -> Records:
    raise fault
    yield  # makes it an iterator


@contextlib.contextmanager
def opened(
    path: Path, format: Format | None, column: str | None, offset: int, line: int
) -> Iterator[Source]:
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
        packing = suffix if suffix in COMPRESSED else ""
        if packing:
            suffix = path.with_suffix("").suffix.lower()
        elif nameless(path):
            # Its name says nothing, so what it begins with decides.
            packing = packing_of(first)
        plain: io.RawIOBase = _Chained(path, first, raw)
        packed = bool(packing) and packing_of(first) == packing
        if packed:
            plain = _Chained(path, b"", _unpacked(path, packing, io.BufferedReader(plain, _CHUNK)))
        elif packing and first.strip():
            notes.append(f"{path}: is not compressed, whatever its name, and was read as it is")
        if packing and format is None and suffix in FOREIGN:
            raise refused(path, f"{suffix} files are not read as lists", None)
        head = _read(plain, _HEAD)
        if packed and packing_of(head):
            raise PromptFileError(
                f"{path}: is compressed more than once; decompress it, and give the list"
            )
        kind = format or FORMATS.get(suffix, "txt")
        if format is None:
            check_magic(path, head, kind)
        if kind == "parquet" and not packed and size_of(path) is not None:
            yield _rows(path, column, offset)
            return
        cut = len(head) if len(head) < _HEAD else head.rfind(b"\n") + 1 or len(head)
        if kind != "parquet":
            text = decoded_list(path, head[:cut])
            if (format is None or kind in ("csv", "tsv")) and TYPE_LINE.match(text.lstrip()):
                raise PromptFileError(
                    f"{path}: begins with #TYPE (PowerShell); export with -NoTypeInformation"
                )
            if format is None and text.strip():
                kind, said = agreed(path, text, kind)
                notes += said
            if kind == "txt":
                notes += odd_lines(path, text)
                if suffix not in FORMATS:
                    notes.append(f"{path}: read as text, one prompt a line")
        if kind in ("parquet", "json"):
            content = _bounded(path, head + _read(plain, MAX_BYTES + 1 - len(head)))
            yield _whole(path, kind, content, column, notes, offset)
            return
        lines = _Lines(path, io.BufferedReader(_Chained(path, head, plain), _CHUNK))
        done = raw.tell if size_of(path) is not None else lambda: 0
        columns, records = _of_lines(path, kind, text, lines, column, notes, offset, line)
        yield Source(path, kind, notes, columns, records, done)


def _of_lines(
    path: Path,
    kind: Format,
    head: str,
    lines: "_Lines",
    column: str | None,
    notes: list[str],
    offset: int,
    line: int,
) -> tuple[tuple[str, ...] | None, Records]:
    """The columns and the records of text, JSON lines or a table."""
    if kind not in ("csv", "tsv"):
        first, _, more = head.partition("\n")
        if names_header(first) and more.strip():
            cure = f"give {option('prompts_format')} csv" if nameless(path) else "name the file .csv"
            cure = "write it as CSV" if len(first.split()) > 1 else cure
            notes.append(f"{path}: its first line is a column's name and was taken as a prompt; {cure}")
        if offset:
            lines.skip_to(offset, line)
        return None, _single(path, kind, lines, column)
    body = head.lstrip("\r\n")
    told = SEPARATOR_LINE.match(body)
    if told:  # Excel's first line, of which it shows nothing
        body = body[told.end() :]
    skipped = head[: len(head) - len(body)].count("\n")
    for _ in range(skipped):
        next(lines)
    if over := _comment_above(body):
        raise PromptFileError(
            f"{path}: line {skipped + 1} is a comment (#), and the header stands in line "
            f"{skipped + 1 + over}; remove what stands above it"
        )
    separator = told[1] if told else separator_of(path, body.partition("\n")[0], kind, notes)
    rows = table_rows(path, lines, separator, skipped, column)
    header = next(rows, None)
    names = [] if header is None or header[1] is None else header[1]
    if offset:
        lines.skip_to(offset, line)
        rows = table_rows(path, lines, separator, line, column, names)
    return None if header is None else tuple(names), _cells(lines, rows, names)


def _comment_above(body: str) -> int:
    """How many lines of comments stand above a table's header; 0 where the first line is the header."""
    first, *more = body.split("\n", _COMMENTS)[:_COMMENTS]
    if not first.startswith("#") or _has_usual(first):
        return 0
    return next((n for n, line in enumerate(more, 1) if line[:1] != "#" and _has_usual(line)), 0)


def _has_usual(line: str) -> bool:
    return any({*names_of(line.split(separator))} & {*COLUMNS} for separator in SEPARATORS)


def _single(path: Path, kind: Format, lines: "_Lines", column: str | None) -> Records:
    for text in lines:
        # Files that were joined bring their byte order marks with them.
        text = text.removesuffix("\n").removesuffix("\r").removeprefix("\ufeff")
        number = lines.number
        record: Record | None = None
        if text.strip():
            record = (
                text_line(path, number, text) if kind == "txt" else json_line(path, number, text, column)
            )
        yield lines.offset, number, number, record


def _cells(
    lines: "_Lines", rows: Iterator[tuple[int, list[str] | None]], names: Sequence[str]
) -> Records:
    for number, row in rows:
        record = None if row is None else dict(zip(names, row, strict=True))
        yield lines.offset, lines.number, number, record


def _whole(
    path: Path, kind: Format, content: bytes, column: str | None, notes: list[str], offset: int
) -> Source:
    """A list that is one piece."""
    if kind == "parquet":
        listing = parquet_list(path, content, column)
    else:
        text = decoded_list(path, content)
        listing = json_list(path, text, column, notes) if text.strip() else Listing(path, kind, [])
    records = listing.records
    left = ((n, n, line, record) for n, (line, record) in enumerate(records[offset:], start=offset + 1))
    source = Source(path, kind, notes, listing.columns, left, lambda: size_of(path) or 0)
    source.named, source.beside = listing.named, listing.beside
    return source


def _rows(path: Path, column: str | None, offset: int) -> Source:
    """The rows of a Parquet file, from one of them on."""
    arrow, file = open_parquet(path, path)
    every, names = parquet_columns(path, file, column)
    classes = class_names(file)
    size = path.stat().st_size
    total = max(1, file.metadata.num_rows)
    source = Source(path, "parquet", [], every, iter(()), lambda: size * source.offset // total)

    try:
        source.beside = parquet_beside(file, names)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise unreadable_parquet(path, error) from None

    def records() -> Records:
        groups = range(file.metadata.num_row_groups)
        begins = [0, *accumulate(file.metadata.row_group(group).num_rows for group in groups)]
        left = [group for group in groups if begins[group + 1] > offset]
        number = begins[left[0]] if left else 0
        try:
            for batch in file.iter_batches(_BATCH, left, names) if names and left else ():
                for row in batch.to_pylist():
                    number += 1
                    if number > offset:
                        yield number, number, number, parquet_record(row, classes)
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
        text = text.removesuffix("\x1a")  # by which DOS ended texts; before a line's end it stays
        if "\0" in text:
            raise PromptFileError(f"{self._path}: {of_no_text(text, self.number)}")
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
        if path.is_dir():
            raise PromptFileError(f"{path}: is a folder; {_lists_within(path)}")
    check_regular(path, PromptFileError, WANTED)
    try:
        return b"", io.FileIO(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PromptFileError(f"{path}: cannot be read ({reason})") from None


def _lists_within(folder: Path) -> str:
    """How to give the lists in a folder, by the names of the first files in it."""
    suffixes = Counter(one.suffix.lower() for one in islice(folder.rglob("*.*"), _NAMES))
    read = suffixes.keys() & FORMATS.keys()
    data = suffixes.keys() & _DATA
    if data and read <= {".json"}:  # which says what the others are
        what = f"its data are in {', '.join(sorted(data))}, which is not read"
        return f"{what}; write them as Parquet or JSON lines (datasets: to_parquet)"
    if not suffixes or read:
        usual = max(
            (s for s in FORMATS if s), key=lambda suffix: (suffixes[suffix], suffix == ".parquet")
        )
        pattern = folder / "**" / f"*{usual}"
        return f"give the lists in it as a pattern in quotes, such as '{pattern}'"
    return "it holds no list by its files' names; give text, CSV, TSV, JSON, JSON lines or Parquet"


def _read(source: Any, count: int) -> bytes:
    """So many bytes, or what there is."""
    pieces = []
    while count > 0 and (piece := source.read(count)):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _bounded(path: Path, content: bytes) -> bytes:
    if len(content) > MAX_BYTES:
        raise _too_large(path)
    return content


def _too_large(path: Path) -> PromptFileError:
    """That a list is longer than what is held in memory."""
    return PromptFileError(
        f"{path}: is too large, more than {MAX_BYTES} bytes are too many; give {WANTED}"
    )
