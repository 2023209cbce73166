"""Put a new file or folder in its place whole or not at all, never over something by accident.

It is written under a hidden name in the folder that it is meant for, flushed to the disk, and only then
given its name. A hidden name, ``.NAME.PID-XXXXXXXX.tmp``, carries the writer's process id, and a
running writer holds a lock, so that what a killed run left behind is known from what is being written.
"""

import contextlib
import errno
import filecmp
import os
import re
import secrets
import shutil
import stat
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import BinaryIO

from nemo_prune.errors import OutputError, option
from nemo_prune.files.header import PICKLE_SUFFIXES

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

_HIDDEN = re.compile(r"\.(?P<name>.*)\.(?P<pid>\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)
_NAME_BYTES = 200  # of OUT's name in the hidden one: file systems stop at 255 in all
NO_MODELS = {".json", ".jsonl", ".csv", ".tsv", ".txt", ".yaml", ".yml", ".html", ".md", ".png"}
_PACKED = {".zip", ".gz", ".onnx", ".gguf"}  # what may hold weights, in another format
_NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def check_output(source: Path, out: Path, overwrite: bool) -> None:
    """Raise OutputError if a model made from `source` could not be written to `out`.

    Cheap, writes nothing; meant to be called before hours of search as well as before writing.
    `out` must not be `source` itself, by whatever path, symbolic or hard link, not even with
    `overwrite`; must not exist unless `overwrite`; its folder must exist, be writable and have
    room for a file of the size of `source`.
    """
    out = Path(out)
    if same_file(out, Path(source)):
        raise OutputError(f"{out}: is the model itself, which is never changed; choose another name")
    check_suffix(out)
    if out.suffix.lower() in NO_MODELS:
        raise OutputError(f"{out}: has not the name of a model; end it in .safetensors")
    check_place(out, overwrite)
    check_room(out, [source])


def check_suffix(out: Path, others: Collection[str] = ()) -> None:
    """Raise OutputError if programs would take safetensors of this name for another format.

    others: further suffixes that say so.
    """
    pickle = out.suffix.lower() in PICKLE_SUFFIXES
    if pickle or out.suffix.lower() in {*_PACKED, *others}:
        raise OutputError(
            f"{out}: has the name of {'a pickle' if pickle else 'another format'}, as which programs "
            f"would fail to read it; end it in .safetensors"
        )


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file or folder; False if either leads nowhere.

    exFAT, FAT and some network drives have no numbers of files: systems give 0, or make them up anew
    for each spelling of a name. So numbers count only where they are equal and not 0; without them,
    and for names alike but for case, files are the same if they have one size, time and content.
    """
    try:
        first, second = one.stat(), other.stat()
    except (OSError, ValueError):
        return False
    if first.st_ino and os.path.samestat(first, second):
        return True
    names = _comparable(one), _comparable(other)
    if stat.S_ISDIR(first.st_mode) or stat.S_ISDIR(second.st_mode):
        return not first.st_ino and names[0] == names[1]
    if (first.st_ino and second.st_ino and names[0] != names[1]) or _state(first) != _state(second):
        return False
    with contextlib.suppress(OSError):
        return filecmp.cmp(one, other, shallow=False)
    return True  # nothing is replaced that cannot be told from what is read


def lies_in(path: Path, folder: Path) -> bool:
    """Whether `path`, which need not exist, is in `folder`, at any depth, links and `..` resolved."""
    # Not resolve(): that raises for a link to itself.
    try:
        inner, outer = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    except (OSError, ValueError):
        return False
    return any(parent == outer or same_file(parent, outer) for parent in inner.parents)


def _state(status: os.stat_result) -> tuple[int, ...]:
    return stat.S_IFMT(status.st_mode), status.st_size, status.st_mtime_ns


def refuse_inputs(outs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Raise OutputError if any of `outs` is one of `inputs`, or a file in a folder among them.

    By whatever path or link, and whatever may be overwritten: what is read is never changed.
    """
    given = [path for path in inputs if path is not None]
    for out in outs:
        for path in given:
            if same_file(out, path) or (os.path.lexists(out) and lies_in(out, path)):
                raise OutputError(f"{out}: is read by this command; choose another name")


def refuse_same(outputs: Iterable[Path | None]) -> None:
    """Raise OutputError if two outputs of one command are one file, or one lies in the other.

    To be called before any work. Paths are compared with all links and `..` resolved, and without
    regard to case, as many file systems have it; hard links to one file count as that file.
    """
    for one, other in combinations([path for path in outputs if path is not None], 2):
        first, second = _comparable(one), _comparable(other)
        if first == second or same_file(one, other):
            raise OutputError(f"{other}: is to be written twice, as two outputs; give two names")
        if first in second.parents or second in first.parents:
            raise OutputError(
                f"{other}: lies in {one} or around it, and both are outputs; give two places"
            )


def _comparable(path: Path) -> Path:
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError):
        real = str(path)  # not a possible name; refused when it is written
    return Path(unicodedata.normalize("NFC", real.casefold()))


