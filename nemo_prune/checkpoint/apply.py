"""Zero neurons in a copy of a model, in every copy of its denoiser, and prove that nothing else changed.

Each file that holds chosen neurons is rewritten (see `files/rewrite.py`); of a folder, all others are
copied as they are and compared, or hard-linked. Indexes stay valid because neither names nor sizes of
tensors change. The output, file or folder, appears whole or not at all, and the source is never changed.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from nemo_prune.checkpoint.checkpoint import WEIGHTS, Checkpoint, Part, check_neurons
from nemo_prune.checkpoint.folder import is_misnamed
from nemo_prune.checkpoint.holes import refuse_unfit
from nemo_prune.checkpoint.neurons import Neuron, union
from nemo_prune.checkpoint.provenance import (
    MODELSPEC_HASH,
    check_extra,
    earlier_neurons,
    new_header,
    original_sha256,
)
from nemo_prune.checkpoint.restore import check_undo_folder, write_index
from nemo_prune.checkpoint.zeros import zeros_in
from nemo_prune.errors import CheckpointError, OptionError, OutputError, option
from nemo_prune.files.atomic import (
    check_models_folder,
    check_output,
    check_room,
    is_at,
    new_file,
    new_folder,
    new_folders,
    refuse_same,
)
from nemo_prune.files.hashing import file_sha256, joint_sha256
from nemo_prune.files.header import MAX_HEADER_BYTES, is_training_state
from nemo_prune.files.rewrite import Ranges, Source, rewrite
from nemo_prune.files.sidecars import check_sidecars, copy_sidecars
from nemo_prune.files.trees import check_apart, copy_file
from nemo_prune.files.undo import check_undo, row_places, undo_bytes, write_undo

_NO_HASH = "0" * 64


@dataclass(frozen=True)
class Written:
    """What `write_model` wrote.

    `sha256` and `source_sha256` are those of `model_sha256`; the first is None unless it was asked
    for or the undo states it. `neurons` counts those asked for.
    `rows_zeroed` counts rows of weights in all copies, so a neuron with an EMA twin counts twice.
    `bytes_changed` counts the bytes of tensors that differ from the source's. `unlinked` counts files
    that were copied since they could not be hard-linked.
    """

    path: Path
    sha256: str | None
    source_sha256: str
    neurons: int
    rows_zeroed: int
    bytes_changed: int
    unlinked: int = 0


def check_model_output(
    checkpoint: Checkpoint,
    out: Path,
    neurons: Sequence[Neuron] = (),
    /,
    *,
    overwrite: bool = False,
    undo: Path | None = None,
    link: bool = False,
    drop_pickles: bool = False,
    sidecars: Mapping[Path, Path] = MappingProxyType({}),
) -> None:
    """Raise OutputError if the pruned model could not be written to `out`; cheap, writes nothing.

    A file must not exist, unless `overwrite`, and never be the source. A folder must not exist at all,
    nor lie in the source or hold it. The disk must have room, with `link` for what is edited or lies
    on another disk. `undo` must be new and apart from both; with `neurons` there must be room for
    their rows too. The places of `sidecars` must be free, or hold the same.

    Raises OptionError for an option that does not go with a file, CheckpointError for twins of the
    weights that would stay unpruned, unless `drop_pickles` leaves them out, for differences to a model,
    and for one that was not downloaded to its end.
    """
    if not checkpoint.is_folder:
        for name, given in (("link", link), ("drop_pickles", drop_pickles)):
            if given:
                raise OptionError(
                    f"{option(name)}: goes with a diffusers folder, and {checkpoint.path} is a file"
                )
        check_output(checkpoint.path, out, overwrite)
        refuse_unfit(checkpoint)
        check_sidecars(sidecars)
        refuse_same([out, undo, *sidecars.values()])
        if undo is not None:
            check_undo(undo, out)
            check_room(out, (), needed_room(checkpoint, out, neurons, undo=undo))
        return
    check_apart(out, checkpoint.path, "the model's folder")
    instead = ", or give the model's single .safetensors file"
    check_models_folder(out, "of a folder comes a folder", instead)
    refuse_unfit(checkpoint)
    if undo is not None:
        check_undo_folder(undo, checkpoint.path, out)
    if checkpoint.twins and not drop_pickles:
        twins = sorted(checkpoint.twins, key=is_training_state)
        more = f" and {len(twins) - 1} more" if len(twins) > 1 else ""
        if is_training_state(twins[0]):
            raise CheckpointError(
                f"{checkpoint.path}: holds {twins[0].relative_to(checkpoint.path)}{more}, the saved "
                f"state of a training run, which can keep the weights too; pass "
                f"{option('drop_pickles')} to leave it out"
            )
        rename = ""
        if any(map(is_misnamed, twins)):
            rename = "rename what is safetensors to end in .safetensors, or "
        raise CheckpointError(
            f"{checkpoint.path}: holds {twins[0].relative_to(checkpoint.path)}{more}, copies "
            f"of the denoiser in a form that is not edited, or what can hold such, so memorization "
            f"would stay in them; {rename}pass {option('drop_pickles')} to leave them out"
        )
    check_room(out, (), needed_room(checkpoint, out, neurons, undo=undo, link=link))


def needed_room(
    checkpoint: Checkpoint,
    out: Path,
    neurons: Sequence[Neuron] = (),
    /,
    *,
    undo: Path | None = None,
    link: bool = False,
) -> list[tuple[Path, int]]:
    """What `write_model` takes: places, and the bytes that it writes there, for `check_room`."""
    files: Iterable[Path] = [checkpoint.path]
    if checkpoint.is_folder:
        files = _not_linked(checkpoint, out) if link else checkpoint.kept().values()
    room = [(out, sum(path.stat().st_size for path in files))]
    return room if undo is None else [*room, (undo, _undo_bytes(checkpoint, neurons))]


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
    sidecars: Mapping[Path, Path] = MappingProxyType({}),
) -> Written:
    """Write the model, a file to a file, a folder to a folder, with the rows of `neurons` zeroed.

    Every copy of a value layer is treated alike, weights and biases. All other tensor bytes are the
    source's, which is checked by reading back what was written before `out` gets its name. Others
    have no more rights to a file than to its source. The
    metadata of a rewritten file is kept and extended by `nemo_prune.*` entries; keys of `provenance`
    may be given without that prefix. Neurons that an earlier run named are named again only if their
    rows are still zero. A symbolic link in a folder becomes the file that it leads to.

    Args:
        checkpoint: the source.
        neurons: what to zero; each once.
        out: the file or folder to write.
        provenance: further metadata.
        overwrite: whether a file that exists may be replaced; folders never are.
        undo: a new file or folder, like the model, in which the removed rows are kept for
            `restore_model`; it is there before `out` is, and never replaces another.
        link: hard-link a folder's files that stay as they are, where the disk allows it.
        drop_pickles: leave out a folder's copies of the denoiser that are not edited.
        hashed: whether the output's hash is wanted without `undo`, which takes as long as the source's.
        sidecars: files to copy along once `out` is there, and their places; of a file alone, as
            `find_sidecars` finds them.

    Raises what `check_model_output` raises, ManifestError for neurons that the model does not have or
    that are named twice, CheckpointError if the source cannot be read or changes meanwhile, ValueError
    for reserved provenance keys; then nothing is left behind.
    """
    out = Path(out)
    check_extra(provenance)
    check_neurons(checkpoint, neurons)
    check_model_output(
        checkpoint, out, neurons, overwrite=overwrite, undo=undo, link=link, drop_pickles=drop_pickles,
        sidecars=sidecars,
    )  # fmt: skip
    hashed = hashed or undo is not None
    if not checkpoint.is_folder:
        written = _write_part(checkpoint.parts[0], neurons, out, provenance, overwrite, undo, hashed)
        try:
            copy_sidecars(sidecars)
        except OutputError as error:
            raise OutputError(f"{error.message}; {out} itself is written") from None
        return written
    if undo is None:
        with new_folder(out) as folder:
            written = _fill(checkpoint, neurons, folder, None, provenance, link, hashed)
    else:
        with new_folders(undo, out) as (rows, folder):
            written = _fill(checkpoint, neurons, folder, rows, provenance, link, hashed)
    return replace(written, path=out)


def _write_part(
    part: Part,
    neurons: Sequence[Neuron],
    out: Path,
    provenance: Mapping[str, str],
    overwrite: bool,
    undo: Path | None,
    hashed: bool,
) -> Written:
    """Rewrite one file to the file `out`, and keep its removed rows in the new file `undo`."""
    header = part.header
    listed = earlier_neurons(header)
    rows = part.rows(neurons)
    zeros = zeros_in([part]) if listed else {}
    still = [n for n in listed if n.layer in zeros and n.row in zeros[n.layer].everywhere]
    # Rows that were filled again make the source another model than the one that was pruned.
    original = original_sha256(header) if len(still) == len(listed) else None
    named = union(still, neurons)

    def make_header(source_sha256: str, data_sha256: str) -> bytes:
        return new_header(header, named, original, provenance, source_sha256, data_sha256)

    if len(make_header(_NO_HASH, _NO_HASH)) - 8 > MAX_HEADER_BYTES:
        raise OutputError(f"{out}: its header would be larger than safetensors allows")
    inode = None
    try:
        with Source(header) as source, new_file(out, overwrite, like=header.path) as target:
            done = rewrite(source, target, out, Ranges(row_places(header, rows)), make_header,
                           data_hashed=MODELSPEC_HASH in header.metadata, hashed=hashed)  # fmt: skip
            if undo is not None:
                write_undo(undo, source, rows, done.source_sha256, done.sha256 or "")
                inode = os.fstat(target.fileno()).st_ino
            source.check_unchanged()
    except BaseException:
        # An interrupt may come when `out` has its name already: then the rows are needed.
        if undo is not None and inode is not None and not is_at(out, inode):
            undo.unlink(missing_ok=True)
        raise
    weights = {key for layer in part.value_layers for key in layer.tensors}
    return Written(
        path=out,
        sha256=done.sha256,
        source_sha256=done.source_sha256,
        neurons=len(neurons),
        rows_zeroed=sum(len(numbers) for key, numbers in rows.items() if key in weights),
        bytes_changed=done.bytes_changed,
    )


def _fill(
    checkpoint: Checkpoint,
    neurons: Sequence[Neuron],
    out: Path,
    undo: Path | None,
    provenance: Mapping[str, str],
    link: bool,
    hashed: bool,
) -> Written:
    """Write a folder's files into the empty folder `out`, their removed rows into `undo`."""
    parts = {part.path: part for part in checkpoint.parts}
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    edited: dict[str, Written] = {}
    unlinked = 0
    for place, path in checkpoint.kept().items():
        target = out / place
        target.parent.mkdir(parents=True, exist_ok=True)
        own = parts[path].own(neurons) if path in parts else []
        if own:
            rows = undo and undo / place
            if rows:
                rows.parent.mkdir(parents=True, exist_ok=True)
            written = _write_part(parts[path], own, target, provenance, False, rows, hashed)
            before[place], after[place] = written.source_sha256, written.sha256 or ""
            edited[place] = written
            continue
        if not (link and _link(path, target)):
            copy_file(path, target)
            unlinked += link
        if path.suffix == WEIGHTS:
            before[place] = after[place] = file_sha256(target)
    if undo is not None:
        left_out = [checkpoint.place(path) for path in checkpoint.twins]
        configs = {
            p: file_sha256(path) for p, path in checkpoint.kept().items() if path.suffix == ".json"
        }
        write_index(undo, joint_sha256(before), edited, left_out, configs)
    return Written(
        path=out,
        sha256=joint_sha256(after) if hashed else None,
        source_sha256=joint_sha256(before),
        neurons=len(neurons),
        rows_zeroed=sum(written.rows_zeroed for written in edited.values()),
        bytes_changed=sum(written.bytes_changed for written in edited.values()),
        unlinked=unlinked,
    )


def _not_linked(checkpoint: Checkpoint, out: Path) -> Iterator[Path]:
    """The files that take room in `out` though files are linked: edited, or on another disk."""
    edited = {part.path for part in checkpoint.parts if part.value_layers}
    disk = out.absolute().parent.stat().st_dev
    for path in checkpoint.kept().values():
        if path in edited or path.stat().st_dev != disk:
            yield path


def _undo_bytes(checkpoint: Checkpoint, neurons: Sequence[Neuron]) -> int:
    """What the undo takes: a file for each that holds chosen neurons."""
    parts = [part for part in checkpoint.parts if part.own(neurons) or not checkpoint.is_folder]
    return sum(undo_bytes(part.header, part.rows(neurons)) for part in parts)


def _link(source: Path, target: Path) -> bool:
    """Hard-link the file itself, not a symbolic link to it; False where the disk does not."""
    try:
        target.hardlink_to(source.resolve())
    except (OSError, NotImplementedError):
        return False
    return True
