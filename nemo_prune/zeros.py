"""Which neurons of a checkpoint are zero already; no torch."""

from dataclasses import dataclass

from nemo_prune.families import Checkpoint, ValueLayer
from nemo_prune.header import DTYPE_BITS, Tensor
from nemo_prune.streams import Source

# In these formats the sign bit alone is not -0 but the one NaN.
_NO_NEGATIVE_ZERO = {"F8_E4M3FNUZ", "F8_E5M2FNUZ"}
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
    rows = set(range(weight.shape[0]))
    for tensor in (weight, *bias):
        data = source.read(tensor.start, tensor.end)
        rows = {row for row in rows if _is_zero(data, row, tensor)}
    return rows


def _is_zero(data: bytearray, row: int, tensor: Tensor) -> bool:
    first, last = (place - tensor.start for place in tensor.row(row))
    # Nearly every row is told by its first numbers, which spares looking at hundreds of megabytes.
    return all(_are_zeros(data, first, end, tensor) for end in (min(first + _HEAD, last), last))


def _are_zeros(data: bytearray, first: int, last: int, tensor: Tensor) -> bool:
    zeros = data.count(0, first, last)
    if zeros < last - first and tensor.dtype not in _NO_NEGATIVE_ZERO:
        element = DTYPE_BITS[tensor.dtype] // 8
        # The sign is in the last byte of each element, the number little-endian.
        zeros += data[first + element - 1 : last : element].count(0x80)
    return zeros == last - first
