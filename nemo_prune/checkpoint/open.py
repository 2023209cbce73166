"""The entry to models on disk: the one place that distinguishes a file from a diffusers folder."""

import os
from pathlib import Path

from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.checkpoint.folder import recognize_folder
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.errors import CheckpointError


def open_checkpoint(path: Path) -> Checkpoint:
    """What the file or folder at `path` holds, from headers and configs alone; loads no torch.

    Raises CheckpointError as `recognize` and `recognize_folder` do.
    """
    path = Path(path)
    return recognize_folder(path) if _is_folder(path) else recognize(path)


def are_folders(a: Path, b: Path) -> bool:
    """Whether both are folders; CheckpointError if only one is."""
    for one, other in ((a, b), (b, a)):
        if _is_folder(other) and not _is_folder(one):
            if not os.path.lexists(one):
                raise CheckpointError(f"{one}: no such folder; check the path")
            raise CheckpointError(f"{one}: is no folder, but {other} is; give two files or two folders")
    return _is_folder(a)


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - unlike Path.is_dir, never raises
