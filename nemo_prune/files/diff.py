"""Compare two safetensors files byte by byte, a few megabytes at a time.

Independent of the code that rewrites files: of the package it uses the reading of headers alone,
so that a fault in one cannot hide in the other.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO

from nemo_prune.files.header import Header, Tensor, changed, quoted, unreadable

_CHUNK = 4 * 2**20
_NONZERO = re.compile(rb"[^\0]")

Runs = tuple[tuple[int, int], ...]
"""Row numbers as runs, first and last row of each, ascending."""


@dataclass(frozen=True)
class Changed:
    """A tensor whose bytes differ: in how many `bytes`, and in which rows of its first axis.

    A tensor without axes is one row, one of a single axis has one element a row.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    rows: Runs


@dataclass(frozen=True)
class Retyped:
    """A tensor of which the files hold different shapes or dtypes; its bytes are not compared."""

    name: str
    a: tuple[str, tuple[int, ...]]
    b: tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Difference:
    """All that differs between two files.

    `metadata` maps keys to their texts in the first and the second file, None where it lacks the
    key. `orders` names what both hold but in another order: "header" (the tensors as listed),
    "data" (the tensors as they lie), "metadata". `spelling`: the headers say the same in other
    bytes. If all of this is empty and false, the files are the same bytes.
    """

    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    retyped: tuple[Retyped, ...]
    changed: tuple[Changed, ...]
    metadata: dict[str, tuple[str | None, str | None]]
    orders: tuple[str, ...]
    spelling: bool

    def __bool__(self) -> bool:
        """True if anything differs."""
        return self != Difference((), (), (), (), {}, (), False)


def compare(a: Header, b: Header) -> Difference:
    """Return everything that differs between the files of the two headers.

    Memory does not grow with the size of the files, only with the number of runs of rows that
    differ. Raises CheckpointError if a file cannot be read or is not what its header was read from.
    """
    shared = [name for name in a.tensors if name in b.tensors]
    alike = [n for n in shared if _type(a.tensors[n]) == _type(b.tensors[n])]
    with opened(a) as file_a, opened(b) as file_b:
        found = []
        for name in sorted(alike, key=lambda n: a.tensors[n].start):
            one, two = a.tensors[name], b.tensors[name]
            if change := _compare_tensor(_pieces(file_a, a, one), _pieces(file_b, b, two), one):
                found.append(change)
    metadata = {
        key: (a.metadata.get(key), b.metadata.get(key))
        for key in {**a.metadata, **b.metadata}
        if a.metadata.get(key) != b.metadata.get(key)
    }
    orders = {
        "header": ([n for n in b.tensors if n in a.tensors], shared),
        "data": (_by_offset(b, shared), _by_offset(a, shared)),
        "metadata": (
            [k for k in b.metadata if k in a.metadata],
            [k for k in a.metadata if k in b.metadata],
        ),
    }
    difference = Difference(
        only_in_a=tuple(n for n in a.tensors if n not in b.tensors),
        only_in_b=tuple(n for n in b.tensors if n not in a.tensors),
        retyped=tuple(
            Retyped(n, _type(a.tensors[n]), _type(b.tensors[n])) for n in shared if n not in set(alike)
        ),
        changed=tuple(found),
        metadata=metadata,
        orders=tuple(what for what, (one, two) in orders.items() if one != two),
        spelling=False,
    )
    # Where the headers say different things, how they are spelt is of no interest.
    spelling = a.raw != b.raw and not replace(difference, changed=())
    return replace(difference, spelling=spelling)


def nonzero_rows(header: Header, rows: Mapping[str, Sequence[int]]) -> list[tuple[str, int]]:
    """Those of `rows`, by tensor, that hold a byte other than zero, as sorted (tensor, row).

    Tensors and rows that the file of `header` does not have are left out. Raises CheckpointError if
    it cannot be read.
    """
    found = []
    with opened(header) as file:
        for name in rows.keys() & header.tensors.keys():
            tensor = header.tensors[name]
            for row in rows[name]:
                if row < (tensor.shape[0] if tensor.shape else 0) and any(
                    read_span(file, header, *tensor.row(row))
                ):
                    found.append((name, row))
    return sorted(found)


def to_json(difference: Difference) -> dict[str, Any]:
    """What `diff --json` prints of a difference; rows as [first, last] of each run."""
    found = asdict(difference)
    found["metadata"] = {key: {"a": a, "b": b} for key, (a, b) in difference.metadata.items()}
    for entry in found["retyped"]:
        for side in "ab":
            entry[side] = dict(zip(("dtype", "shape"), entry[side], strict=True))
    return {"identical": not difference, **found}


