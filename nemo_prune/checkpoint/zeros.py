"""Which neurons of a checkpoint are zero already; no torch."""

from collections.abc import Iterator
from dataclasses import dataclass

from nemo_prune.checkpoint.families import Checkpoint, ValueLayer
from nemo_prune.files.dtypes import DTYPE_BITS
from nemo_prune.files.header import Tensor
from nemo_prune.files.streams import Source

# In these formats the sign bit alone is not -0 but the one NaN.
_NO_NEGATIVE_ZERO = {"F8_E4M3FNUZ", "F8_E5M2FNUZ"}
_CHUNK = 2**18  # stays in the processor's cache from reading to looking
_HEAD = 64  # bytes, a whole number of elements of any size


@dataclass(frozen=True)
class Zeros:
    """Rows of a value layer, ascending, whose weights and biases are all 0 or -0.

    `everywhere`: in every copy of the layer that the file has. `somewhere`: in some copy but not
    in all, so that what a program shows depends on the copy that it loads.
    """

    everywhere: tuple[int, ...]
    somewhere: tuple[int, ...]


def read_zeros(checkpoint: Checkpoint) -> dict[str, Zeros]:
    """The zero rows by layer; layers with none are omitted.

    Reads the value layers only. Raises CheckpointError if they cannot be read.
    """
    found: dict[str, Zeros] = {}
    with Source(checkpoint.header) as source:
        for layer in checkpoint.value_layers:
            copies = [_zero_rows(source, *tensors) for tensors in _copies(checkpoint, layer)]
            if not copies:
                continue  # a shard that holds the bias alone
            every, some = set.intersection(*copies), set.union(*copies)
            if some:
                found[layer.name] = Zeros(tuple(sorted(every)), tuple(sorted(some - every)))
    return found


def _copies(checkpoint: Checkpoint, layer: ValueLayer) -> list[list[Tensor]]:
    """The tensors of each copy of the layer: its weight, and its bias if it has one."""
    tensors = checkpoint.header.tensors
    pairs = [(name, name.removesuffix("weight") + "bias") for name in layer.tensors]
    return [[tensors[name] for name in pair if name in tensors] for pair in pairs]


def _zero_rows(source: Source, weight: Tensor, *bias: Tensor) -> set[int]:
    return set.intersection(*(set(_rows_of_zeros(source, tensor)) for tensor in (weight, *bias)))


def _rows_of_zeros(source: Source, tensor: Tensor) -> Iterator[int]:
    rows, element = tensor.shape[0], DTYPE_BITS[tensor.dtype] // 8
    width = (tensor.end - tensor.start) // rows
    step = max(1, _CHUNK // width)
    # Not mapped into memory: a file that is cut off meanwhile would kill the process.
    buffer = bytearray(step * width)
    for row in range(0, rows, step):
        start, count = tensor.start + row * width, min(step, rows - row)
        data = source.read(start, start + count * width, buffer)
        # The sign and the exponent's first bits of each row's first number tell nearly every row.
        for place, mark in enumerate(data[element - 1 :: width]):
            if mark in (0, 0x80) and _is_zero(data, place * width, (place + 1) * width, tensor):
                yield row + place


def _is_zero(data: bytearray, first: int, last: int, tensor: Tensor) -> bool:
    # Of what looks like a zero at first, the next numbers tell most.
    return all(_are_zeros(data, first, end, tensor) for end in (min(first + _HEAD, last), last))


def _are_zeros(data: bytearray, first: int, last: int, tensor: Tensor) -> bool:
    zeros = data.count(0, first, last)
    if zeros < last - first and tensor.dtype not in _NO_NEGATIVE_ZERO:
        element = DTYPE_BITS[tensor.dtype] // 8
        # The sign is in the last byte of each element, the number little-endian.
        zeros += data[first + element - 1 : last : element].count(0x80)
    return zeros == last - first
