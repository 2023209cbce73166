"""Copy a safetensors file with byte ranges zeroed, and compare the copy with what it came from.

`copy` and `verify` are the steps of `surgery`, which says what to zero.
"""

import contextlib
import hashlib
import mmap
import os
import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from threading import Event
from typing import BinaryIO

from nemo_prune.errors import CheckpointError, OutputError
from nemo_prune.header import Header
from nemo_prune.provenance import BLOCK, MODELSPEC_HASH

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

_CHUNK = 2**20  # stays in the processor's cache from reading to hashing and comparing
_AHEAD = 4  # chunks in memory for each file: new memory for each would take longer than all the rest
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


def copy(source: Source, target: BinaryIO, length: int, ranges: Ranges) -> None:
    """Copy the data to behind `length` bytes of header, zeroing `ranges`.

    Where the file system can, the files share their blocks (`new_header` sees to it that the data
    lie alike in both); else a megabyte at a time goes through memory, which takes less time than
    copy_file_range.
    """
    header = source.header
    shift = length - header.data_start
    # Only whole blocks can be shared.
    whole = min(header.size, header.data_start + -header.data_start % BLOCK)
    _copy_span(source, target, header.data_start, whole, shift)
    if not _share(source, target, whole, header.size, shift):
        _copy_span(source, target, whole, header.size, shift)
    for first, last in ranges.within(header.data_start, header.size):
        write_at(target, bytes(last - first), length + first)


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


def digests(source: Source, ranges: Ranges, stop: Event | None = None) -> tuple[str, str]:
    """The SHA-256 of the whole file, and that of its data with `ranges` zeroed.

    The second is taken only if the metadata state such a hash, else it is empty. The file is opened
    once more, so that another thread may read `source` meanwhile; it sets `stop` when nobody waits
    for the hashes any more.
    """
    header = source.header
    with (
        source.again() as mine,
        _Hasher(mine.read(0, header.data_start)) as whole,
        _Hasher(b"", MODELSPEC_HASH in header.metadata) as data,
    ):
        buffers = cycle([bytearray(_CHUNK) for _ in range(_AHEAD)])
        for first, buffer in zip(range(header.data_start, header.size, _CHUNK), buffers, strict=False):
            if stop is not None and stop.is_set():
                break
            last = min(first + _CHUNK, header.size)
            piece = mine.read(first, last, buffer)
            whole.update(piece)
            data.update(_zeroed(piece, ranges.within(first, last)))
        return whole.hexdigest(), data.hexdigest()


@dataclass(frozen=True)
class Verified:
    """What `verify` saw: the output's SHA-256, and how many bytes of data differ."""

    sha256: str
    changed: int


def verify(source: Source, target: BinaryIO, out: Path, start: bytes, ranges: Ranges) -> Verified:
    """Compare the files byte by byte, and hash the output while it is read.

    Raises OutputError unless `target` is `start` and the source's data with `ranges` zeroed.
    """
    header = source.header
    shift = len(start) - header.data_start
    from_disk(target)
    if target.seek(0, os.SEEK_END) != header.size + shift:
        raise _not_as_written(source, out)
    changed = 0
    buffer = bytearray(_CHUNK)
    # Past the caches a disk is read in whole blocks, to whole pages.
    pages = cycle([memoryview(mmap.mmap(-1, _CHUNK)) for _ in range(_AHEAD)])
    with _Hasher(b"") as whole:
        for place, page in zip(range(0, header.size + shift, _CHUNK), pages, strict=False):
            end = min(place + _CHUNK, header.size + shift)
            new = page[: _fill(target, place, page, end - place)]
            whole.update(new)
            first, last = (max(there - shift, header.data_start) for there in (place, end))
            old = source.read(first, last, buffer)
            chosen = list(ranges.within(first, last))
            changed += sum(high - low - old.count(0, low, high) for low, high in chosen)
            # Where rows were chosen this asks for zeros, everywhere else for the source's bytes.
            wanted = _zeroed(old, chosen)
            if place < len(start):
                wanted = bytearray(start[place : place + _CHUNK]) + wanted
            if wanted != new:
                raise _not_as_written(source, out)
        return Verified(whole.hexdigest(), changed)


def _zeroed(chunk: bytearray, chosen: Iterable[tuple[int, int]]) -> bytearray:
    """`chunk` with the chosen ranges zeroed; a copy where there are any, as it may be in use."""
    copied = None
    for low, high in chosen:
        copied = copied or bytearray(chunk)
        copied[low:high] = bytes(high - low)
    return copied or chunk


class _Hasher:
    """SHA-256 in a thread of its own, while the next bytes are read.

    Unless `wanted` it does nothing, and its hash is empty.
    """

    def __init__(self, start: bytes | bytearray, wanted: bool = True) -> None:
        self._hash = hashlib.sha256(start)
        self._pool = ThreadPoolExecutor(1) if wanted else None
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> "_Hasher":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def update(self, piece: bytearray | memoryview) -> None:
        """Hash `piece` next; it must not change before _AHEAD - 1 more have come."""
        if self._pool is not None:
            self._waiting.append(self._pool.submit(self._hash.update, piece))
            while len(self._waiting) >= _AHEAD:
                self._waiting.popleft().result()

    def hexdigest(self) -> str:
        while self._waiting:
            self._waiting.popleft().result()
        return self._hash.hexdigest() if self._pool is not None else ""


def _not_as_written(source: Source, out: Path) -> OutputError:
    source.check_unchanged()
    return OutputError(
        f"{out}: what was read back is not what was written; check the disk, or try another"
    )


def read_at(file: BinaryIO, start: int, end: int, into: bytearray | None = None) -> bytearray:
    """The bytes [start, end) of an unbuffered file; fewer only at its end.

    They are in `into` if that is of their length.
    """
    data = into if into is not None and len(into) == end - start else bytearray(end - start)
    with memoryview(data) as view:
        done = _fill(file, start, view, len(data))
    del data[done:]
    return data


def _fill(file: BinaryIO, start: int, view: memoryview, count: int) -> int:
    """Read at least `count` bytes into `view`, from `start` on; how many there were, if not so many."""
    file.seek(start)
    done = 0
    while done < count:
        step = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not step:
            break
        done += step
    return min(done, count)


def from_disk(file: BinaryIO) -> None:
    """Make what is read of `file` from now on come from the disk, not from memory just written.

    From then on it has to be read in whole blocks to whole pages. Only a file system that keeps
    files in memory alone, or an operating system without `posix_fadvise`, goes on as before.
    Raises OSError if the disk refuses what was written.
    """
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if fcntl is not None and hasattr(os, "O_DIRECT"):
        # Saves a copy in memory. A file system that cannot do it reads what was emptied above.
        with contextlib.suppress(OSError):
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_DIRECT)


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
