"""Compare a file on the disk with what it was to become, while the rest of it is still written.

Each part is flushed to the disk and read again through another descriptor, once memory has
forgotten it; so the disk writes, the disk reads and the processor compares at the same time.
"""

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from nemo_prune.errors import OutputError
from nemo_prune.files.streams import Ranges, Source, fill, zeroed

_CHUNK = 2**20  # stays in the processor's cache while it is compared
_AHEAD = 8  # parts that may be written and not yet compared; their source is still in memory then


class ReadBack:
    """Reads back `target`, which becomes `out`: some header of `length` bytes, and `source`'s data.

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

    def __enter__(self) -> "ReadBack":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def written(self, end: int) -> None:
        """The data up to the byte `end` of `target` are written; waits if too much is not compared."""
        end = end if end == self._size else end // _CHUNK * _CHUNK
        if end <= self._next:
            return
        drop(self._target, self._next, end)  # which is how the disk begins to write
        self._waiting.append(self._pool.submit(self._compare, self._next, end))
        self._next = end
        while len(self._waiting) > _AHEAD:
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
        changed = 0
        # Opened again, as the other thread, and who writes, seek in theirs.
        with self._source.again() as source, Path(self._target.name).open("rb", buffering=0) as file:
            from_disk(self._target, begin, end)
            if hasattr(os, "posix_fadvise"):  # all at once: a disk is fastest with much to do
                os.posix_fadvise(file.fileno(), begin, end - begin, os.POSIX_FADV_WILLNEED)
            for place in range(begin, end, _CHUNK):
                stop = min(place + _CHUNK, end)
                new = page[: fill(file, place, page, stop - place)]
                first, last = (max(there - shift, header.data_start) for there in (place, stop))
                old = source.read(first, last, buffer)
                chosen = list(self._ranges.within(first, last))
                changed += sum(high - low - old.count(0, low, high) for low, high in chosen)
                # Where rows were chosen this asks for zeros, everywhere else for the source's bytes.
                wanted = zeroed(old, chosen)
                if place < len(start):
                    wanted = bytearray(start[place:stop]) + wanted
                if wanted != new:
                    raise self._not_as_written()
        return changed

    def _not_as_written(self) -> OutputError:
        self._source.check_unchanged()
        return OutputError(
            f"{self._out}: what was read back is not what was written; check the disk, or try another"
        )


def from_disk(target: BinaryIO, begin: int, end: int) -> None:
    """Make the next who reads [begin, end) of `target` get it from the disk, not from memory.

    Whole blocks are forgotten. Only a file system that keeps files in memory alone, or an operating
    system without `posix_fadvise`, goes on as before. Raises OSError if the disk refuses what was
    written.
    """
    # Reading past the caches (O_DIRECT) would save a copy, but takes turns with whoever writes.
    os.fsync(target.fileno())
    drop(target, begin, end)


def drop(file: BinaryIO, begin: int, end: int) -> None:
    """Begin to write [begin, end) to the disk, and forget what is there already; waits for neither."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), begin, end - begin, os.POSIX_FADV_DONTNEED)
