"""Copy a safetensors file with a new header and with byte ranges zeroed, and read the copy back.

The data are copied at the speed of `cp`, or their blocks are shared where the file system can. While
that goes on, each part that is written is flushed to the disk, read again through another descriptor
once memory has dropped it, and compared with the source; and the source is hashed, which the new
header states. So the header is written and compared last. The disk writes, the disk reads and the
processor compares at the same time: the same steps one after the other take half as long again
(`benchmarks/RESULTS.md`). A few megabytes of memory, whatever the size of the file.
"""

import contextlib
import hashlib
import os
import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from threading import Event
from typing import BinaryIO

from nemo_prune.errors import OutputError
from nemo_prune.files.header import Header, changed, unreadable

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

BLOCK = 4096
"""Bytes of a block, the unit in which file systems share data between files."""

_CHUNK = 2**20  # stays in the processor's cache from reading to writing, hashing or comparing
_SEGMENT = 2**26  # written before it is read back
_PENDING = 8  # segments written and not yet compared; their source is still in memory then
_BUFFERS = 4  # of a chunk each, reused: allocating them anew would take longer than all the rest
_FICLONERANGE = 0x4020940D  # of Linux; other systems refuse what they do not know
_NO_HASH = "0" * 64

MakeHeader = Callable[[str, str], bytes]
"""The output's first bytes, given the SHA-256 of the source and of the output's data."""


@dataclass(frozen=True)
class Rewritten:
    """What `rewrite` did: how many bytes of data differ, and the SHA-256 of the two whole files.

    `sha256`, of the output, is None unless it was asked for.
    """

    bytes_changed: int
    source_sha256: str
    sha256: str | None


