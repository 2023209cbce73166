"""Text files that users give: read whole, with a one-line error for whatever is wrong with them."""

import codecs
import contextlib
import glob
import re
import stat
from pathlib import Path

from nemo_prune.errors import NemoPruneError

MAX_BYTES = 256 * 2**20
"""Far above any list of prompts or neurons, far below a model handed in by mistake."""


LFS_POINTER = b"version https://git-lfs"
"""How the files begin that git-lfs leaves in place of contents that were not fetched."""
STAND_IN_BYTES = 64
# How files begin that something must be done with before they can be read, whatever they hold.
ENCRYPTED = {
    b"Salted__": "openssl (openssl enc -d)",
    b"age-encryption.org/": "age (age -d)",
    b"-----BEGIN AGE": "age (age -d)",
    b"-----BEGIN PGP MESSAGE": "PGP (gpg -d)",
    b"$ANSIBLE_VAULT;": "Ansible (ansible-vault decrypt)",
}
ZIP = b"PK\x03\x04"
PACKED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7-Zip", b"Rar!\x1a": "RAR",
}  # fmt: skip
_ABSENT = "no such file; check the path"
_ANNEX = "is a pointer of git-annex, not the file itself; run `git annex get` to fetch it"
# How files begin that stand where another one is meant.
_STAND_INS = (
    (LFS_POINTER, "is a git-lfs pointer, not the file itself; run `git lfs pull` to fetch it"),
    (rb"/annex/objects/", _ANNEX),
    (rb"(\.\./)+[^\s/][^\s]*\s*\Z",
     "is the text of a link, not the file that it leads to; download it again, or copy it with what its "
     "links lead to (cp -L)"),
    (rb"\0GITCRYPT\0", "is locked by git-crypt; run `git-crypt unlock`"),
    (rb"L\0\0\0\x01\x14\x02\0|\[(InternetShortcut\]|Desktop Entry\]|\{000214A0-)",
     "is a shortcut, not the file that it leads to; give that"),  # .lnk, .desktop, .url
)  # fmt: skip


def read_text(path: Path, error: type[NemoPruneError], kind: str, wanted: str) -> str:
    """The UTF-8 text of the file at `path`, with or without a byte order mark.

    Raises `error` if it cannot be read: one line that says why, and to give `wanted`; `kind` is what
    the file should be.
    """
    content = read_bytes(path, error, kind, wanted)
    if stands_in := stand_in(content):
        raise error(f"{path}: {stands_in}")
    return decoded(content, path, error, wanted)


def stand_in(start: bytes) -> str:
    """What a file that begins so stands in place of, and what to do; "" for one that does not."""
    return next((what for begins, what in _STAND_INS if re.match(begins, start)), "")


def absent(path: Path, otherwise: str = _ABSENT) -> str:
    """Why there is no file at `path`: a link to what git-annex did not fetch, or `otherwise`."""
    if otherwise == _ABSENT and glob.has_magic(str(path)):
        otherwise = "no such file, and only lists of prompts are given as patterns; name each file"
    if otherwise == _ABSENT:
        otherwise = _slip(path) or otherwise
    leads = path.readlink().parts if path.is_symlink() else ()
    return _ANNEX if {"annex", "objects"} <= {*leads} else otherwise


def _slip(path: Path) -> str:
    """What a shell did not do with a name that is no file's, where that shows; or ""."""
    name = str(path)
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # no such user
        if name.startswith("~") and path.expanduser().exists():
            return "no such file, since the shell left ~ as it is; write $HOME, or a blank in place of ="
        for separator, word in ((" ", "blanks"), (",", "commas"), (";", "semicolons")):
            parts = [part.strip() for part in name.split(separator) if part.strip()]
            if len(parts) > 1 and all(Path(part).exists() for part in parts):
                return f"no such file; it names {len(parts)} with {word} between: give each by itself"
        if name.strip() != name and Path(name.strip()).exists():
            return "no such file; its name begins or ends with a blank, and there is one without"
    return ""


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
        raise error(f"{path}: {absent(path)}") from None
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"{path}: cannot be read ({reason})") from None


def of_no_text(text: str, line: int) -> str:
    """What a text with a NUL, first in that line, is, and what to do."""
    if 3 * text.count("\0") > len(text) and "\0\0" not in text:
        return "seems to be UTF-16 without a byte order mark, not UTF-8; save it as UTF-8"
    return f"is not a text file (line {line} holds a NUL); give one prompt per line"


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