def _is_stream(link: Path) -> bool:
    """Whether a link is one of the system's own to what a process has open, such as /dev/stdout."""
    place = link.absolute()
    return any(
        where in ("/dev", "/dev/fd") or where.startswith("/proc/")
        for where in map(str, (place.parent, Path(os.path.realpath(place.parent))))
    )


def check_place(out: Path, overwrite: bool) -> None:
    """Raise OutputError if no new file could be put at `out`; see `check_output`."""
    if str(out) == "-":
        raise OutputError("-: files are not written to standard output; give the name of a file")
    try:
        mode = out.lstat().st_mode
        if out.is_dir():
            raise OutputError(f"{out}: is a folder; give the name of the file to write")
        # Renaming over a device would replace the device.
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise OutputError(f"{out}: is not a regular file; choose another name")
        if stat.S_ISLNK(mode) and _is_stream(out):
            raise OutputError(f"{out}: is a stream of a process, not a file; choose another name")
        if not overwrite:
            raise OutputError(
                f"{out}: exists already; choose another name, or pass {option('overwrite')}"
            )
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise OutputError(f"{out}: cannot be written ({_reason(error)}); check the path") from None
    folder = out.parent
    if not folder.is_dir():
        raise OutputError(f"{out}: the folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: the folder {folder} is not writable; choose another")


def beside(out: Path, suffix: str) -> Path:
    """The file that lies beside `out` with `suffix` behind its name; OutputError if that is too long."""
    path = out.with_name(f"{out.name}{suffix}")
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise OutputError(
                f"{out}: cannot be written ({_reason(error)}, with the {suffix} that lies beside it); "
                f"give a shorter name"
            ) from None
    return path


def check_room(out: Path, sources: Iterable[Path], more: Iterable[tuple[Path, int]] = ()) -> None:
    """Raise OutputError if there is no room for files as large as `sources` where `out` is to be.

    `more` are further places and the bytes that are to be written there; those on one disk add up.
    Nothing is refused where the system does not say how much room there is.
    """
    if not hasattr(shutil, "disk_usage"):
        return
    with contextlib.suppress(OSError):
        wanted: dict[int, int] = {}
        for place, size in ((out, sum(Path(path).stat().st_size for path in sources)), *more):
            folder = place.absolute().parent
            disk = folder.stat().st_dev
            wanted[disk] = wanted.get(disk, 0) + size
            free = shutil.disk_usage(folder).free
            if wanted[disk] > free:
                raise OutputError(
                    # Rounded apart: a small file never "needs 0 MB but the disk has 0 MB left".
                    f"{place}: needs {-(-wanted[disk] // 10**6):,} MB but the disk has "
                    f"{free // 10**6:,} MB left; free some or choose another disk"
                )


@contextlib.contextmanager
def new_file(out: Path, overwrite: bool, like: Path | None = None) -> Iterator[BinaryIO]:
    """Yield a new unbuffered binary file, open for reading and writing, that becomes `out`.

    When the block ends, the file is flushed to the disk and given its name at once; if the block
    raises, the file is removed. Without `overwrite` the name is taken only if it is free at that
    very moment, so of two writers one gets OutputError. The mode follows the umask, as for any
    new file, but gives others no more rights than the file `like` does. An OSError out of the block
    or of the disk becomes OutputError.
    """
    check_place(out, overwrite)
    with _hidden(out) as temporary:
        with temporary.open("x+b", buffering=0) as file:
            _hold(file.fileno())
            if like is not None:
                keep_rights(temporary, like)
            yield file
            os.fsync(file.fileno())
        take_name(temporary, out, overwrite)


def keep_rights(path: Path, like: Path) -> None:
    """Give others no more rights to the file than they have to `like`."""
    rights = path.stat().st_mode & (like.stat().st_mode | stat.S_IRWXU)
    path.chmod(stat.S_IMODE(rights))


