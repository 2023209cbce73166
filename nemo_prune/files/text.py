"""Text files that users give: read whole, with a one-line error for whatever is wrong with them."""

import codecs
import stat
from pathlib import Path

from nemo_prune.errors import NemoPruneError

MAX_BYTES = 256 * 2**20
"""Far above any list of prompts or neurons, far below a model handed in by mistake."""


LFS_POINTER = b"version https://git-lfs"
"""How the files begin that git-lfs leaves in place of contents that were not fetched."""


def read_text(path: Path, error: type[NemoPruneError], kind: str, wanted: str) -> str:
    """The UTF-8 text of the file at `path`, with or without a byte order mark.

    Raises `error` if it cannot be read: one line that says why, and to give `wanted`; `kind` is what
    the file should be.
    """
    content = read_bytes(path, error, kind, wanted)
    refuse_pointer(content, path, error)
    return decoded(content, path, error, wanted)


def refuse_pointer(start: bytes, path: Path, error: type[NemoPruneError]) -> None:
    """Raise `error` if a file that begins so is a git-lfs pointer."""
    if start.startswith(LFS_POINTER):
        raise error(f"{path}: is a git-lfs pointer, not the file itself; run `git lfs pull` to fetch it")


def read_bytes(path: Path, error: type[NemoPruneError], kind: str, wanted: str) -> bytes:
    """All of the file at `path`; raises as `read_text`."""
    size = check_regular(path, error, wanted)
    if size > MAX_BYTES:
        raise error(f"{path}: is too large, {size} bytes are too many for {kind}; give {wanted}")
    try:
        return path.read_bytes()
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"{path}: cannot be read ({reason})") from None


def check_regular(path: Path, error: type[NemoPruneError], wanted: str) -> int:
    """The size of the regular file at `path`; raises as `read_text` if there is none."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise error(f"{path}: cannot be read, it is a folder; give {wanted}")
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path}: is not a regular file; give {wanted}")
        return status.st_size
    except FileNotFoundError:
        raise error(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"{path}: cannot be read ({reason})") from None


def decoded(content: bytes, path: Path, error: type[NemoPruneError], wanted: str) -> str:
    """UTF-8 as text, without a byte order mark; raises as `read_text`."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # UTF-16's begins the first
            raise error(f"{path}: is UTF-32, not UTF-8; save it as UTF-8") from None
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise error(
                f"{path}: is UTF-16, not UTF-8, as Excel and PowerShell write text; save it as UTF-8"
            ) from None
        raise error(f"{path}: is not UTF-8 (byte {fault.start}); give {wanted}") from None
