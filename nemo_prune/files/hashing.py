"""The hashes by which people and tools know a checkpoint."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_prune.files.header import Header, changed, unreadable

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


def file_sha256(path: Path) -> str:
    """The SHA-256 of the whole file at `path`, 64 lower-case hexadecimal digits.

    Raises CheckpointError if it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None


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
        raise unreadable(header.path, error) from None
    if size != header.size or start[8:] != header.raw:
        raise changed(header.path)
    return FileHashes(whole.hexdigest(), f"0x{data.hexdigest()}")


def joint_sha256(hashes: Mapping[str, str]) -> str:
    """One SHA-256 for the files of a folder, from theirs by their paths in it.

    That of the lines `HASH  PATH` of sha256sum, in the order of the paths' bytes.
    """
    lines = sorted((os.fsencode(place), sha256) for place, sha256 in hashes.items())
    text = b"".join(sha256.encode() + b"  " + place + b"\n" for place, sha256 in lines)
    return hashlib.sha256(text).hexdigest()
