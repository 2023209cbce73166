"""Keep the rows that were zeroed, and bring a pruned file back to what it was, bit for bit.

An undo file is a small safetensors file. It holds, under the name of each tensor that lost rows,
these rows as they were, in ascending order; as ``nemo_prune_undo.header`` the first bytes of the
source (length field and JSON); and the metadata::

    nemo_prune_undo.source_sha256   of the whole file that was pruned
    nemo_prune_undo.output_sha256   of the whole file that came out
    nemo_prune_undo.rows            {tensor: [rows]} as JSON

Who has it and the pruned file has the memorized pictures back: keep it where the source was.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nemo_prune.errors import OutputError, UndoError, option
from nemo_prune.files.atomic import (
    NO_MODELS,
    check_output,
    check_place,
    check_suffix,
    new_file,
    refuse_same,
    same_file,
)
from nemo_prune.files.hashing import file_sha256
from nemo_prune.files.header import Header, Tensor, encode_header, read_header
from nemo_prune.files.rewrite import Ranges, Source, copy, read_at, write_at

SOURCE_SHA256 = "nemo_prune.source_sha256"
"""The metadata key under which a pruned file gives the hash of the file that it was made from."""
_PREFIX = "nemo_prune_undo."
UNDO_HEADER = _PREFIX + "header"
"""The tensor that only undo files have."""
_SOURCE, _OUTPUT, _ROWS = (_PREFIX + key for key in ("source_sha256", "output_sha256", "rows"))
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Undo:
    """A read undo file: its header, the hashes of the two whole files, and the rows by tensor."""

    header: Header
    source_sha256: str
    output_sha256: str
    rows: dict[str, list[int]]


@dataclass(frozen=True)
class Restored:
    """What was restored: `sha256` is of the whole file or folder, `rows` counts those of weights brought
    back, as `apply` counts them: a bias goes along with its row.

    `left_out`, of a folder, are the paths in the source of what was left out of the pruned folder, and
    so of this one; `changed` those of its configs that are not the source's, and stay as they are.
    """

    path: Path
    sha256: str
    rows: int
    left_out: tuple[str, ...] | None = None
    changed: tuple[str, ...] = ()


def check_undo(undo: Path, out: Path) -> None:
    """Raise OutputError if the rows removed from `out` could not be kept in a new file `undo`."""
    if os.path.lexists(undo):
        raise OutputError(
            f"{undo}: exists already, and undo files are never replaced; choose another name"
        )
    check_suffix(undo, NO_MODELS)
    check_place(undo, overwrite=False)
    refuse_same([out, undo])


def row_places(header: Header, rows: Mapping[str, Sequence[int]]) -> list[tuple[int, int]]:
    """Where `rows` (by tensor) lie in the file: first byte, and the one after the last."""
    return [header.tensors[name].row(row) for name in rows for row in rows[name]]


def undo_bytes(header: Header, rows: Mapping[str, Sequence[int]]) -> int:
    """What an undo file of these rows (by tensor) takes, but for its own header's few kilobytes."""
    return header.data_start + sum(last - first for first, last in row_places(header, rows))


def write_undo(
    undo: Path,
    source: Source,
    rows: Mapping[str, Sequence[int]],
    source_sha256: str,
    output_sha256: str,
) -> None:
    """Keep `rows` (by tensor, ascending) of `source` and its header in the new file `undo`.

    The file is read back before it gets its name, and gives others no more rights than the source.
    Raises OutputError where it cannot be written, CheckpointError if the source cannot be read.
    """
    header = source.header
    places = [(0, header.data_start), *row_places(header, rows)]
    start = _undo_header(header, rows, source_sha256, output_sha256)
    with new_file(undo, overwrite=False, like=header.path) as file:
        write_at(file, start, 0)
        position = len(start)
        for first, last in places:
            write_at(file, source.read(first, last), position)
            position += last - first
        position = len(start)
        sound = read_at(file, 0, position) == start
        for first, last in places:
            sound = sound and read_at(file, position, position + last - first) == source.read(
                first, last
            )
            position += last - first
        if not sound:
            raise OutputError(
                f"{undo}: what was read back is not what was written; check the disk, or try another"
            )


