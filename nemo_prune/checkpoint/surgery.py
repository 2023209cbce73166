"""Zero neurons in a copy of a safetensors file, and prove that nothing else changed.

The data are copied at the speed of `cp`, or shared where the file system can; behind that, part by
part, they are flushed to the disk, read back from it and compared with the source's byte by byte.
Meanwhile the source is hashed, which the header states; that comes last, and is compared too. A few
megabytes of memory, whatever the size.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import BinaryIO

from nemo_prune.checkpoint.families import Checkpoint, ValueLayer
from nemo_prune.checkpoint.neurons import Neuron, union
from nemo_prune.checkpoint.provenance import (
    MODELSPEC_HASH,
    check_extra,
    earlier_neurons,
    new_header,
    original_sha256,
)
from nemo_prune.checkpoint.zeros import read_zeros
from nemo_prune.errors import ManifestError, OutputError
from nemo_prune.files.atomic import check_output, is_at, new_file
from nemo_prune.files.hashing import sha256s
from nemo_prune.files.header import MAX_HEADER_BYTES, quoted
from nemo_prune.files.readback import ReadBack
from nemo_prune.files.room import check_room
from nemo_prune.files.streams import Ranges, Source, copy, unreadable, write_at
from nemo_prune.files.undo import check_undo, row_places, undo_bytes, write_undo

_NO_HASH = "0" * 64


@dataclass(frozen=True)
class Written:
    """What `zero_neurons` wrote.

    `sha256` and `source_sha256` are of whole files; the first is None unless it was asked for or
    an undo file states it. `neurons` counts those asked for.
    `rows_zeroed` counts rows of weights in all copies, so a neuron with an EMA twin counts twice.
    `bytes_changed` counts the bytes of tensors that differ from the source's.
    """

    path: Path
    sha256: str | None
    source_sha256: str
    neurons: int
    rows_zeroed: int
    bytes_changed: int


def zero_neurons(
    checkpoint: Checkpoint,
    neurons: Sequence[Neuron],
    out: Path,
    provenance: Mapping[str, str],
    *,
    overwrite: bool = False,
    undo: Path | None = None,
    hashed: bool = False,
) -> Written:
    """Write `checkpoint` to `out` with the value rows (and biases) of `neurons` zeroed.

    Every copy of a value layer is treated alike. All other tensor bytes are the source's, which is
    checked by reading both files back before `out` gets its name. The metadata is kept and
    extended by `nemo_prune.*` entries; keys of `provenance` may be given without that prefix.
    Neurons that an earlier run named are named again only if their rows are still zero.
    Uses a few megabytes whatever the size of the file; the source is never changed. With `undo`
    the removed rows are kept in that new file, for `restore`; it is there before `out` is, and
    never replaces another, not even with `overwrite`. With `undo` or `hashed` the output is hashed.

    Raises ManifestError for neurons that the model does not have or that are named twice,
    CheckpointError if the source cannot be read or changes meanwhile, OutputError if `out` or
    `undo` may not or cannot be written; then nothing is left behind. ValueError for reserved
    provenance keys.
    """
    out = Path(out)
    header = checkpoint.header
    check_extra(provenance)
    layers = check_neurons(checkpoint, neurons)
    listed = earlier_neurons(header)
    rows = rows_of(layers, neurons)
    check_output(header.path, out, overwrite)
    if undo is not None:
        check_undo(undo, out)
        check_room(out, [header.path], [(undo, undo_bytes(header, rows))])
    ranges = Ranges(row_places(header, rows))
    zeros = read_zeros(checkpoint) if listed else {}
    still = [n for n in listed if n.layer in zeros and n.row in zeros[n.layer].everywhere]
    # Rows that were filled again make the source another model than the one that was pruned.
    original = original_sha256(header) if len(still) == len(listed) else None
    named = union(still, neurons)

    def starting(source_hash: str, data_hash: str) -> bytes:
        return new_header(header, named, original, provenance, source_hash, data_hash)

    if len(starting(_NO_HASH, _NO_HASH)) - 8 > MAX_HEADER_BYTES:
        raise OutputError(f"{out}: its header would be larger than safetensors allows")
    inode = None
    try:
        with Source(header) as source, new_file(out, overwrite) as target:
            hashed = hashed or undo is not None
            changed, source_sha256, sha256 = _rewrite(source, target, out, ranges, starting, hashed)
            if undo is not None:
                write_undo(undo, source, rows, source_sha256, sha256)
                inode = os.fstat(target.fileno()).st_ino
            source.check_unchanged()
    except BaseException:
        # An interrupt may come when `out` has its name already: then the rows are needed.
        if undo is not None and inode is not None and not is_at(out, inode):
            undo.unlink(missing_ok=True)
        raise
    return Written(
        path=out,
        sha256=sha256 if hashed else None,
        source_sha256=source_sha256,
        neurons=len(neurons),
        rows_zeroed=sum(len(layers[neuron.layer].tensors) for neuron in neurons),
        bytes_changed=changed,
    )


def _rewrite(
    source: Source,
    target: BinaryIO,
    out: Path,
    ranges: Ranges,
    starting: Callable[[str, str], bytes],
    hashed: bool,
) -> tuple[int, str, str]:
    """Fill `target`, which becomes `out`; `starting` gives its header for the hashes it states.

    Returns how many bytes of tensors differ, the source's SHA-256 and, if `hashed`, the output's.
    """
    header = source.header
    before = bytes(source.read(0, header.data_start))
    length = len(starting(_NO_HASH, _NO_HASH))
    stop = Event()

    def hashing() -> tuple[bytes, str, str]:
        wanted = [(before, Ranges([])), (b"", ranges)]
        found = sha256s(source, wanted[: 1 + (MODELSPEC_HASH in header.metadata)], stop)
        start = starting(found[0], found[-1])
        # Its header states a hash of all the source, so the output's cannot be taken beside it.
        after = sha256s(source, [(start, ranges)], stop)[0] if hashed else ""
        return start, found[0], after

    with ThreadPoolExecutor(1) as pool:
        hashes = pool.submit(hashing)
        try:
            with ReadBack(source, target, out, length, ranges) as back:
                copy(source, target, length, ranges, back.written)
                start, source_sha256, sha256 = hashes.result()
                write_at(target, start, 0)
                return back.finish(start), source_sha256, sha256
        finally:
            stop.set()  # an interrupt must not wait for a large file's hash


def file_sha256(path: Path) -> str:
    """The SHA-256 of the whole file at `path`, 64 lower-case hexadecimal digits.

    Raises CheckpointError if it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None


