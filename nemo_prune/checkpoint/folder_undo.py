"""Keep the rows that were zeroed in a folder, and bring the folder back to what it was.

An undo folder holds, for each file that was rewritten, its undo file (see `undo`) at the same
relative path, and ``undo.json``::

    format         "nemo-prune-undo-folder/1"
    source_sha256  `folder_sha256` of the folder that was pruned
    files          the rewritten files; without the list, one that is missing would not be missed
    left_out       what --drop-pickles left out, which no undo folder brings back

Hidden folders are no part of a model: they were not copied when it was pruned, nor are they here.
Who has it and the pruned folder has the memorized pictures back.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from nemo_prune.checkpoint.copies import read_object
from nemo_prune.checkpoint.surgery import file_sha256
from nemo_prune.errors import OutputError, UndoError, option
from nemo_prune.files.atomic import check_new_folder, new_folder, write_new
from nemo_prune.files.room import check_room
from nemo_prune.files.trees import check_apart, copy_file, read_tree, shown, weights_sha256
from nemo_prune.files.undo import Restored, restore

_INDEX = "undo.json"
_FORMAT = "nemo-prune-undo-folder/1"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RestoredFolder(Restored):
    """What `restore_folder` wrote: `sha256` is the source's `folder_sha256`.

    `left_out` are the paths in the source of what was left out of the pruned folder, and so of this
    one.
    """

    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Index:
    source_sha256: str
    files: frozenset[str]
    left_out: tuple[str, ...]


def check_undo_folder(undo: Path, source: Path, out: Path) -> None:
    """Raise OutputError if the rows removed from `out` could not be kept in a new folder `undo`.

    It must not exist, nor lie in the source or the output or around them: whoever publishes the
    output publishes all that is in it.
    """
    if os.path.lexists(undo):
        raise OutputError(
            f"{undo}: exists already, and undo folders are never replaced; choose another name"
        )
    check_apart(undo, source, "the model's folder")
    check_apart(undo, out, "the output")
    check_new_folder(undo)


def write_index(undo: Path, source_sha256: str, files: Iterable[str], left_out: Sequence[str]) -> None:
    """Say in the undo folder what belongs to it; OutputError where that cannot be written."""
    told = {
        "format": _FORMAT,
        "source_sha256": source_sha256,
        "files": sorted(files),
        "left_out": list(left_out),
    }
    write_new(undo / _INDEX, json.dumps(told, indent=2).encode() + b"\n", overwrite=False)


def restore_folder(pruned: Path, undo: Path, out: Path) -> RestoredFolder:
    """Write to the new folder `out` the folder that `pruned` was made from.

    Every rewritten file is the source's in every byte; all others are copied as they are in
    `pruned`, and the whole has the source's `folder_sha256`. What --drop-pickles left out stays out.

    Raises UndoError if `undo` is not the undo folder of exactly this `pruned`, CheckpointError for
    files that cannot be read, OutputError if `out` may not or cannot be written; then nothing is
    left behind.
    """
    index = _read_index(undo)
    check_apart(out, pruned, "the model's folder")
    check_apart(out, undo, "the undo folder")
    check_new_folder(out)
    files = read_tree(pruned).places()
    if strange := sorted(index.files - files.keys()):
        raise UndoError(
            f"{pruned}: has no {shown(strange[0])}, of which {undo} holds rows; restore the folder "
            f"that it belongs to"
        )
    check_room(out, files.values())
    rows = 0
    hashes: dict[str, str] = {}
    with new_folder(out) as temporary:
        # First the files that tell soonest whether the two belong together.
        for place in sorted(files, key=lambda place: (place not in index.files, place)):
            target = temporary / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if place in index.files:
                restored = restore(files[place], undo / place, target)
                hashes[place] = restored.sha256
                rows += restored.rows
                continue
            copy_file(files[place], target)
            if target.suffix == ".safetensors":
                hashes[place] = file_sha256(target)
        if weights_sha256(hashes) != index.source_sha256:
            raise UndoError(
                f"{pruned}: is not the folder that {undo} belongs to, or its weights were changed "
                f"since; restore that one"
            )
    return RestoredFolder(out, index.source_sha256, rows, index.left_out)


def _read_index(undo: Path) -> _Index:
    """The index of an undo folder; UndoError if it is none, or rows that it lists are missing."""
    kept = read_tree(undo).places()
    told = read_object(kept[_INDEX]) if _INDEX in kept else {}
    sha256, files, left_out = (told.get(key) for key in ("source_sha256", "files", "left_out"))
    if (
        told.get("format") != _FORMAT
        or not isinstance(sha256, str)
        or not _SHA256.fullmatch(sha256)
        or not _are_texts(files)
        or not _are_texts(left_out)
    ):
        raise UndoError(f"{undo}: is not a folder that {option('undo')} wrote; give that one")
    # Only what lies in the folder is opened, whatever path the index names.
    if missing := sorted(set(files) - kept.keys()):
        raise UndoError(
            f"{undo}: lacks {shown(missing[0])}, which it lists; copy the whole folder again"
        )
    return _Index(sha256, frozenset(files), tuple(left_out))


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
