"""The hashes by which people and tools know a checkpoint; no torch."""

import contextlib
import hashlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from threading import Event

from nemo_prune.errors import CheckpointError
from nemo_prune.files.header import Header
from nemo_prune.files.streams import Ranges, Source, zeroed

_CHUNK = 2**20
_AHEAD = 4  # chunks in memory: new memory for each would take longer than all the rest


@dataclass(frozen=True)
class FileHashes:
    """`sha256` is of the whole file; `modelspec` is 0x and the SHA-256 of all behind the header.

    Model collections find a file by the first. ModelSpec calls the second
    `modelspec.hash_sha256`: it does not depend on the metadata. All digits are lower-case.
    """

    sha256: str
    modelspec: str

    @property
    def a1111(self) -> str:
        """AUTOMATIC1111's short hash: the first ten digits of `sha256`."""
        return self.sha256[:10]


def file_hashes(header: Header) -> FileHashes:
    """The hashes of the file that `header` was read from, in one pass of constant memory.

    Raises CheckpointError if it cannot be read, or is shorter or longer than it was.
    """
    try:
        with header.path.open("rb", buffering=0) as file:
            start = file.read(header.data_start)
            whole, data = hashlib.sha256(start), hashlib.sha256()
            size = len(start)
            while piece := file.read(_CHUNK):
                whole.update(piece)
                data.update(piece)
                size += len(piece)
    except OSError as error:
        raise CheckpointError(f"{header.path}: cannot be read ({error.strerror or error})") from None
    if size != header.size or start[8:] != header.raw:
        raise CheckpointError(
            f"{header.path}: changed while it was read; wait until it is whole, then try again"
        )
    return FileHashes(whole.hexdigest(), f"0x{data.hexdigest()}")


def sha256s(
    source: Source, wanted: Sequence[tuple[bytes, Ranges]], stop: Event | None = None
) -> list[str]:
    """For each of `wanted` the SHA-256 of these bytes and the source's data with these ranges zeroed.

    The file is opened once more, so that another thread may read `source` meanwhile; it sets `stop`
    when nobody waits for the hashes any more.
    """
    size = source.header.size
    with contextlib.ExitStack() as stack:
        mine = stack.enter_context(source.again())
        hashers = [stack.enter_context(_Hasher(start)) for start, _ in wanted]
        buffers = cycle([bytearray(_CHUNK) for _ in range(_AHEAD)])
        places = range(source.header.data_start, size, _CHUNK)
        for first, buffer in zip(places, buffers, strict=False):
            if stop is not None and stop.is_set():
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
        """Hash `piece` next; it must not change before _AHEAD - 1 more have come."""
        self._waiting.append(self._pool.submit(self._hash.update, piece))
        while len(self._waiting) >= _AHEAD:
            self._waiting.popleft().result()

    def hexdigest(self) -> str:
        while self._waiting:
            self._waiting.popleft().result()
        return self._hash.hexdigest()
