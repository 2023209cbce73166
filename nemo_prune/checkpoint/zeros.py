"""Which neurons of a checkpoint are zero already."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nemo_prune.checkpoint.checkpoint import Checkpoint, Part
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.files.header import DTYPE_BITS, Header, Tensor
from nemo_prune.files.rewrite import Source

# In these formats the sign bit alone is not -0 but the one NaN.
_NO_NEGATIVE_ZERO = {"F8_E4M3FNUZ", "F8_E5M2FNUZ"}
_CHUNK = 2**18  # stays in the processor's cache from reading to looking
_HEAD = 64  # bytes, a whole number of elements of any size


@dataclass(frozen=True)
class Zeros:
    """Rows of a value layer, ascending, whose weights and biases are all 0 or -0.

    `everywhere`: in every copy of the layer that the model has. `somewhere`: in some copy but not
    in all, so that what a program shows depends on the copy that it loads.
    """

    everywhere: tuple[int, ...]
    somewhere: tuple[int, ...]


def model_zeros(checkpoint: Checkpoint) -> dict[str, Zeros]:
    """The zero rows by layer; layers with none are omitted.

    Reads the value layers only. Raises CheckpointError if they cannot be read.
    """
    return zeros_in(*checkpoint.copies)


def already_zero(checkpoint: Checkpoint, neurons: Sequence[Neuron]) -> int:
    """How many of `neurons` are zero in every copy; reads their layers alone."""
    chosen = {neuron.layer for neuron in neurons}
    copies = [
        [replace(p, value_layers=tuple(v for v in p.value_layers if v.name in chosen)) for p in copy]
        for copy in checkpoint.copies
    ]
    zeros = zeros_in(*copies)
    return sum(n.layer in zeros and n.row in zeros[n.layer].everywhere for n in neurons)


def zeros_in(*copies: Sequence[Part]) -> dict[str, Zeros]:
    """`model_zeros` of these sets of files, each of which is a copy of the denoiser or a part of one."""
    found: dict[str, list[set[int]]] = {}
    for parts in copies:
        tensors: dict[str, set[int]] = {}
        weights: dict[str, str] = {}
        for part in parts:
            keys = [key for v in part.value_layers for key in (*v.tensors, *v.biases)]
            weights |= {key: v.name for v in part.value_layers for key in v.tensors}
            if keys:
                with Source(part.header) as source:
                    for key in keys:
                        tensors[key] = set(_rows_of_zeros(source, part.header.tensors[key]))
        for key, layer in weights.items():
            bias = key.removesuffix("weight") + "bias"
            found.setdefault(layer, []).append(tensors[key] & tensors.get(bias, tensors[key]))
    zeros = {}
    for layer, rows in found.items():
        every: set[int] = set.intersection(*rows)
        if some := set[int]().union(*rows):
            zeros[layer] = Zeros(tuple(sorted(every)), tuple(sorted(some - every)))
    return zeros


def zero_in_value(header: Header, rows: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those of `rows`, (tensor, row), whose numbers are all 0 or -0."""
    found = set()
    with Source(header) as source:
        for name, row in rows:
            tensor = header.tensors[name]
            data = source.read(*tensor.row(row))
            if DTYPE_BITS[tensor.dtype] >= 8 and _are_zeros(data, 0, len(data), tensor):
                found.add((name, row))
    return found


def _rows_of_zeros(source: Source, tensor: Tensor) -> Iterator[int]:
    rows, element = tensor.shape[0], DTYPE_BITS[tensor.dtype] // 8
    width = (tensor.end - tensor.start) // rows
    step = max(1, _CHUNK // width)
    # Not mapped into memory: a file that is cut off meanwhile would kill the process.
    buffer = bytearray(step * width)
    for row in range(0, rows, step):
        start, count = tensor.start + row * width, min(step, rows - row)
        data = source.read(start, start + count * width, buffer)
        # The sign and the exponent's first bits of each row's first number decide nearly every row.
        for place, mark in enumerate(data[element - 1 :: width]):
            if mark in (0, 0x80) and _is_zero(data, place * width, (place + 1) * width, tensor):
                yield row + place


def _is_zero(data: bytearray, first: int, last: int, tensor: Tensor) -> bool:
    # Of what looks like a zero at first, the next numbers decide most.
    return all(_are_zeros(data, first, end, tensor) for end in (min(first + _HEAD, last), last))


def _are_zeros(data: bytearray, first: int, last: int, tensor: Tensor) -> bool:
    zeros = data.count(0, first, last)
    if zeros < last - first and tensor.dtype not in _NO_NEGATIVE_ZERO:
        element = DTYPE_BITS[tensor.dtype] // 8
        # The sign is in the last byte of each element, the number little-endian.
        zeros += data[first + element - 1 : last : element].count(0x80)
    return zeros == last - first
