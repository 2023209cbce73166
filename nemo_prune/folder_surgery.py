"""Zero neurons in a copy of a diffusers folder: every copy of the denoiser, nothing else.

Files without chosen neurons are copied as they are and compared, or hard-linked; indexes stay valid
because neither names nor sizes of tensors change. The folder appears whole or not at all.
"""

import contextlib
import filecmp
import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nemo_prune.errors import CheckpointError, OutputError
from nemo_prune.families import Checkpoint
from nemo_prune.folders import Folder
from nemo_prune.manifest import Neuron
from nemo_prune.placing import check_new_folder, new_folder
from nemo_prune.streams import unreadable
from nemo_prune.surgery import Written, check_neurons, file_sha256, zero_neurons
from nemo_prune.zeros import Zeros, read_zeros


def check_folder_output(folder: Folder, out: Path, *, drop_pickles: bool) -> None:
    """Raise OutputError if a pruned copy of `folder` could not be written to `out`.

    Cheap, writes nothing. `out` must not exist, lie in the source or hold it; its disk must
    have room. Raises CheckpointError for twins of the weights that would stay unpruned, unless
    `drop_pickles` leaves them out.
    """
    source, target = folder.path.resolve(), out.resolve()
    if source == target:
        raise OutputError(f"{out}: is the model itself, which is never changed; choose another name")
    if source in target.parents or target in source.parents:
        raise OutputError(f"{out}: lies in the model's folder or around it; choose another place")
    check_new_folder(out)
    if folder.twins and not drop_pickles:
        named = folder.twins[0].relative_to(folder.path)
        more = f" and {len(folder.twins) - 1} more" if len(folder.twins) > 1 else ""
        raise CheckpointError(
            f"{folder.path}: holds {named}{more}, copies of the denoiser in a form that is not "
            f"edited, so memorization would stay in them; pass --drop-pickles to leave them out"
        )
    with contextlib.suppress(OSError):
        size = sum(path.stat().st_size for path in _kept(folder))
        free = shutil.disk_usage(out.absolute().parent).free
        if size > free:
            raise OutputError(
                f"{out}: needs {size / 1e6:,.0f} MB but the disk has {free / 1e6:,.0f} MB left; "
                f"free some or choose another disk"
            )


def zero_neurons_in_folder(
    folder: Folder,
    neurons: Sequence[Neuron],
    out: Path,
    provenance: Mapping[str, str],
    *,
    link: bool = False,
    drop_pickles: bool = False,
) -> Written:
    """Write `folder` to the new folder `out` with the value rows (and biases) of `neurons` zeroed.

    Each file that holds chosen neurons is rewritten as `zero_neurons` does, with its own
    provenance; all others are copied and compared, or with `link` hard-linked where the disk
    allows it. A symbolic link becomes the file that it leads to. In `Written`, hashes are those of
    `folder_sha256` and counts are sums over all copies. The source is never changed.

    Raises what `zero_neurons` and `check_folder_output` raise; then nothing is left behind.
    """
    check_folder_output(folder, out, drop_pickles=drop_pickles)
    check_neurons(folder, neurons)
    parts = {part.path: part for part in folder.parts}
    before: dict[Path, str] = {}
    after: dict[Path, str] = {}
    rows = changed = 0
    with new_folder(out) as temporary:
        for path in _kept(folder):
            place = path.relative_to(folder.path)
            target = temporary / place
            target.parent.mkdir(parents=True, exist_ok=True)
            own = _neurons_of(parts[path], neurons) if path in parts else []
            if own:
                written = zero_neurons(parts[path], own, target, provenance)
                before[place], after[place] = written.source_sha256, written.sha256
                rows += written.rows_zeroed
                changed += written.bytes_changed
                continue
            if not (link and _link(path, target)):
                _copy(path, target)
            if path.suffix == ".safetensors":
                before[place] = after[place] = file_sha256(target)
    return Written(out, _digest(after), _digest(before), len(neurons), rows, changed)


def folder_sha256(folder: Folder) -> str:
    """One SHA-256 for all weights of a folder, 64 lower-case hexadecimal digits.

    It is the hash of the lines `HASH  PATH` that sha256sum prints for the folder's safetensors
    files, by path, in the order of the paths' bytes. To have it by hand::

        cd FOLDER && find -L * -name '*.safetensors' | LC_ALL=C sort | xargs sha256sum | sha256sum

    Raises CheckpointError if a file cannot be read.
    """
    weights = (path for path in _kept(folder) if path.suffix == ".safetensors")
    return _digest({path.relative_to(folder.path): file_sha256(path) for path in weights})


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


def _kept(folder: Folder) -> Iterable[Path]:
    """All files that go into the output, in the order of their paths."""
    return sorted([*folder.others, *(part.path for part in folder.parts)])


def _neurons_of(part: Checkpoint, neurons: Sequence[Neuron]) -> list[Neuron]:
    layers = {layer.name for layer in part.value_layers}
    return [neuron for neuron in neurons if neuron.layer in layers]


def _link(source: Path, target: Path) -> bool:
    """Hard-link the file itself, not a symbolic link to it; False where the disk does not."""
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    try:
        source.open("rb").close()
    except OSError as error:
        raise unreadable(source, error) from None
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    if not filecmp.cmp(source, target, shallow=False):
        raise OutputError(
            f"{target.name}: what was read back is not what was written; check the disk, or try another"
        )


def _digest(hashes: Mapping[Path, str]) -> str:
    lines = sorted((os.fsencode(path.as_posix()), sha256) for path, sha256 in hashes.items())
    text = b"".join(sha256.encode() + b"  " + path + b"\n" for path, sha256 in lines)
    return hashlib.sha256(text).hexdigest()
