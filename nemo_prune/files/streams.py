"""Copy a safetensors file with byte ranges zeroed, in a few megabytes of memory."""

import os
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from nemo_prune.checkpoint.provenance import BLOCK
from nemo_prune.errors import CheckpointError
from nemo_prune.files.header import Header

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

_CHUNK = 2**20  # stays in the processor's cache from reading to writing
_SEGMENT = 2**26  # what is written before it is told of
_FICLONERANGE = 0x4020940D  # of Linux; other systems refuse what they do not know


class Ranges:
    """Byte ranges in the source, sorted and apart from each other."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self._ranges = sorted(ranges)
        self._ends = [end for _, end in self._ranges]

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of the ranges lies in [start, end), counted from `start`."""
        for i in range(bisect_right(self._ends, start), len(self._ranges)):
            first, last = self._ranges[i]
            if first >= end:
                return
            yield max(first, start) - start, min(last, end) - start


class Source:
    """The file that `header` was read from, open; its OSErrors and changes are CheckpointErrors."""

    def __init__(self, header: Header) -> None:
        self.header = header
        try:
            self._file = header.path.open("rb", buffering=0)
        except OSError as error:
            raise unreadable(header.path, error) from None
        self._state = self._now()

    def __enter__(self) -> "Source":
        try:
            if os.fstat(self._file.fileno()).st_size != self.header.size:
                raise self._changed()
            if self.read(0, self.header.data_start)[8:] != self.header.raw:
                raise self._changed()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, start: int, end: int, into: bytearray | None = None) -> bytearray:
        """The bytes [start, end), as `read_at` gives them."""
        try:
            data = read_at(self._file, start, end, into)
        except OSError as error:
            raise unreadable(self.header.path, error) from None
        if len(data) < end - start:
            raise self._changed()
        return data

    def check_unchanged(self) -> None:
        if self._now() != self._state:
            raise self._changed()

    def fileno(self) -> int:
        return self._file.fileno()

    def again(self) -> "Source":
        """The same file opened once more, to be read in another thread."""
        other = Source(self.header)
        if other._state != self._state:
            other._file.close()
            raise self._changed()
        return other

    def _now(self) -> tuple[int, ...]:
        status = os.fstat(self._file.fileno())
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _changed(self) -> CheckpointError:
        return CheckpointError(
            f"{self.header.path}: changed while it was read; wait until it is whole, then try again"
        )


def copy(
    source: Source,
    target: BinaryIO,
    length: int,
    ranges: Ranges,
    written: Callable[[int], None] | None = None,
) -> None:
    """Copy the data to behind `length` bytes of header, zeroing `ranges`.

    Where the file system can, the files share their blocks (`new_header` sees to it that the data
    lie alike in both); else a megabyte at a time goes through memory, which takes less time than
    copy_file_range. `written` is told now and then up to which byte of `target` all data are as
    they will stay.
    """
    header = source.header
    shift = length - header.data_start
    # Only whole blocks can be shared.
    whole = min(header.size, header.data_start + -header.data_start % BLOCK)
    shared = _share(source, target, whole, header.size, shift)
    places = (header.data_start, *range(whole, header.size, _SEGMENT), header.size)
    for first, last in pairwise(places):
        if first < whole or not shared:
            _copy_span(source, target, first, last, shift)
        for low, high in ranges.within(first, last):
            write_at(target, bytes(high - low), first + low + shift)
        if written is not None:
            written(last + shift)


def _copy_span(source: Source, target: BinaryIO, start: int, end: int, shift: int) -> None:
    buffer = bytearray(_CHUNK)
    for first in range(start, end, _CHUNK):
        write_at(target, source.read(first, min(first + _CHUNK, end), buffer), first + shift)


def _share(source: Source, target: BinaryIO, start: int, end: int, shift: int) -> bool:
    """Let `target` share the source's blocks from `start` to its end; False if that cannot be."""
    count = end - start
    return count > 0 and share_blocks(source.fileno(), target.fileno(), start, count, start + shift)


def share_blocks(source: int, target: int, start: int = 0, count: int = 0, place: int = 0) -> bool:
    """Let the file `target` share blocks of `source`, all after `start` if `count` is 0.

    False, and nothing done, where the file system cannot.
    """
    if fcntl is None:
        return False
    wanted = struct.pack("=qQQQ", source, start, count, place)
    try:
        fcntl.ioctl(target, _FICLONERANGE, wanted)
    except OSError:
        # Another file system, another disk, blocks that do not lie alike, no space: copying tells.
        return False
    return True


def zeroed(chunk: bytearray, chosen: Iterable[tuple[int, int]]) -> bytearray:
    """`chunk` with the chosen ranges zeroed; a copy where there are any, as it may be in use."""
    copied = None
    for low, high in chosen:
        copied = copied or bytearray(chunk)
        copied[low:high] = bytes(high - low)
    return copied or chunk


def read_at(file: BinaryIO, start: int, end: int, into: bytearray | None = None) -> bytearray:
    """The bytes [start, end) of an unbuffered file; fewer only at its end.

    They are in `into` if that is of their length.
    """
    data = into if into is not None and len(into) == end - start else bytearray(end - start)
    with memoryview(data) as view:
        done = fill(file, start, view, len(data))
    del data[done:]
    return data


def fill(file: BinaryIO, start: int, view: memoryview, count: int) -> int:
    """Read at least `count` bytes into `view`, from `start` on; how many there were, if not so many."""
    file.seek(start)
    done = 0
    while done < count:
        step = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not step:
            break
        done += step
    return min(done, count)


def write_at(file: BinaryIO, data: bytes | bytearray | memoryview, place: int) -> None:
    """Write all of `data` to an unbuffered file, from the byte `place` on."""
    rest = memoryview(data)
    while rest:
        # Not os.pwrite: Windows has none.
        file.seek(place)
        step = file.write(rest)
        place += step
        rest = rest[step:]


def unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read ({error.strerror or error})")
