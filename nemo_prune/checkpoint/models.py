"""A model as the user names it, a file or a diffusers folder: the one place that tells them apart.

What is said here of hashes and outputs, `surgery` and `folder_surgery` say in full. No torch.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_prune.checkpoint import folder_diff
from nemo_prune.checkpoint.expectation import Expectation, expect
from nemo_prune.checkpoint.families import Checkpoint, recognize
from nemo_prune.checkpoint.folder import Folder, recognize_folder
from nemo_prune.checkpoint.folder_surgery import (
    check_folder_output,
    folder_sha256,
    folder_zeros,
    zero_neurons_in_folder,
)
from nemo_prune.checkpoint.folder_undo import restore_folder
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.surgery import Written, file_sha256, zero_neurons
from nemo_prune.checkpoint.zeros import Zeros, read_zeros
from nemo_prune.errors import CheckpointError, OptionError, option
from nemo_prune.files import diff
from nemo_prune.files.atomic import check_output
from nemo_prune.files.header import read_header
from nemo_prune.files.undo import Restored, check_undo, restore


@dataclass(frozen=True)
class Comparison:
    """What `compare_models` found, in lines for people and as plain JSON.

    `promise` says how it compares with a manifest, if one was given.
    """

    different: bool
    lines: list[str]
    told: dict[str, Any]
    promise: Expectation | None


def open_model(path: Path) -> Checkpoint:
    """What the file or folder at `path` holds; CheckpointError as the two recognizers raise it."""
    return recognize_folder(path) if _is_folder(path) else recognize(path)


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - unlike Path.is_dir, never raises


def model_sha256(checkpoint: Checkpoint) -> str:
    """The whole file's SHA-256, or `folder_sha256`."""
    return folder_sha256(checkpoint) if isinstance(checkpoint, Folder) else file_sha256(checkpoint.path)


def model_zeros(checkpoint: Checkpoint) -> dict[str, Zeros]:
    """The rows, by layer, that are zero already: `read_zeros` or `folder_zeros`."""
    return folder_zeros(checkpoint) if isinstance(checkpoint, Folder) else read_zeros(checkpoint)


def check_model_output(
    checkpoint: Checkpoint,
    out: Path,
    *,
    overwrite: bool = False,
    undo: Path | None = None,
    link: bool = False,
    drop_pickles: bool = False,
) -> None:
    """Raise OutputError if the pruned model could not be written to `out`; cheap, writes nothing.

    Raises OptionError for an option that does not go with a file.
    """
    _check_options(checkpoint, link, drop_pickles)
    if isinstance(checkpoint, Folder):
        check_folder_output(checkpoint, out, undo=undo, link=link, drop_pickles=drop_pickles)
        return
    check_output(checkpoint.path, out, overwrite)
    if undo is not None:
        check_undo(undo, out)


def _check_options(checkpoint: Checkpoint, link: bool, drop_pickles: bool) -> None:
    if isinstance(checkpoint, Folder):
        return
    for name, given in ((f"{option('link')}", link), (f"{option('drop_pickles')}", drop_pickles)):
        if given:
            raise OptionError(f"{name}: goes with a diffusers folder, and {checkpoint.path} is a file")


def write_model(
    checkpoint: Checkpoint,
    neurons: Sequence[Neuron],
    out: Path,
    provenance: Mapping[str, str],
    *,
    overwrite: bool = False,
    undo: Path | None = None,
    link: bool = False,
    drop_pickles: bool = False,
    hashed: bool = False,
) -> Written:
    """Write the model, a file to a file, a folder to a folder, with `neurons` zeroed.

    `undo`, which the removed rows are kept in, is a file or a folder likewise. `hashed`: the
    output's hash is wanted too, which takes as long as the source's.

    Raises what `check_model_output` raises, ManifestError for neurons that the model does not
    have, CheckpointError if the source cannot be read; then nothing is left behind.
    """
    _check_options(checkpoint, link, drop_pickles)
    if isinstance(checkpoint, Folder):
        return zero_neurons_in_folder(
            checkpoint,
            neurons,
            out,
            provenance,
            undo=undo,
            link=link,
            drop_pickles=drop_pickles,
            hashed=hashed,
        )
    return zero_neurons(
        checkpoint, neurons, out, provenance, overwrite=overwrite, undo=undo, hashed=hashed
    )


def restore_model(pruned: Path, undo: Path, out: Path, *, overwrite: bool = False) -> Restored:
    """Write to `out` the file or folder that `pruned` was made from; `undo` must be of its kind.

    Raises what the two restorers raise; then nothing is left behind.
    """
    if _are_folders(pruned, undo):
        return restore_folder(pruned, undo, out)
    return restore(pruned, undo, out, overwrite)


def compare_models(a: Path, b: Path, neurons: Sequence[Neuron] | None = None) -> Comparison:
    """Return everything that differs between two files, or two folders.

    With `neurons`, also whether `b` is `a` with just these zeroed. Raises CheckpointError for what
    cannot be read, ManifestError for neurons that `a` does not have.
    """
    return (_compare_folders if _are_folders(a, b) else _compare_files)(a, b, neurons)


def _are_folders(a: Path, b: Path) -> bool:
    """Whether both are folders; CheckpointError if only one is."""
    for one, other in ((a, b), (b, a)):
        if _is_folder(other) and not _is_folder(one):
            if not os.path.lexists(one):
                raise CheckpointError(f"{one}: no such folder; check the path")
            raise CheckpointError(f"{one}: is no folder, but {other} is; give two files or two folders")
    return _is_folder(a)


def _compare_files(a: Path, b: Path, neurons: Sequence[Neuron] | None) -> Comparison:
    checkpoint = recognize(a) if neurons is not None else None
    first = read_header(a) if checkpoint is None else checkpoint.header
    second = read_header(b)
    found = diff.compare(first, second)
    promise = None
    if neurons is not None and checkpoint is not None:
        promise = expect(checkpoint, second, found, neurons)
    return Comparison(bool(found), diff.describe(found), diff.to_json(found), promise)


def _compare_folders(a: Path, b: Path, neurons: Sequence[Neuron] | None) -> Comparison:
    folder = recognize_folder(a) if neurons is not None else None
    found = folder_diff.compare_folders(a, b)
    promise = None
    if neurons is not None and folder is not None:
        promise = folder_diff.expect_folder(folder, found, neurons)
    return Comparison(bool(found), folder_diff.describe(found), folder_diff.to_json(found), promise)