class Ranges:
    """Byte ranges [start, end) of a file, sorted and disjoint."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._ranges = sorted(ranges)
        self._ends = [end for _, end in self._ranges]

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of the ranges that lie in [start, end), counted from `start`."""
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
                raise changed(self.header.path)
            if self.read(0, self.header.data_start)[8:] != self.header.raw:
                raise changed(self.header.path)
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
            raise changed(self.header.path)
        return data

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file was written to since it was opened."""
        if self._now() != self._state:
            raise changed(self.header.path)

    def fileno(self) -> int:
        return self._file.fileno()

    def again(self) -> "Source":
        """The same file opened once more, to be read in another thread."""
        other = Source(self.header)
        if other._state != self._state:
            other._file.close()
            raise changed(self.header.path)
        return other

    def _now(self) -> tuple[int, ...]:
        status = os.fstat(self._file.fileno())
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def rewrite(
    source: Source,
    target: BinaryIO,
    out: Path,
    ranges: Ranges,
    make_header: MakeHeader,
    *,
    data_hashed: bool = False,
    hashed: bool = False,
) -> Rewritten:
    """Fill `target`, which becomes `out`, with the source under another header and `ranges` zeroed.

    Args:
        source: entered.
        target: empty and unbuffered.
        out: for errors.
        ranges: of bytes of the source's data.
        make_header: the length of its result must not depend on the hashes.
        data_hashed: whether `make_header` uses its second hash; else it gets the first one twice.
        hashed: whether the output's hash is wanted, which takes as long as the source's.

    Raises:
        OutputError: what was read back from the disk is not what was written.
        CheckpointError: the source cannot be read, or changed meanwhile.
        OSError: the output cannot be written.
    """
    length = len(make_header(_NO_HASH, _NO_HASH))
    before = bytes(source.read(0, source.header.data_start))
    stop = Event()

    def hashing() -> tuple[bytes, str, str | None]:
        wanted = [(before, Ranges([])), (b"", ranges)]
        found = _sha256s(source, wanted[: 1 + data_hashed], stop)
        start = make_header(found[0], found[-1])
        # The header states a hash of the whole source, so the output's cannot be taken beside it.
        return start, found[0], _sha256s(source, [(start, ranges)], stop)[0] if hashed else None

    with ThreadPoolExecutor(1) as pool:
        hashes = pool.submit(hashing)
        try:
            with _ReadBack(source, target, out, length, ranges) as back:
                copy(source, target, length, ranges, back.written)
                start, source_sha256, sha256 = hashes.result()
                write_at(target, start, 0)
                return Rewritten(back.finish(start), source_sha256, sha256)
        finally:
            stop.set()  # an interrupt must not wait for a large file's hash


# -------------------------------------------------------------------------------------- copying


def copy(
    source: Source,
    target: BinaryIO,
    length: int,
    ranges: Ranges,
    written: Callable[[int], None] | None = None,
) -> None:
    """Copy the data to behind `length` bytes of header, zeroing `ranges`.

    Where the file system can, the files share their blocks, if the data begin at the same place of a
    block in both; else a megabyte at a time goes through memory, which takes less time than
    copy_file_range. `written` is called now and then with the byte of `target` up to which all data
    are as they will stay.
    """
    header = source.header
    shift = length - header.data_start
    # Only whole blocks can be shared.
    whole = min(header.size, header.data_start + -header.data_start % BLOCK)
    count = header.size - whole
    shared = count > 0 and share_blocks(source.fileno(), target.fileno(), whole, count, whole + shift)
    buffer = bytearray(_CHUNK)
    for first, last in pairwise((header.data_start, *range(whole, header.size, _SEGMENT), header.size)):
        if first < whole or not shared:
            for place in range(first, last, _CHUNK):
                write_at(target, source.read(place, min(place + _CHUNK, last), buffer), place + shift)
        for low, high in ranges.within(first, last):
            write_at(target, bytes(high - low), first + low + shift)
        if written is not None:
            written(last + shift)


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
        # Another file system or disk, blocks that do not lie alike, no space (copying says so then).
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


def write_at(file: BinaryIO, data: bytes | bytearray | memoryview, place: int) -> None:
    """Write all of `data` to an unbuffered file, from the byte `place` on."""
    rest = memoryview(data)
    while rest:
        # Not os.pwrite: Windows has none.
        file.seek(place)
        step = file.write(rest)
        place += step
        rest = rest[step:]


# -------------------------------------------------------------------------------- reading back


class _ReadBack:
    """Compares `target`, which becomes `out`, with some header of `length` bytes and `source`'s data.

    `written` and `finish` raise OutputError unless it is the header given to `finish` and the data
    with `ranges` zeroed, CheckpointError if the source changed. What is written after it was read
    back would not be seen, so only the header may be.
    """

    def __init__(self, source: Source, target: BinaryIO, out: Path, length: int, ranges: Ranges) -> None:
        self._source, self._target, self._out, self._ranges = source, target, out, ranges
        self._shift = length - source.header.data_start
        self._size = source.header.size + self._shift
        # The header comes last; the disk is read in whole chunks, so what shares one with it too.
        self._first = self._next = min(-(-length // _CHUNK) * _CHUNK, self._size)
        # Several, so that the disk always has something to read.
        self._pool = ThreadPoolExecutor(4)
        self._waiting: deque[Future[int]] = deque()
        self._changed = 0

    def __enter__(self) -> "_ReadBack":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def written(self, end: int) -> None:
        """The data up to the byte `end` of `target` are written; waits if too much is not compared."""
        end = end if end == self._size else end // _CHUNK * _CHUNK
        if end <= self._next:
            return
        _drop(self._target, self._next, end)  # which is how the disk begins to write
        self._waiting.append(self._pool.submit(self._compare, self._next, end))
        self._next = end
        while len(self._waiting) > _PENDING:
            self._changed += self._waiting.popleft().result()

    def finish(self, start: bytes) -> int:
        """All is written, with `start` as the header; returns how many bytes of data differ."""
        self._waiting.append(self._pool.submit(self._compare, 0, self._first, start))
        while self._waiting:
            self._changed += self._waiting.popleft().result()
        if os.fstat(self._target.fileno()).st_size != self._size:
            raise self._not_as_written()
        return self._changed

    def _compare(self, begin: int, end: int, start: bytes = b"") -> int:
        """Compare the bytes from `begin` to `end`; how many of the data differ from the source's."""
        header, shift = self._source.header, self._shift
        buffer, page = bytearray(_CHUNK), memoryview(bytearray(_CHUNK))
        count = 0
        # Opened again, as the other threads seek in theirs.
        with self._source.again() as source, Path(self._target.name).open("rb", buffering=0) as file:
            from_disk(self._target, begin, end)
            if hasattr(os, "posix_fadvise"):  # all at once: a disk is fastest with much to do
                os.posix_fadvise(file.fileno(), begin, end - begin, os.POSIX_FADV_WILLNEED)
            for place in range(begin, end, _CHUNK):
                stop = min(place + _CHUNK, end)
                new = page[: _fill(file, place, page, stop - place)]
                first, last = (max(there - shift, header.data_start) for there in (place, stop))
                old = source.read(first, last, buffer)
                chosen = list(self._ranges.within(first, last))
                count += sum(high - low - old.count(0, low, high) for low, high in chosen)
                # Zeros where rows were chosen, everywhere else the source's bytes.
                wanted = zeroed(old, chosen)
                if place < len(start):
                    wanted = bytearray(start[place:stop]) + wanted
                if wanted != new:
                    raise self._not_as_written()
        return count

    def _not_as_written(self) -> OutputError:
        self._source.check_unchanged()
        return OutputError(
            f"{self._out}: what was read back is not what was written; check the disk, or try another"
        )


