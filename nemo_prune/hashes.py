"""The hashes by which people and tools know a checkpoint; no torch."""

import hashlib
from dataclasses import dataclass

from nemo_prune.errors import CheckpointError
from nemo_prune.header import Header

_CHUNK = 2**20


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