def describe(difference: Difference) -> list[str]:
    """`difference` in lines for people."""
    lines = [f"only in the first: {quoted(name)}" for name in difference.only_in_a]
    lines += [f"only in the second: {quoted(name)}" for name in difference.only_in_b]
    for entry in difference.retyped:
        a, b = (f"{dtype} {list(shape)}" for dtype, shape in (entry.a, entry.b))
        lines.append(f"{quoted(entry.name)}: {a} in the first, {b} in the second")
    for change in difference.changed:
        lines.append(
            f"{quoted(change.name)} {change.dtype} {list(change.shape)}: "
            f"{rows_text(change.rows)}, {change.bytes} bytes"
        )
    for key, (old, new) in difference.metadata.items():
        a, b = ("absent" if text is None else quoted(text) for text in (old, new))
        lines.append(f"metadata {quoted(key)}: {a} in the first, {b} in the second")
    lines += [f"in another order: {what}" for what in difference.orders]
    if difference.spelling:
        lines.append("the headers say the same in other bytes")
    return lines or ["the files are the same bytes"]


def rows_text(rows: Runs) -> str:
    """Runs of rows for people: "row 3" or "rows 3, 5-9"."""
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in rows)
    return f"{'row' if text.isdigit() else 'rows'} {text}"


# ------------------------------------------------------------------------------------ comparing


def _type(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return tensor.dtype, tensor.shape


def _by_offset(header: Header, names: Sequence[str]) -> list[str]:
    # The end too: an empty tensor starts where the next one does.
    return sorted(names, key=lambda n: (header.tensors[n].start, header.tensors[n].end, n))


def _compare_tensor(old: Iterator[bytes], new: Iterator[bytes], tensor: Tensor) -> Changed | None:
    count = tensor.shape[0] if tensor.shape else 1
    runs: list[list[int]] = []
    different = position = 0
    for one, two in zip(old, new, strict=True):
        if one != two:
            # Integers are the one thing that Python can xor at the speed of memory.
            bits = int.from_bytes(one, "little") ^ int.from_bytes(two, "little")
            marks = bits.to_bytes(len(one), "little")
            different += len(marks) - marks.count(0)
            _add_rows(runs, marks, position, (tensor.end - tensor.start) * 8 // count)
        position += len(one)
    if not different:
        return None
    rows = tuple((first, last) for first, last in runs)
    return Changed(tensor.name, tensor.dtype, tensor.shape, different, rows)


def _add_rows(runs: list[list[int]], marks: bytes, position: int, row_bits: int) -> None:
    """Add to `runs` the rows in which `marks`, bytes of the tensor from `position` on, are not 0.

    In bits, because of dtypes that pack several elements into a byte.
    """
    place = 0
    while found := _NONZERO.search(marks, place):
        bit = (position + found.start()) * 8
        first, last = bit // row_bits, (bit + 7) // row_bits
        if runs and first <= runs[-1][1] + 1:
            runs[-1][1] = max(last, runs[-1][1])
        else:
            runs.append([first, last])
        place = max(found.start() + 1, (last + 1) * row_bits // 8 - position)


# -------------------------------------------------------------------------------------- reading


@contextmanager
def opened(header: Header) -> Iterator[BinaryIO]:
    """The file that `header` was read from; CheckpointError if it changed, or changes meanwhile."""
    try:
        file = header.path.open("rb")
    except OSError as error:
        raise unreadable(header.path, error) from None
    with file:
        before = _state(file)
        if before[0] != header.size or read_span(file, header, 0, header.data_start)[8:] != header.raw:
            raise changed(header.path)
        yield file
        if _state(file) != before:
            raise changed(header.path)


def _state(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _pieces(file: BinaryIO, header: Header, tensor: Tensor) -> Iterator[bytes]:
    for start in range(tensor.start, tensor.end, _CHUNK):
        yield read_span(file, header, start, min(start + _CHUNK, tensor.end))


def read_span(file: BinaryIO, header: Header, start: int, end: int) -> bytes:
    """The bytes [start, end) of an `opened` file."""
    try:
        file.seek(start)
        data = file.read(end - start)
    except OSError as error:
        raise unreadable(header.path, error) from None
    if len(data) < end - start:
        raise changed(header.path)
    return data
