"""Whether a file holds differences to a model under the model's own names, as IC-Light's files do.

They are added to a model before it draws, so rows of zeros in them remove nothing. Names and shapes do
not tell them from a model; the scales of the layer norms before the value layers do, since training
begins with them at 1.
"""

import struct

from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.errors import CheckpointError
from nemo_prune.files.rewrite import Source

_FORMATS = {"F64": "d", "F32": "f", "F16": "e"}
_FAR_FROM_ONE = 0.1  # of the mean of scales without their signs; in models it is above .3


def holds_differences(checkpoint: Checkpoint) -> bool:
    """True where all those scales lie about 0; False where there are none, or not as plain numbers.

    Reads a few kilobytes. Raises CheckpointError if they cannot be read.
    """
    means = []
    for part in checkpoint.copies[0] if checkpoint.copies else ():
        keys = (key for layer in part.value_layers for key in layer.tensors[:1])
        names = [key.replace("attn2.to_v.", "norm2.") for key in keys]
        scales = [tensor for name in names if (tensor := part.header.tensors.get(name)) is not None]
        if not scales:
            continue
        with Source(part.header) as source:
            for tensor in scales:
                data = source.read(tensor.start, tensor.end)
                kind = _FORMATS.get(tensor.dtype, "f")
                if tensor.dtype == "BF16":  # the upper half of F32
                    data = bytearray(b"".join(b"\0\0" + data[n : n + 2] for n in range(0, len(data), 2)))
                elif tensor.dtype not in _FORMATS:
                    return False
                numbers = [abs(number) for (number,) in struct.iter_unpack(f"<{kind}", data)]
                means.append(sum(numbers) / max(1, len(numbers)))
    return bool(means) and 0 < max(means) < _FAR_FROM_ONE  # 0: of a model that is damaged


def refuse_differences(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a file of differences."""
    if holds_differences(checkpoint):
        channels = checkpoint.in_channels
        takes = f", and its UNet takes {channels} channels" if channels not in (4, 9) else ""
        raise CheckpointError(
            f"{checkpoint.path}: holds differences to a model and no model (its norms' scales lie about "
            f"0, not 1{takes}), as IC-Light's files do, so rows of zeros in it would remove nothing; "
            f"give the model that it is added to"
        )
