"""A journal of a long search: what was finished stays finished, whatever ends the run.

JSON lines, appended to one at a time. The first says what the run is; each further one is an entry
that the caller wants back: `{"key": ..., "value": ...}`. A line that a killed run left torn, and
nothing else, is dropped when the journal is opened again. Prompts never go in: the header holds
a hash of their list.
"""

import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from nemo_prune import __version__
from nemo_prune.errors import OutputError, option
from nemo_prune.files.atomic import beside, check_place, in_use
from nemo_prune.files.prompts import prompts_hash

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = "nemo-prune-journal/2"
"""Of the entries too: another number for any change in what callers put in them."""
_MAX_BYTES = 2**30


def journal_path(manifest: Path) -> Path:
    """Where the journal of a manifest lies: beside it, `.journal` behind its name.

    Raises OutputError if that name is too long.
    """
    return beside(manifest, ".journal")


class Journal:
    """An open journal: `entries` of earlier runs, and `add` for this one's.

    Usable as a context manager, which closes it. Whoever has served removes the file.
    """

    def __init__(self, path: Path, file: BinaryIO, entries: dict[str, Any]) -> None:
        self.path = path
        self.entries = entries
        self._file = file

    @classmethod
    def open(cls, path: Path, fingerprint: Mapping[str, str], *, resume: bool) -> "Journal":
        """Open the journal at `path` for the run that `fingerprint` describes.

        Args:
            path: where the journal lies or is to lie.
            fingerprint: everything that results depend on, by name ("model", "prompts",
                "options", ...); strings without prompt texts.
            resume: go on with the journal that is there, if there is one.

        Raises OutputError, one line, if a journal is there and `resume` is false; if it is another
        run's, naming in what the two differ, or damaged; or if another process has it open.
        """
        path = Path(path)
        if not resume:
            # Never written over: it may stand for hours of searching.
            refuse_existing(path)
        check_place(path, overwrite=resume)
        there = path.exists()
        try:
            file = path.open("r+b" if there else "x+b", buffering=0)
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OutputError(f"{path}: is not a regular file; choose another manifest name")
            _lock(path, file)
            entries = _read(path, file, dict(fingerprint))
        except BaseException as error:
            file.close()
            if not there:  # of a run that has not begun
                path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _unusable(path, error) from None
            raise
        return cls(path, file, entries)

    def add(self, key: str, value: Any) -> None:
        """Append an entry, on the disk when this returns; a later one of the same key replaces it.

        Raises OutputError if it cannot be written.
        """
        try:
            _append(self._file, {"key": key, "value": value})
        except OSError as error:
            raise _unusable(self.path, error) from None
        self.entries[key] = value

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fingerprint_of_run(
    model_sha256: str,
    prompts: Sequence[str],
    calibration_prompts: Sequence[str] | None,
    settings: Mapping[str, Any],
) -> dict[str, str]:
    """What `Journal.open` takes: all that a run's results depend on; `settings` are its options."""
    return {
        "version": __version__,
        "model": model_sha256,
        "prompts": prompts_hash(prompts),
        "calibration prompts": prompts_hash(calibration_prompts or ()),
        "options": json.dumps(settings, sort_keys=True),
    }


def refuse_existing(path: Path) -> None:
    """Raise OutputError if an earlier run left its journal at `path`, or one that goes on writes it."""
    refuse_live(path)
    if path.is_symlink() or path.exists():
        raise OutputError(
            f"{path}: an earlier run was not finished; pass {option('resume')} to go on, "
            f"or remove that file"
        )


def refuse_live(path: Path) -> None:
    """Raise OutputError if the journal at `path` is that of a run that goes on."""
    if in_use(path):
        raise _at_work(path)


def check_resumable(
    path: Path, prompts: Sequence[str], calibration_prompts: Sequence[str] | None
) -> None:
    """Refuse a journal of other prompts or of another version, for which no model need be loaded.

    `Journal.open` compares the rest. Raises OutputError.
    """
    try:
        with path.open("rb") as file:
            first = file.readline(_MAX_BYTES)
    except OSError:
        return  # none is there, or `Journal.open` says what is wrong with it
    if first.endswith(b"\n"):
        header = _line(path, first, 1)
        known = fingerprint_of_run("", prompts, calibration_prompts, {})
        for name in ("model", "options"):
            known[name] = header.get(name, "")
        _check_header(path, header, known)


def _lock(path: Path, file: BinaryIO) -> None:
    if fcntl is None:  # pragma: no cover - Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _at_work(path) from None


def _at_work(path: Path) -> OutputError:
    return OutputError(f"{path}: another process is at work on it; wait until it ends")


def _append(file: BinaryIO, entry: Mapping[str, Any]) -> None:
    rest = memoryview(json.dumps(entry, allow_nan=False).encode() + b"\n")
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


def _read(path: Path, file: BinaryIO, fingerprint: dict[str, str]) -> dict[str, Any]:
    """The entries of an open journal; its torn end is cut off, its header written if it has none."""
    if os.fstat(file.fileno()).st_size > _MAX_BYTES:
        raise OutputError(f"{path}: is too large for a journal of this tool; remove it")
    content = file.read() or b""
    whole = content[: content.rfind(b"\n") + 1]
    if not whole and not b'{"format": "nemo-prune-journal'.startswith(content[:30]):
        raise OutputError(f"{path}: is not a journal of this tool; choose another manifest name")
    lines = whole.splitlines()
    header = _line(path, lines[0], 1) if lines else None
    if header is not None:
        _check_header(path, header, fingerprint)
    entries = {}
    for number, line in enumerate(lines[1:], start=2):
        entry = _line(path, line, number)
        if entry.keys() != {"key", "value"} or not isinstance(entry["key"], str):
            raise _damaged(path, number)
        entries[entry["key"]] = entry["value"]
    file.truncate(len(whole))
    file.seek(len(whole))
    if header is None:
        _append(file, {"format": FORMAT, **fingerprint})
    return entries


def _line(path: Path, line: bytes, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _damaged(path, number)
    return found


def _check_header(path: Path, header: dict[str, Any], fingerprint: dict[str, str]) -> None:
    format = header.pop("format", None)
    if format != FORMAT and str(format).startswith("nemo-prune-journal/"):
        raise OutputError(
            f"{path}: is a journal of another build of this tool, which wrote its entries differently; "
            f"go on with that one, or remove the file and start again"
        )
    if format != FORMAT:
        raise OutputError(f"{path}: is not a journal of this tool; choose another manifest name")
    if header != fingerprint:
        names = sorted(header.keys() | fingerprint.keys())
        other = [name for name in names if header.get(name) != fingerprint.get(name)]
        raise OutputError(
            f"{path}: belongs to a run with other {ascii(', '.join(other))[1:-1]}; "
            f"run as then, or remove that file"
        )


def _damaged(path: Path, number: int) -> OutputError:
    return OutputError(f"{path}: line {number} is damaged; remove that file and start again")


def _unusable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be used ({error.strerror or error}); check the disk")
