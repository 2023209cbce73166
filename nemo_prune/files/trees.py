"""The files of a folder, whatever it holds: found, and copied."""

import filecmp
import os
import shutil
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from nemo_prune.errors import CheckpointError, OutputError
from nemo_prune.files.atomic import keep_rights, lies_in, same_file
from nemo_prune.files.header import quoted, unreadable
from nemo_prune.files.rewrite import share_blocks
from nemo_prune.files.text import absent

_MOST = 100_000
_DEEPEST = 100  # folders in folders; Python's own functions on trees stop near a thousand


@dataclass(frozen=True)
class Tree:
    """What lies below `root`, each folder's entries by name.

    `files` are all files; `hidden` is what is no part of a model: folders that were not looked into
    (`.git`, `.cache`), and the files that macOS keeps beside others on foreign disks (`._name`).
    """

    root: Path
    files: tuple[Path, ...]
    hidden: tuple[Path, ...]

    def places(self) -> dict[str, Path]:
        """The files by their paths in the folder, with slashes on every system."""
        return {path.relative_to(self.root).as_posix(): path for path in self.files}


def read_tree(root: Path) -> Tree:
    """Return what lies below the folder `root`; links are followed, and no file is opened.

    Raises CheckpointError for a folder that cannot be read, for what a copy of the folder could not
    hold (links that lead nowhere or to a folder that they lie in, pipes, devices), and for more
    or deeper entries than any model has.
    """
    files: list[Path] = []
    hidden: list[Path] = []
    seen = 0
    try:
        # The folders that are open, outermost first: what is left in each, and which it really is.
        inside = [(iter(entries(root)), _identity(root.stat()))]
        while inside:
            path = next(inside[-1][0], None)
            if path is None:
                inside.pop()
                continue
            seen += 1
            if seen > _MOST:
                # Links need no loop to make a few folders look like billions.
                raise CheckpointError(
                    f"{root}: holds more than {_MOST} entries; give the model's own folder"
                )
            status = _status(path)
            if stat.S_ISDIR(status.st_mode):
                # Without numbers of files (exFAT on some systems) only the depth ends a loop.
                if status.st_ino and any(above == _identity(status) for _, above in inside):
                    raise CheckpointError(f"{path}: is a link to a folder that it lies in; remove it")
                if len(inside) > _DEEPEST:
                    raise CheckpointError(f"{path}: lies deeper than {_DEEPEST} folders; remove it")
                if path.name.startswith("."):
                    hidden.append(path)
                else:
                    inside.append((iter(entries(path)), _identity(status)))
            elif stat.S_ISREG(status.st_mode):
                (hidden if is_apple_double(path) else files).append(path)
            else:
                raise CheckpointError(f"{path}: is not a regular file; remove it")
    except OSError as error:
        raise unreadable(Path(error.filename or root), error) from None
    return Tree(root, tuple(files), tuple(hidden))


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError:
        if path.is_symlink():
            why = absent(path, "is a broken link; download the folder again")
            raise CheckpointError(f"{path}: {why}") from None
        raise


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def is_apple_double(path: Path) -> bool:
    """Whether it is called as what macOS writes beside each file where it cannot keep attributes."""
    return path.name.startswith("._")


def entries(folder: Path) -> list[Path]:
    """What lies in `folder`, by name; CheckpointError if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from None


def in_any_form(path: Path) -> Path:
    """`path`, or what lies there by the same name in another Unicode form, as macOS writes names."""
    forms = (path.with_name(unicodedata.normalize(form, path.name)) for form in ("NFC", "NFD"))
    return path if path.exists() else next(filter(Path.exists, forms), path)


def start_of(path: Path, length: int = 16) -> bytes:
    """The first bytes of a file; CheckpointError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(length)
    except OSError as error:
        raise unreadable(path, error) from None


def shown(place: str) -> str:
    """A path in a folder for a message: as it is, unless it could garble the terminal."""
    return place if place.isprintable() else quoted(place)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file to the new file `target`, or share its blocks where the file system can.

    Flushed to the disk and compared; others have no more rights to it than to the source.

    Raises CheckpointError if the source cannot be read, OutputError if what was written is not what
    is read back; an OSError of the disk is for `new_folder` to handle.
    """
    try:
        file = source.open("rb")
    except OSError as error:
        raise unreadable(source, error) from None
    with file, target.open("xb") as new:
        shared = share_blocks(file.fileno(), new.fileno())
    if not shared:
        try:
            shutil.copyfile(source, target)
        except shutil.SameFileError:  # on disks without numbers of files, as the target is new
            with source.open("rb") as file, target.open("wb") as new:
                shutil.copyfileobj(file, new)
    keep_rights(target, source)
    with target.open("r+b") as written:  # Windows flushes only what is open for writing
        os.fsync(written.fileno())
    if not filecmp.cmp(source, target, shallow=False):
        raise OutputError(
            f"{target.name}: what was read back is not what was written; check the disk, or try another"
        )


def check_apart(out: Path, folder: Path, name: str) -> None:
    """Raise OutputError if `out` is, lies in or holds `folder`, called `name` in the message."""
    if os.path.realpath(out) == os.path.realpath(folder) or same_file(out, folder):
        raise OutputError(f"{out}: is {name} itself; choose another name")
    if lies_in(out, folder) or lies_in(folder, out):
        raise OutputError(f"{out}: lies in {name} or around it; choose another place")