def _undo_header(
    header: Header, rows: Mapping[str, Sequence[int]], source_sha256: str, output_sha256: str
) -> bytes:
    entries: dict[str, object] = {
        "__metadata__": {
            "format": "pt",
            _SOURCE: source_sha256,
            _OUTPUT: output_sha256,
            _ROWS: json.dumps(rows, separators=(",", ":")),
        },
        UNDO_HEADER: {
            "dtype": "U8",
            "shape": [header.data_start],
            "data_offsets": [0, header.data_start],
        },
    }
    position = header.data_start
    for name, numbers in rows.items():
        tensor = header.tensors[name]
        first, last = tensor.row(0)
        end = position + (last - first) * len(numbers)
        shape = (len(numbers), *tensor.shape[1:])
        entries[name] = {"dtype": tensor.dtype, "shape": shape, "data_offsets": (position, end)}
        position = end
    return encode_header(entries)


def read_undo(path: Path) -> Undo:
    """Return the undo file at `path`; UndoError or CheckpointError, one line, if it is not one."""
    header = read_header(path)
    stated = header.metadata
    try:
        rows = json.loads(stated.get(_ROWS, ""))
    except (ValueError, RecursionError):
        rows = None
    before, after = stated.get(_SOURCE, ""), stated.get(_OUTPUT, "")
    first = header.tensors.get(UNDO_HEADER)
    sound = (
        isinstance(rows, dict)
        and all(_SHA256.fullmatch(text) for text in (before, after))
        and first is not None
        and (first.dtype, len(first.shape)) == ("U8", 1)
        and header.tensors.keys() == {UNDO_HEADER, *rows}
        and all(_are_rows(rows[name], header.tensors[name]) for name in rows)
    )
    if not sound:
        raise UndoError(f"{path}: is not a file that {option('undo')} wrote; give that one")
    return Undo(header, before, after, rows)


def restore(pruned: Path, undo: Path, out: Path, overwrite: bool = False) -> Restored:
    """Write to `out` the file that `pruned` was made from, equal in every byte.

    Uses a few megabytes whatever the size of the file. Raises UndoError if `undo` is not the undo
    file of exactly this `pruned`, CheckpointError for files that cannot be read, OutputError if
    `out` may not or cannot be written; then nothing is left behind.
    """
    removed = read_undo(undo)
    header = read_header(pruned)
    if same_file(out, undo):
        raise OutputError(f"{out}: is the undo file itself, which is kept; choose another name")
    check_output(header.path, out, overwrite)
    mismatch = UndoError(
        f"{pruned}: is not the file that {undo} belongs to, or was changed since; restore that one"
    )
    if header.metadata.get(SOURCE_SHA256) != removed.source_sha256 or not _fits(removed, header):
        raise mismatch
    length = removed.header.tensors[UNDO_HEADER].shape[0]
    with Source(header) as source, Source(removed.header) as rows:
        if file_sha256(pruned) != removed.output_sha256:
            raise mismatch
        with new_file(out, overwrite) as target:
            copy(source, target, length, Ranges([]))
            for place, first, last in _moves(removed, header, length):
                write_at(target, rows.read(first, last), place)
            sha256 = _hash(target)
            source.check_unchanged()
            if sha256 != removed.source_sha256:
                raise UndoError(
                    f"{undo}: does not bring back the file that was pruned, so one of the two is "
                    f"damaged; copy both again"
                )
    weights = (name for name in removed.rows if len(removed.header.tensors[name].shape) > 1)
    return Restored(out, sha256, sum(len(removed.rows[name]) for name in weights))


def _moves(removed: Undo, header: Header, length: int) -> Iterator[tuple[int, int, int]]:
    """(place in the restored file, start and end in the undo file) of the header and all rows."""
    first = removed.header.tensors[UNDO_HEADER]
    yield 0, first.start, first.end
    for name, rows in removed.rows.items():
        for number, row in enumerate(rows):
            place = header.tensors[name].row(row)[0] - header.data_start + length
            yield place, *removed.header.tensors[name].row(number)


def _hash(file: BinaryIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _are_rows(rows: object, tensor: Tensor) -> bool:
    if not isinstance(rows, list) or not all(type(row) is int and row >= 0 for row in rows):
        return False
    return rows == sorted(set(rows)) and tensor.shape[:1] == (len(rows),)


def _fits(removed: Undo, header: Header) -> bool:
    """Whether the rows have their place in the pruned file."""
    for name, rows in removed.rows.items():
        kept, tensor = removed.header.tensors[name], header.tensors.get(name)
        if tensor is None or (kept.dtype, kept.shape[1:]) != (tensor.dtype, tensor.shape[1:]):
            return False
        if not tensor.shape or (rows and rows[-1] >= tensor.shape[0]):
            return False
    return True
