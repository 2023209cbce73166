"""Bring a pruned model back to what it was, with the rows that were kept when it was pruned.

Of a file they are kept in an undo file (see `files/undo.py`). Of a folder they are kept in an undo
folder, which holds, for each file that was rewritten, its undo file at the same relative path, and
``undo.json``::

    format         "nemo-prune-undo-folder/1"
    source_sha256  `model_sha256` of the folder that was pruned
    files          the rewritten files; without the list, one that is missing would not be missed
    left_out       what --drop-pickles left out, which no undo folder brings back
    configs        {path: SHA-256} of its JSON files, so that one changed since is said

Hidden folders are no part of a model: they were not copied when it was pruned, nor are they here.
Who has it and the pruned folder has the memorized pictures back.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from nemo_prune.checkpoint.checkpoint import WEIGHTS
from nemo_prune.checkpoint.open import are_folders
from nemo_prune.errors import OutputError, UndoError, option
from nemo_prune.files.atomic import (
    check_models_folder,
    check_new_folder,
    check_room,
    new_folder,
    refuse_same,
    write_new,
)
from nemo_prune.files.hashing import file_sha256, joint_sha256
from nemo_prune.files.strict_json import read_object
from nemo_prune.files.text import stand_in
from nemo_prune.files.trees import check_apart, copy_file, read_tree, shown, start_of
from nemo_prune.files.undo import Restored, restore

_INDEX = "undo.json"
_FORMAT = "nemo-prune-undo-folder/1"
_MANIFEST = re.compile(rb'"format": *"nemo-prune-manifest/')
_TEXT = re.compile(rb"[^\0-\x08\x0e-\x1f\x7f]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def restore_model(pruned: Path, undo: Path, out: Path, *, overwrite: bool = False) -> Restored:
    """Write to `out` the file or folder that `pruned` was made from; `undo` must be of its kind.

    A file is the source in every byte. So is every rewritten file of a folder; all others are copied
    as they are in `pruned`, and the whole has the source's `model_sha256`. What --drop-pickles left out
    stays out. A folder that exists is never replaced.

    Raises UndoError if `undo` is not the undo file or folder of exactly this `pruned`, CheckpointError
    for files that cannot be read, OutputError if `out` may not or cannot be written; then nothing is
    left behind.
    """
    start = start_of(undo, 4096) if undo.is_file() else b""
    if _MANIFEST.search(start):
        raise UndoError(
            f"{undo}: is a manifest, which names the neurons and holds no rows; give what "
            f"{option('undo')} wrote when the model was pruned"
        )
    if not are_folders(pruned, undo):
        if _TEXT.fullmatch(start) and not stand_in(start):
            raise UndoError(f"{undo}: is text, and nothing that {option('undo')} wrote; give that")
        return restore(pruned, undo, out, overwrite)
    source_sha256, rewritten, left_out, configs = _read_index(undo)
    check_apart(out, pruned, "the model's folder")
    check_apart(out, undo, "the undo folder")
    check_new_folder(out)
    files = read_tree(pruned).places()
    if missing := sorted(rewritten - files.keys()):
        raise UndoError(
            f"{pruned}: has no {shown(missing[0])}, of which {undo} holds rows; restore the folder "
            f"that it belongs to"
        )
    check_room(out, files.values())
    rows = 0
    hashes: dict[str, str] = {}
    with new_folder(out) as temporary:
        # First the files that show soonest whether the two belong together.
        for place in sorted(files, key=lambda place: (place not in rewritten, place)):
            target = temporary / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if place in rewritten:
                restored = restore(files[place], undo / place, target)
                hashes[place] = restored.sha256
                rows += restored.rows
                continue
            copy_file(files[place], target)
            if target.suffix == WEIGHTS:
                hashes[place] = file_sha256(target)
        if joint_sha256(hashes) != source_sha256:
            raise UndoError(
                f"{pruned}: is not the folder that {undo} belongs to, or its weights were changed "
                f"since; restore that one"
            )
        changed = [
            place
            for place, sha256 in configs.items()
            if place not in files or file_sha256(files[place]) != sha256
        ]
    return Restored(out, source_sha256, rows, left_out, tuple(changed))


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
    refuse_same([out, undo])
    check_models_folder(undo, "of a folder the removed rows go into a folder")


def write_index(
    undo: Path,
    source_sha256: str,
    files: Iterable[str],
    left_out: Sequence[str],
    configs: Mapping[str, str],
) -> None:
    """Write the undo folder's index of what belongs to it; OutputError where that cannot be written."""
    index = {
        "format": _FORMAT,
        "source_sha256": source_sha256,
        "files": sorted(files),
        "left_out": list(left_out),
        "configs": dict(configs),
    }
    write_new(undo / _INDEX, json.dumps(index, indent=2).encode() + b"\n", overwrite=False)


def _read_index(undo: Path) -> tuple[str, frozenset[str], tuple[str, ...], Mapping[str, str]]:
    """(source's hash, rewritten files, left out, configs' hashes) of an undo folder.

    Raises UndoError if it is none, or rows that it lists are missing.
    """
    kept = read_tree(undo).places()
    found = read_object(kept[_INDEX]) if _INDEX in kept else {}
    sha256, files, left_out = (found.get(key) for key in ("source_sha256", "files", "left_out"))
    if (
        found.get("format") != _FORMAT
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
    configs = found.get("configs", {})  # older ones have none
    return sha256, frozenset(files), tuple(left_out), configs if isinstance(configs, dict) else {}


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
