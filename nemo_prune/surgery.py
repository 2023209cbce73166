"""Zero neurons in a copy of a safetensors file, and prove that nothing else changed.

Two passes over the file, a few megabytes at a time. The first copies and zeroes while it hashes
the source. The second reads both files back and compares them byte by byte while it hashes the
output. The new header is written in between, because it states the source's hash.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_prune.errors import ManifestError, OutputError
from nemo_prune.families import Checkpoint, ValueLayer
from nemo_prune.header import DTYPE_BITS, MAX_HEADER_BYTES, Header, quoted
from nemo_prune.manifest import Neuron
from nemo_prune.placing import check_output, new_file
from nemo_prune.provenance import (
    check_extra,
    earlier_neurons,
    new_header,
    provenance_of,
)
from nemo_prune.streams import Ranges, Source, copy, unreadable, verify, write_at

__all__ = ["Written", "file_sha256", "provenance_of", "zero_neurons", "zeroed_rows"]

_NO_HASH = "0" * 64
# In these formats the sign bit alone is not -0 but the one NaN.
_NO_NEGATIVE_ZERO = {"F8_E4M3FNUZ", "F8_E5M2FNUZ"}


@dataclass(frozen=True)
class Written:
    """What `zero_neurons` wrote.

    `sha256` and `source_sha256` are of whole files. `neurons` counts those asked for.
    `rows_zeroed` counts rows of weights in all copies, so a neuron with an EMA twin counts twice.
    `bytes_changed` counts the bytes of tensors that differ from the source's.
    """

    path: Path
    sha256: str
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
) -> Written:
    """Write `checkpoint` to `out` with the value rows (and biases) of `neurons` zeroed.

    Every copy of a value layer is treated alike. All other tensor bytes are the source's, which is
    checked by reading both files back before `out` gets its name. The metadata is kept and
    extended by `nemo_prune.*` entries; keys of `provenance` may be given without that prefix.
    Uses a few megabytes whatever the size of the file; the source is never changed.

    Raises ManifestError for neurons that the model does not have or that are named twice,
    CheckpointError if the source cannot be read or changes meanwhile, OutputError if `out` may not
    or cannot be written; then nothing is left behind. ValueError for reserved provenance keys.
    """
    out = Path(out)
    header = checkpoint.header
    check_extra(provenance)
    layers = _check_neurons(checkpoint, neurons)
    earlier_neurons(header)
    check_output(header.path, out, overwrite)
    ranges = _ranges(header, layers, neurons)
    # Stands in for the length of the real one, whose hashes are not known yet.
    length = len(new_header(header, neurons, provenance, _NO_HASH, _NO_HASH))
    if length - 8 > MAX_HEADER_BYTES:
        raise OutputError(f"{out}: its header would be larger than safetensors allows")
    with Source(header) as source, new_file(out, overwrite) as target:
        source_hash, data_hash = copy(source, target, length, ranges)
        start = new_header(header, neurons, provenance, source_hash, data_hash)
        write_at(target, start, 0)
        sha256, changed = verify(source, target, out, start, ranges)
        source.check_unchanged()
    return Written(
        path=out,
        sha256=sha256,
        source_sha256=source_hash,
        neurons=len(neurons),
        rows_zeroed=sum(len(layers[neuron.layer].tensors) for neuron in neurons),
        bytes_changed=changed,
    )


def file_sha256(path: Path) -> str:
    """The SHA-256 of the whole file at `path`, 64 lower-case hexadecimal digits.

    Raises CheckpointError if it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None


def zeroed_rows(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """The rows, by layer, whose weights are all 0 or -0 in the main copy; layers with none omitted.

    Reads the value layers only. Raises CheckpointError if they cannot be read.
    """
    found: dict[str, list[int]] = {}
    with Source(checkpoint.header) as source:
        for layer in checkpoint.value_layers:
            tensor = checkpoint.header.tensors[layer.tensors[0]]
            data = source.read(tensor.start, tensor.end)
            width = len(data) // layer.rows
            element = DTYPE_BITS[tensor.dtype] // 8
            signed = tensor.dtype not in _NO_NEGATIVE_ZERO
            rows = []
            for row in range(layer.rows):
                weights = data[row * width : (row + 1) * width]
                zeros = weights.count(0)
                if signed and zeros < width:
                    # The sign is in the last byte of each element, the number little-endian.
                    zeros += weights[element - 1 :: element].count(0x80)
                if zeros == width:
                    rows.append(row)
            if rows:
                found[layer.name] = rows
    return found


# ------------------------------------------------------------------------------- what to zero


def _check_neurons(checkpoint: Checkpoint, neurons: Sequence[Neuron]) -> dict[str, ValueLayer]:
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


def _ranges(header: Header, layers: Mapping[str, ValueLayer], neurons: Sequence[Neuron]) -> Ranges:
    found = []
    for neuron in neurons:
        layer = layers[neuron.layer]
        for name in (*layer.tensors, *layer.biases):
            tensor = header.tensors[name]
            width = (tensor.end - tensor.start) // layer.rows
            start = tensor.start + neuron.row * width
            found.append((start, start + width))
    return Ranges(found)