def write_new(out: Path, content: bytes, overwrite: bool) -> None:
    """Write a small file, at once and whole; raises as `new_file` does."""
    with new_file(out, overwrite) as file:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a new, empty, hidden folder beside `out` that becomes `out`.

    When the block ends, the folder is given its name at once; if the block raises, it is removed
    with all that is in it. Files in it are for the block to flush to the disk. A folder that
    exists is never replaced: OutputError. An OSError out of the block becomes OutputError.
    """
    check_new_folder(out)
    with _hidden(out) as temporary:
        temporary.mkdir()
        with held_folder(temporary):
            yield temporary
        for folder, _, _ in os.walk(temporary):
            _flush_folder(Path(folder))
        # Another's folder that appeared meanwhile is in the way, unless it is empty.
        temporary.rename(out)


@contextlib.contextmanager
def new_folders(first: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """Yield two new folders as `new_folder` does; `first` has its name before `out`, or neither has.

    An OSError out of the block becomes an OutputError about `out`.
    """
    inodes = None
    try:
        with new_folder(out) as last, new_folder(first) as before:
            inodes = before.stat().st_ino, last.stat().st_ino
            try:
                yield before, last
            except OSError as error:
                raise OutputError(f"{out}: cannot be written ({_reason(error)})") from None
    except BaseException:
        # An interrupt may come when `out` has its name already: then `first` is needed.
        if inodes and is_at(first, inodes[0]) and not is_at(out, inodes[1]):
            shutil.rmtree(first, ignore_errors=True)
        raise


def is_at(path: Path, inode: int) -> bool:
    """Whether the file or folder at `path` is the one with this number."""
    try:
        return path.stat().st_ino == inode
    except OSError:
        return False


def check_new_folder(out: Path) -> None:
    """Raise OutputError if no new folder could be made at `out`."""
    if os.path.lexists(out):
        raise OutputError(
            f"{out}: exists already, and a folder is never replaced; remove it or choose another name"
        )
    check_place(out, overwrite=False)


def check_models_folder(out: Path, why: str, instead: str = "") -> None:
    """`check_new_folder`, where its name might be a model's file.

    why: a folder is written and no file; instead: what else can be done.
    """
    if out.suffix.lower() in (".safetensors", *PICKLE_SUFFIXES):
        raise OutputError(f"{out}: has a file's name, and {why}; name it {out.stem}{instead}")
    check_new_folder(out)


def take_name(temporary: Path, out: Path, overwrite: bool) -> None:
    """Give a file its name, which without `overwrite` must be free at that very moment; OutputError."""
    if overwrite:
        temporary.replace(out)
        return
    # Unlike a rename, a link and an exclusive open fail if the name was taken meanwhile.
    try:
        try:
            out.hardlink_to(temporary)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):  # a file system, or a system, without hard links
            os.close(os.open(out, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            try:
                temporary.replace(out)
            except BaseException:
                out.unlink(missing_ok=True)
                raise
    except FileExistsError:
        raise OutputError(
            f"{out}: was written by another process meanwhile; choose another name, or "
            f"pass {option('overwrite')}"
        ) from None


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the file system knows how to."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return "no space left on the disk; free some or choose another disk"
    text = getattr(error, "strerror", None) or str(error)
    return text[:1].lower() + text[1:]


# -------------------------------------------------------------------------------- hidden names


@contextlib.contextmanager
def _hidden(out: Path) -> Iterator[Path]:
    """Yield a new hidden name beside `out`; what has it at the end is removed.

    An OSError out of the block becomes an OutputError about `out`.
    """
    _remove_leftovers(out)
    temporary = out.with_name(_hidden_name(out.name))
    try:
        try:
            yield temporary
        finally:
            _remove(temporary)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({_reason(error)})") from None
    _flush_folder(out.parent)


def _remove(path: Path) -> None:
    """Remove a file or a folder with all in it, if it is there and that can be done."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _hidden_name(name: str) -> str:
    """A new hidden name for what will be called `name`."""
    return f".{_shortened(name)}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def _hold(descriptor: int) -> None:
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
        _hold(descriptor)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(out: Path) -> None:
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
                _remove(path)


def _shortened(name: str) -> str:
    while len(os.fsencode(name)) > _NAME_BYTES:
        name = name[:-1]
    return name


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


def in_use(path: Path) -> bool:
    """Whether another process holds the file, as far as the system can tell."""
    readable = path.is_file() and os.access(path, os.R_OK)
    return fcntl is not None and readable and _locked(path)


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