# ------------------------------------------------------------------------------- what to zero


def check_neurons(checkpoint: Checkpoint, neurons: Sequence[Neuron]) -> dict[str, ValueLayer]:
    """The value layers by name, if all of `neurons` are rows of them and none is named twice."""
    layers = {layer.name: layer for layer in checkpoint.value_layers}
    seen: set[Neuron] = set()
    for neuron in neurons:
        layer = layers.get(neuron.layer)
        if layer is None:
            raise ManifestError(
                f"{checkpoint.path}: has no value layer {quoted(neuron.layer)}; the neurons are "
                f"those of another model"
            )
        if not 0 <= neuron.row < layer.rows:
            raise ManifestError(
                f"{checkpoint.path}: {layer.name} has rows 0 to {layer.rows - 1}, not "
                f"{neuron.row}; the neurons are those of another model"
            )
        if neuron in seen:
            raise ManifestError(
                f"{checkpoint.path}: row {neuron.row} of {layer.name} is to be zeroed twice; "
                f"name each neuron once"
            )
        seen.add(neuron)
    return layers


def rows_of(layers: Mapping[str, ValueLayer], neurons: Sequence[Neuron]) -> dict[str, list[int]]:
    """The rows to zero by tensor, ascending: in weights and biases, in all copies."""
    found: dict[str, list[int]] = {}
    for neuron in sorted(neurons):
        layer = layers[neuron.layer]
        for name in (*layer.tensors, *layer.biases):
            found.setdefault(name, []).append(neuron.row)
    return found
