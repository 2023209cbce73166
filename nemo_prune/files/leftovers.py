"""The hidden names under which files and folders are written, and what killed runs leave of them.

A hidden name ``.NAME.PID-XXXXXXXX.tmp`` carries the writer's process id, and a living writer holds
a lock, so that what a killed run left behind can be told from what a living one is writing.
"""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

_HIDDEN = re.compile(r"\.(?P<name>.*)\.(?P<pid>\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)
_NAME_BYTES = 200  # of OUT's name in the hidden one: file systems stop at 255 in all


def hidden_name(name: str) -> str:
    """A new hidden name for what will be called `name`."""
    return f".{_shortened(name)}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def hold(descriptor: int) -> None:
    """Lock the open file or folder until it is closed, where the file system knows how to."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Hold the folder, so that no other run takes it for what a killed one left behind."""
    if fcntl is None:  # pragma: no cover - Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        hold(descriptor)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(out: Path) -> None:
    """Remove what killed runs left behind while they wrote this same `out`."""
    with contextlib.suppress(OSError):
        for path in out.parent.iterdir():
            match = _HIDDEN.fullmatch(path.name)
            if (
                match
                and match["name"] == _shortened(out.name)
                and not _alive(int(match["pid"]))
                and not _locked(path)
            ):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _shortened(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_NAME_BYTES])


def _alive(pid: int) -> bool:
    if os.name == "nt":  # pragma: no cover - there, signal 0 is not a question but Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def _locked(path: Path) -> bool:
    """True while its writer holds it: in another container, process ids say nothing."""
    if fcntl is None:  # pragma: no cover - Windows
        return True
    try:
        # Not open(): that does not take folders.
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
