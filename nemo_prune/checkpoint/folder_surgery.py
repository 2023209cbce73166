"""Zero neurons in a copy of a diffusers folder: every copy of the denoiser, nothing else.

Files without chosen neurons are copied as they are and compared, or hard-linked; indexes stay valid
because neither names nor sizes of tensors change. The folder appears whole or not at all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nemo_prune.checkpoint.folder import Folder, is_misnamed, neurons_of
from nemo_prune.checkpoint.folder_undo import check_undo_folder, write_index
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.surgery import Written, check_neurons, file_sha256, rows_of, zero_neurons
from nemo_prune.checkpoint.zeros import Zeros, read_zeros
from nemo_prune.errors import CheckpointError, option
from nemo_prune.files.atomic import check_new_folder, new_folder, new_folders
from nemo_prune.files.room import check_room
from nemo_prune.files.trees import check_apart, copy_file, weights_sha256
from nemo_prune.files.undo import undo_bytes


def check_folder_output(
    folder: Folder,
    out: Path,
    *,
    undo: Path | None = None,
    link: bool = False,
    drop_pickles: bool = False,
    neurons: Sequence[Neuron] = (),
) -> None:
    """Raise OutputError if a pruned copy of `folder` could not be written to `out`.

    Cheap, writes nothing. `out` must not exist, lie in the source or hold it; its disk must
    have room, with `link` for what is edited or lies on another disk. The same for `undo`, which
    must lie apart from `out` too; the room for its rows, if their number is known: `neurons`.
    Raises CheckpointError for twins of the weights that would stay
    unpruned, unless `drop_pickles` leaves them out.
    """
    check_apart(out, folder.path, "the model's folder")
    check_new_folder(out)
    if undo is not None:
        check_undo_folder(undo, folder.path, out)
    if folder.twins and not drop_pickles:
        named = folder.twins[0].relative_to(folder.path)
        more = f" and {len(folder.twins) - 1} more" if len(folder.twins) > 1 else ""
        rename = ""
        if any(map(is_misnamed, folder.twins)):
            rename = "rename what is safetensors to end in .safetensors, or "
        raise CheckpointError(
            f"{folder.path}: holds {named}{more}, copies of the denoiser in a form that is not "
            f"edited, so memorization would stay in them; {rename}pass "
            f"{option('drop_pickles')} to leave them out"
        )
    rows = [(undo, _undo_bytes(folder, neurons))] if undo is not None else []
    check_room(out, _not_linked(folder, out) if link else _kept(folder).values(), rows)


def zero_neurons_in_folder(
    folder: Folder,
    neurons: Sequence[Neuron],
    out: Path,
    provenance: Mapping[str, str],
    *,
    undo: Path | None = None,
    link: bool = False,
    drop_pickles: bool = False,
    hashed: bool = False,
) -> Written:
    """Write `folder` to the new folder `out` with the value rows (and biases) of `neurons` zeroed.

    Each file that holds chosen neurons is rewritten as `zero_neurons` does, with its own
    provenance; all others are copied and compared, or with `link` hard-linked where the disk
    allows it. A symbolic link becomes the file that it leads to. With `undo` the removed rows are
    kept in that new folder, for `restore_folder`; it is there before `out` is. In `Written`, hashes
    are those of `folder_sha256`, the output's only with `undo` or `hashed`; counts are sums over all
    copies. The source is never changed.

    Raises what `zero_neurons` and `check_folder_output` raise; then nothing is left behind.
    """
    check_neurons(folder, neurons)
    check_folder_output(folder, out, undo=undo, link=link, drop_pickles=drop_pickles, neurons=neurons)
    if undo is None:
        with new_folder(out) as temporary:
            return replace(_fill(folder, neurons, temporary, None, provenance, link, hashed), path=out)
    with new_folders(undo, out) as (rows, temporary):
        return replace(_fill(folder, neurons, temporary, rows, provenance, link, hashed), path=out)


def _fill(
    folder: Folder,
    neurons: Sequence[Neuron],
    out: Path,
    undo: Path | None,
    provenance: Mapping[str, str],
    link: bool,
    hashed: bool,
) -> Written:
    """Do the work of `zero_neurons_in_folder` in folders that are empty yet."""
    hashed = hashed or undo is not None
    parts = {part.path: part for part in folder.parts}
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    edited: list[Written] = []
    for place, path in _kept(folder).items():
        target = out / place
        target.parent.mkdir(parents=True, exist_ok=True)
        own = neurons_of(parts[path], neurons) if path in parts else []
        if own:
            rows = undo and undo / place
            if rows:
                rows.parent.mkdir(parents=True, exist_ok=True)
            written = zero_neurons(parts[path], own, target, provenance, undo=rows, hashed=hashed)
            before[place], after[place] = written.source_sha256, written.sha256 or ""
            edited.append(written)
            continue
        if not (link and _link(path, target)):
            copy_file(path, target)
        if path.suffix == ".safetensors":
            before[place] = after[place] = file_sha256(target)
    if undo is not None:
        places = [written.path.relative_to(out).as_posix() for written in edited]
        left_out = [path.relative_to(folder.path).as_posix() for path in folder.twins]
        write_index(undo, weights_sha256(before), places, left_out)
    return Written(
        path=out,
        sha256=weights_sha256(after) if hashed else None,
        source_sha256=weights_sha256(before),
        neurons=len(neurons),
        rows_zeroed=sum(written.rows_zeroed for written in edited),
        bytes_changed=sum(written.bytes_changed for written in edited),
    )


def folder_sha256(folder: Folder) -> str:
    """One SHA-256 for all weights of a folder, 64 lower-case hexadecimal digits.

    It is the hash of the lines `HASH  PATH` that sha256sum prints for the folder's safetensors
    files, by path, in the order of the paths' bytes. To have it by hand::

        cd FOLDER && find -L * -name '*.safetensors' | LC_ALL=C sort | xargs sha256sum | sha256sum

    Raises CheckpointError if a file cannot be read.
    """
    kept = _kept(folder).items()
    return weights_sha256({p: file_sha256(path) for p, path in kept if path.suffix == ".safetensors"})


def folder_zeros(folder: Folder) -> dict[str, Zeros]:
    """The zero rows by layer over all copies in the folder, as `read_zeros` tells them of a file.

    Reads the value layers only. Raises CheckpointError if they cannot be read.
    """
    every: dict[str, set[int]] = {}
    some: dict[str, set[int]] = {layer.name: set() for layer in folder.value_layers}
    for part in folder.parts:
        zeros = read_zeros(part)
        for layer in part.value_layers:
            if layer.tensors:
                own = zeros.get(layer.name, Zeros((), ()))
                every[layer.name] = every.get(layer.name, {*own.everywhere}) & {*own.everywhere}
                some[layer.name].update(own.everywhere, own.somewhere)
    return {
        name: Zeros(tuple(sorted(every[name])), tuple(sorted(rows - every[name])))
        for name, rows in some.items()
        if rows
    }


def _kept(folder: Folder) -> dict[str, Path]:
    """All files that go into the output, by their paths in it and in that order."""
    paths = sorted([*folder.others, *(part.path for part in folder.parts)])
    return {path.relative_to(folder.path).as_posix(): path for path in paths}


def _not_linked(folder: Folder, out: Path) -> Iterator[Path]:
    """The files that take room in `out` though files are linked: edited, or on another disk."""
    parts = {part.path for part in folder.parts}
    disk = out.absolute().parent.stat().st_dev
    for path in _kept(folder).values():
        if path in parts or path.stat().st_dev != disk:
            yield path


def _undo_bytes(folder: Folder, neurons: Sequence[Neuron]) -> int:
    """What an undo folder takes: a file for each that holds chosen neurons."""
    size = 0
    for part in folder.parts:
        if own := neurons_of(part, neurons):
            layers = {layer.name: layer for layer in part.value_layers}
            size += undo_bytes(part.header, rows_of(layers, own))
    return size


def _link(source: Path, target: Path) -> bool:
    """Hard-link the file itself, not a symbolic link to it; False where the disk does not."""
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        return False
    return True