def from_disk(target: BinaryIO, begin: int, end: int) -> None:
    """Make the next reader of [begin, end) of `target` get it from the disk, not from memory.

    Whole blocks are dropped. Only a file system that keeps files in memory alone, or an operating
    system without `posix_fadvise`, goes on as before. Raises OSError if the disk refuses what was
    written.
    """
    # Reading past the caches (O_DIRECT) would save a copy, but waits while another thread writes.
    os.fsync(target.fileno())
    _drop(target, begin, end)


def _drop(file: BinaryIO, begin: int, end: int) -> None:
    """Begin to write [begin, end) to the disk, and drop what is there already; waits for neither."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), begin, end - begin, os.POSIX_FADV_DONTNEED)


# -------------------------------------------------------------------------------------- hashing


def _sha256s(source: Source, wanted: Sequence[tuple[bytes, Ranges]], stop: Event) -> list[str]:
    """For each of `wanted` the SHA-256 of these bytes and the source's data with these ranges zeroed.

    Another thread may read `source` meanwhile, and sets `stop` when the hashes are not needed any
    more.
    """
    size = source.header.size
    with contextlib.ExitStack() as stack:
        mine = stack.enter_context(source.again())
        hashers = [stack.enter_context(_Hasher(start)) for start, _ in wanted]
        buffers = cycle([bytearray(_CHUNK) for _ in range(_BUFFERS)])
        for first, buffer in zip(range(source.header.data_start, size, _CHUNK), buffers, strict=False):
            if stop.is_set():
                break
            last = min(first + _CHUNK, size)
            piece = mine.read(first, last, buffer)
            for hasher, (_, ranges) in zip(hashers, wanted, strict=True):
                hasher.update(zeroed(piece, ranges.within(first, last)))
        return [hasher.hexdigest() for hasher in hashers]


class _Hasher:
    """SHA-256 in a thread of its own, while the next bytes are read."""

    def __init__(self, start: bytes) -> None:
        self._hash = hashlib.sha256(start)
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> "_Hasher":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def update(self, piece: bytearray) -> None:
        """Hash `piece` next; it must not change before _BUFFERS - 1 more have come."""
        self._waiting.append(self._pool.submit(self._hash.update, piece))
        self._wait(_BUFFERS - 1)

    def hexdigest(self) -> str:
        self._wait(0)
        return self._hash.hexdigest()

    def _wait(self, most: int) -> None:
        while len(self._waiting) > most:
            self._waiting.popleft().result()
