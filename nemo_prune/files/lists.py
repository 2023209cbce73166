"""Records of a list that a user gives: lines of text, CSV, TSV, JSON, JSON lines or Parquet.

Readers are strict: whatever could make a list shorter or longer than its author meant is refused by
name, with the line. The format follows from the file's name (`FORMATS`), and its content must agree. It
may be compressed with gzip, bzip2, xz or zstd, and has two suffixes then: captions.jsonl.gz.
Messages never quote the content.
"""

import contextlib
import csv
import glob
import json
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from nemo_prune.errors import PromptFileError, option
from nemo_prune.files.names import COLUMNS, HEADERS, LABELS, asked_name, names_of, shown_keys
from nemo_prune.files.nested import AS_OBJECTS, lists_in, lists_with, without_list, workflow
from nemo_prune.files.text import MAX_BYTES, PACKED, decoded, of_no_text

Format = Literal["txt", "csv", "tsv", "jsonl", "json", "parquet"]
FORMATS: dict[str, Format] = {
    "": "txt", ".txt": "txt", ".text": "txt", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
"""Formats by the suffix of a file's name. Other names may only hold lines of text."""
STDIN = Path("-")
WANTED = "a UTF-8 text file"
FOREIGN = frozenset({
    ".7z", ".adoc", ".arff", ".arrow", ".avro", ".bin", ".br", ".ckpt", ".db", ".docx", ".feather",
    ".htm", ".html", ".ini", ".ipynb", ".log", ".lz", ".lz4", ".lzma", ".lzo", ".md", ".n3", ".npy",
    ".npz", ".nq", ".nt", ".ods", ".orc", ".pdf", ".pickle", ".pkl", ".pt", ".py", ".rar", ".rdf",
    ".rst", ".rtf", ".sql", ".sqlite", ".sz", ".tar", ".tbz2", ".tgz", ".toml", ".ttl", ".txz", ".xls",
    ".xlsx", ".xml", ".yaml", ".yml", ".z", ".zip",
})  # fmt: skip
_PACKINGS = {"gzip": ".gz", "bzip2": ".bz2", "xz": ".xz", "zstd": ".zst"}
COMPRESSED = {_PACKINGS[name]: magic for magic, name in PACKED.items() if name in _PACKINGS}
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")  # a frame of zstd that holds no text
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?[ \t]*\r?\n', re.I)  # by which Excel is told
TYPE_LINE = re.compile(r'"?#TYPE [\w.]+"?[ \t]*\r?\n', re.I)  # by which PowerShell tells itself
LOOKED_THROUGH = 1000  # records by which what cells hold is known, or a column for one of labels
_WRITER_SECONDS = 2.0  # to wait for somebody who writes to a named pipe

Record = str | Mapping[str, object]
"""A text alone, or cells by column in lower case."""


@dataclass(frozen=True)
class Listing:
    """The records of one list.

    records: with the line of each (in Parquet: row) from 1.
    blank: lines without anything. notes: what its reader should know, each one line.
    columns: of a table, its columns; None: each record has its own, or none.
    named: whether the column that was asked for is the list's own name, which its records do not have.
    beside: of Parquet, the first cells of columns of text that are not read.
    """

    path: Path
    format: Format
    records: list[tuple[int, Record]]
    blank: int = 0
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    named: bool = False
    beside: Mapping[str, Sequence[object]] = field(default_factory=dict)


def expand(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The paths, patterns (`*`, `?`, `[...]`) replaced by the files that they match, in order.

    A file that is there by that very name is no pattern. Raises PromptFileError for one that matches
    nothing, and for one that is meant to leave files out (`!`).
    """
    found: dict[Path, None] = {}
    for path in paths:
        if str(path).startswith("!") and not os.path.lexists(path):
            raise PromptFileError(
                f"{path}: no such file, and patterns cannot exclude (!); name the lists to be read"
            )
        if not glob.has_magic(str(path)) or os.path.lexists(path):
            found[path] = None
            continue
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207, absolute too
        if not matches:
            raise PromptFileError(f"{path}: no file matches; check the pattern")
        found |= dict.fromkeys(matches)
    return tuple(found)


# ---------------------------------------------------------------------------------------- content


def named_format(path: Path) -> Format | None:
    """Which list's format a file's name says, compressed or not; None if it says none."""
    if path.suffix.lower() in COMPRESSED:
        path = path.with_suffix("")
    return FORMATS.get(path.suffix.lower()) if path.suffix else None


def packing_of(start: bytes) -> str:
    """The suffix of what compressed a file that begins so, in eight bytes or more; "" for none."""
    at = 0
    while _SKIPPABLE.match(start, at):  # as pzstd and seekable zstd put in front
        at += 8 + int.from_bytes(start[at + 4 : at + 8], "little")
        if at >= len(start):
            return ".zst"
    return next((suffix for suffix, magic in COMPRESSED.items() if start.startswith(magic, at)), "")


def nameless(path: Path) -> bool:
    """Whether it is standard input or a pipe, whose name says nothing of its content."""
    if path == STDIN:
        return True
    with contextlib.suppress(OSError, ValueError):
        return stat.S_ISFIFO(path.stat().st_mode)
    return False


def zstd_unknown(path: Path) -> PromptFileError:
    """That pyarrow is missing."""
    return PromptFileError(
        f"{path}: zstd is read with pyarrow, which is not installed; "
        f"pip install 'nemo-prune[parquet]', or decompress it first"
    )


def open_pipe(path: Path) -> tuple[bytes, FileIO]:
    """The first byte of a pipe and the pipe, unbuffered; refused if nobody opens it for writing."""
    # Without O_NONBLOCK opening a named pipe that nobody writes to would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    pipe = FileIO(descriptor, "rb")
    try:
        last = time.monotonic() + _WRITER_SECONDS
        first: bytes | None = b""
        while first == b"" and time.monotonic() < last:
            first = pipe.read(1)  # None: somebody has it open and has not written yet
            time.sleep(0.02 if first == b"" else 0)
        if first == b"":
            raise PromptFileError(f"{path}: nobody writes to this pipe, or nothing; give a file")
        os.set_blocking(descriptor, True)
    except BaseException:
        pipe.close()
        raise
    return first or b"", pipe


def decoded_list(path: Path, content: bytes) -> str:
    text = decoded(content, path, PromptFileError, WANTED).removesuffix("\x1a")  # DOS's end of a text
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise PromptFileError(f"{path}: {of_no_text(text, line)}")
    # Files that were joined bring their byte order marks with them, which readers take away too.
    return re.sub("(?m)^\ufeff", "", text) if "\ufeff" in text else text


# ----------------------------------------------------------------------------------------- readers


def text_line(path: Path, number: int, line: str) -> str:
    """The line; PromptFileError for one that may be several, ended as on old Macs."""
    if "\r" in line.strip():
        raise PromptFileError(
            f"{path}: line {number} holds carriage returns that end no line, so several prompts may be "
            f"one; end lines with a line feed"
        )
    return line


def table_rows(
    path: Path,
    lines: Iterable[str],
    separator: str,
    skipped: int,
    column: str | None,
    names: Sequence[str] | None = None,
) -> Iterator[tuple[int, list[str] | None]]:
    """The header's names in lower case, then the rows of a table, each with its line; None: a blank one.

    lines: from the header on, with their ends; with `names`, from any row on. skipped: lines before.
    column: as `column_names` takes it.
    """
    joined: set[int] = set()
    last: list[str] = []
    rows = csv.reader(_unmarked(lines, joined, last), delimiter=separator, strict=True)
    every = frozenset((*(names or ()), *HEADERS))
    while True:
        begin = rows.line_num + 1
        number = skipped + begin
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            # csv's limit of a cell is one for all of a process, and not ours to change.
            row = []
            if names is not None and "field limit" in str(error) and rows.line_num == begin:
                row = _long_row(last[0], separator)
            if not row:
                what, cure = _unreadable(str(error), separator, names or ())
                raise PromptFileError(
                    f"{path}: is not a readable CSV: line {number} has {what}; {cure}"
                ) from None
        if names is None:
            names = column_names(f"{path}:", row, column)
            every |= {*names}
            yield number, list(names)
            continue
        if not "".join(row).strip() and len(row) < 2:
            yield number, None
            continue
        if len(row) != len(names):
            if len(names) == 1 and (mark := re.search(r"\w\s?([|^~#:])\s?\w", names[0])):
                raise PromptFileError(
                    f"{path}: its header seems separated by {mark[1]}, which is not read; write it as "
                    f"CSV with commas (pandas: sep=',')"
                )
            raise PromptFileError(
                f"{path}: line {number} has {len(row)} cells, the header {len(names)}; put texts "
                f'with separators in quotes ("), double quotes within them, and mend the line'
            )
        # A header has one of few names in front; most rows end this here.
        # A cell alone may be a caption of one word, but not where another file begins.
        if (len(row) > 1 or begin in joined) and row[0].strip().strip('"').lower() in every:
            _refuse_header(path, number, names_of(row), names)
        yield number, row


def _unreadable(error: str, separator: str, names: Sequence[str]) -> tuple[str, str]:
    """What a line of a table has that csv does not read, and what to do."""
    if "unexpected end" in error:
        return "a quote that is never closed", "mend it"
    if "field limit" in error:
        most = csv.field_size_limit()
        what = (
            f"a cell of more than {most} characters over several lines, or a quote that is never closed"
        )
        return what, "leave that column out, or mend it"
    if "new-line character" in error:
        return (
            "a carriage return that ends no line, so several may be one",
            "end lines with LF or CR LF (Excel: CSV UTF-8, not CSV (Macintosh))",
        )
    if "expected after" in error:
        shown = shown_keys(name.lstrip("?") for name in names)
        columns = f" (its columns are {shown})" * bool(shown)
        what, cure = (
            "text behind the quote that closes a cell",
            "write quotes within cells twice, or close",
        )
        if separator == "\t":
            what += ', as SPARQL writes it ("..."@en)'
            cure = f"export it as CSV, {cure}"
        return what, f"{cure} what was left open{columns}"
    return f"what is not CSV ({error})", "mend it"


def _long_row(line: str, separator: str) -> list[str]:
    """The cells of a line that is a row by itself, of whatever length; none if it is not."""
    mark = re.escape(separator)
    cell = rf'''("(?:[^"]++|"")*+"|(?:[^"{mark}][^{mark}]*+)?+)'''
    line = line.rstrip("\r\n")
    if not re.fullmatch(rf"{cell}(?:{mark}{cell})*+", line):
        return []
    cells = [found[1] for found in re.finditer(rf"(?:^|{mark}){cell}", line)]
    return [one[1:-1].replace('""', '"') if one[:1] == '"' else one for one in cells]


def column_names(where: str, cells: Iterable[str], column: str | None) -> list[str]:
    """The names of columns, or keys, in lower case, without two of one name among those that are read.

    where: what a message begins with. column: the name that was asked for; if others differ from it in
    case alone, they get another name. Raises PromptFileError for two of one name.
    """
    spelled = [cell.strip().strip('"').strip() for cell in cells]
    names = names_of(spelled)
    wanted = "" if column is None else column.strip()
    if spelled.count(wanted) == 1:
        for place, one in enumerate(spelled):
            if one != wanted and names[place] == wanted.lower():
                names[place] += f" ({place + 1})"
    for name in (*COLUMNS, *LABELS, wanted.lower()):
        same = [one for one, other in zip(spelled, names, strict=True) if other == name != ""]
        if len({*same}) > 1:
            cure = f", or give {option('prompt_column')}, which takes one as it is spelled"
            raise PromptFileError(
                f"{where} has {' and '.join(dict.fromkeys(same))}, which differ in case alone; rename "
                f"one of them{cure * (name not in LABELS)}"
            )
        if len(same) > 1:
            raise PromptFileError(f"{where} has two columns of one name; rename one of them")
    return names


def _unmarked(lines: Iterable[str], joined: set[int], last: list[str]) -> Iterator[str]:
    """The lines without byte order marks, which joined files bring with them; `joined` are theirs.

    last: the line that was given last, alone.
    """
    for number, line in enumerate(lines, start=1):
        if line.startswith("\ufeff"):
            joined.add(number)
        last[:] = [line.removeprefix("\ufeff")]
        yield last[0]


def _refuse_header(path: Path, number: int, cells: list[str], names: Sequence[str]) -> None:
    """PromptFileError for a row that is a header again, in any order, or another list's."""
    what = ""
    if sorted(cells) == sorted(names):
        what = "the header again" + ", in another order" * (cells != list(names))
    elif {*cells} & {*COLUMNS} and {*cells} <= {*HEADERS, *names}:
        what = "a header of other columns"
    if what:
        cure = "remove it" if cells == list(names) else "give each file by itself, or a pattern"
        raise PromptFileError(f"{path}: line {number} is {what}, as of files that were joined; {cure}")


def separator_of(path: Path, header: str, format: Format, notes: list[str]) -> str:
    """By what the header uses: sniffing the captions would find commas everywhere."""
    if format == "tsv" and ("\t" in header or not any(one in header for one in SEPARATORS)):
        separator = "\t"
    else:
        separator = max(SEPARATORS, key=header.count)
    if (separator == "\t") != (format == "tsv"):
        # Read by what it is, and said: spreadsheets write tabs into files named .csv.
        notes.append(f"{path}: is separated by {SEPARATORS[separator]}, and was read so")
    return separator


def json_line(path: Path, number: int, line: str, column: str | None) -> Record:
    """The record of one of JSON lines; PromptFileError for what is none. column: as `column_names`."""
    line = line.lstrip("\x1e")  # a record may begin with it (RFC 7464, jq --seq)
    try:
        value = json.loads(line, object_pairs_hook=_unique)
    except _TwiceError:
        raise PromptFileError(f"{path}: line {number} has a key twice; mend it") from None
    except (ValueError, RecursionError) as error:
        what = f"is not JSON; {_json_cure(line, error)}"
        if line.lstrip()[:1] in ("{", "[") and getattr(error, "pos", 0) >= len(line.rstrip()):
            each = _jq_each(line)
            what = f"is not JSON by itself; write each value on one line ({each}), mend what is cut"
        raise PromptFileError(f"{path}: line {number} {what}") from None
    return _record(path, number, value, column)


def _jq_each(text: str) -> str:
    """The command that writes the values of such JSON on lines of their own; of lists, their items."""
    return "jq -c '.[]'" if text.lstrip()[:1] == "[" else "jq -c ."


def _json_cure(text: str, error: Exception) -> str:
    """What to do about text that is not one value of JSON."""
    rest = text[getattr(error, "pos", 0) :].lstrip() if "Extra data" in str(error) else ""
    if rest[:1] in ("{", "[", '"'):
        return (
            f"it holds several values one after the other: write each on a line of its own "
            f"({_jq_each(text)})"
        )
    if rest[:1] == ",":
        return "a comma stands behind its first value: write JSON lines without (sed 's/,$//')"
    return "mend it"


class _TwiceError(ValueError):
    pass


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _TwiceError
    return found


def _record(path: Path, number: int, value: object, column: str | None, where: str = "") -> Record:
    if isinstance(value, dict):
        found = {key.lower(): cell for key, cell in value.items()}
        if len(found) < len(value):
            names = column_names(f"{path}: line {number}", value, column)
            found = dict(zip(names, value.values(), strict=True))
        return found
    if value is None:
        return ""
    if not isinstance(value, str):
        wanted = ", ".join(COLUMNS)
        if isinstance(value, list):
            raise PromptFileError(f"{path}: line {number} is a list{where}; {AS_OBJECTS}")
        raise PromptFileError(f"{path}: line {number} has no string under {wanted}{where}; mend it")
    return value


def is_packed(path: Path) -> bool:
    """Whether a list is compressed or Parquet by its name, so that its bytes are not its text."""
    suffix = path.suffix.lower()
    return suffix in COMPRESSED or FORMATS.get(suffix) == "parquet"


def json_list(path: Path, text: str, column: str | None, notes: list[str]) -> Listing:
    """An array of strings or objects, or an object with such an array."""
    text = text.lstrip("\x1e")  # as in `json_line`
    spelled, column = column, asked_name(column)
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    key: str | None = None
    try:
        whole = decoder.decode(text)
        items: list[tuple[int, object]] = []
        if isinstance(whole, dict):
            if {"columns", "data"} <= whole.keys() and not lists_in(whole, None):
                raise PromptFileError(
                    f"{path}: is a JSON object of columns and data, as pandas writes it "
                    f'(orient="split"); write a list of objects (orient="records")'
                )
            if drawn := workflow(whole):
                raise PromptFileError(f"{path}: {drawn}")
            named = lists_in(whole, column)
            if len(named) > 1:
                raise PromptFileError(f"{path}: has several lists of prompts; keep one of them")
            key = named[0] if named else None
            if key is not None:
                if any(
                    isinstance(value, list) for name, value in whole.items() if name.lower() in LABELS
                ):
                    notes.append(
                        f"{path}: its list of labels is not used; give objects with a prompt and a label"
                    )
                items = list(_items(text, _value_of(text, key, decoder), decoder))
            elif named := [name for name in whole if name.lower() in (*COLUMNS, column)]:
                if isinstance(whole[named[0]], dict):
                    raise PromptFileError(
                        f"{path}: is a JSON object of columns, as pandas writes it; write a list of "
                        f'objects (pandas: orient="records")'
                    )
                items = [(1, whole)]
            elif column is not None and len(named := lists_with(whole, (column,))) == 1:
                items = list(_items(text, _value_of(text, named[0].lower(), decoder), decoder))
            else:
                raise PromptFileError(f"{path}: is a JSON object {without_list(whole)}")
        elif isinstance(whole, list):
            items = list(_items(text, text.index("["), decoder))
        else:
            raise PromptFileError(f"{path}: is JSON, and holds no list of prompts; give a list")
    except _TwiceError:
        raise PromptFileError(f"{path}: has a key twice in one object; mend it") from None
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        where = f"line {line} " if line else ""
        raise PromptFileError(f"{path}: {where}is not JSON; {_json_cure(text, error)}") from None
    records = [
        (number, _record(path, number, value, spelled, f" (item {place})"))
        for place, (number, value) in enumerate(items, start=1)
    ]
    return Listing(path, "json", records, 0, tuple(notes), named=key is not None and key == column)


_SPACE = re.compile(r"[ \t\r\n]*")


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _value_of(text: str, wanted: str, decoder: json.JSONDecoder) -> int:
    """Where the value of a key of the outermost object begins, in text that is sound JSON."""
    at = _skip(text, 0)
    while True:
        at = _skip(text, at + 1)  # after { or ,
        key, at = decoder.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # after :
        if str(key).lower() == wanted:
            return at
        _, at = decoder.raw_decode(text, at)
        at = _skip(text, at)


def _items(text: str, at: int, decoder: json.JSONDecoder) -> Iterator[tuple[int, object]]:
    """Each element of the array at `at`, in text that is sound JSON, with its line."""
    line, counted = 1, 0
    at = _skip(text, at + 1)
    while text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        value, at = decoder.raw_decode(text, at)
        yield line, value
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)


def parquet_list(path: Path, content: bytes, column: str | None) -> Listing:
    """All records of a Parquet file; raises PromptFileError."""
    arrow, file = open_parquet(path, content)
    every, names = parquet_columns(path, file, column)
    classes = class_names(file)
    records: list[tuple[int, Record]] = []
    size = 0
    try:
        beside = parquet_beside(file, names)
        for batch in file.iter_batches(columns=names) if names else ():
            size += batch.nbytes
            if size > MAX_BYTES:
                raise PromptFileError(f"{path}: holds more than {MAX_BYTES} bytes of text; split it")
            for row in batch.to_pylist():
                records.append((len(records) + 1, parquet_record(row, classes)))
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise unreadable_parquet(path, error) from None
    return Listing(path, "parquet", records, columns=every, beside=beside)


def open_parquet(path: Path, content: Path | bytes) -> tuple[Any, Any]:
    """pyarrow, and its Parquet file of what is at a path, or of bytes; raises PromptFileError."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise PromptFileError(
            f"{path}: Parquet is read with pyarrow, which is not installed; "
            f"pip install 'nemo-prune[parquet]', or give CSV or JSON lines"
        ) from None
    try:
        whence = content if isinstance(content, Path) else arrow.BufferReader(content)
        return arrow, parquet.ParquetFile(whence)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise unreadable_parquet(path, error) from None


def parquet_columns(path: Path, file: Any, column: str | None) -> tuple[tuple[str, ...], list[str]]:
    """All columns in lower case, and the names of those that are read; PromptFileError for doubles."""
    wanted = {*COLUMNS, *LABELS, asked_name(column or None)}
    every = [str(name) for name in file.schema_arrow.names]
    names = column_names(f"{path}:", every, column)
    return tuple(names), [one for one, name in zip(every, names, strict=True) if name in wanted]


def parquet_beside(file: Any, names: Sequence[str]) -> dict[str, list[object]]:
    """The first cells, as many as are looked through, of columns of text that are not read."""
    others = [
        one.name
        for one in file.schema_arrow
        if one.name not in names and str(one.type) in ("string", "large_string")
    ]
    batch = next(iter(file.iter_batches(LOOKED_THROUGH, columns=others)), None) if others else None
    found = {} if batch is None else batch.to_pydict()
    return {
        name.strip().lower(): [cell for cell in cells if cell is not None]
        for name, cells in found.items()
    }


def class_names(file: Any) -> dict[str, dict[int, str]]:
    """What the numbers of columns of labels mean, as Hugging Face datasets have them (ClassLabel)."""
    found: dict[str, dict[int, str]] = {}
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        told = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
        for key, feature in told["info"]["features"].items():
            if (name := key.strip().lower()) in LABELS and feature.get("_type") == "ClassLabel":
                found[name] = dict(enumerate(map(str, feature["names"])))
    return found


def parquet_record(
    row: Mapping[str, object], classes: Mapping[str, Mapping[int, str]]
) -> dict[str, object]:
    """A row of Parquet, with labels by their names; a number that has none is no label."""
    cells = {key.strip().lower(): value for key, value in row.items()}
    for name in classes.keys() & cells.keys():
        if isinstance(number := cells[name], int):
            cells[name] = classes[name].get(number)
    return cells


def unreadable_parquet(path: Path, error: Exception) -> PromptFileError:
    """What a library says of a file, in one line."""
    return PromptFileError(
        f"{path}: is not a readable Parquet file ({type(error).__name__}); make it anew"
    )
