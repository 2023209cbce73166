"""Whether a model's files have holes, as where a download keeps room for what is still to come.

Programs that fetch a file in pieces give it its full size first (aria2, axel), so its header promises no
more than is there. Rows of value layers may be pruned, and one tensor of zeros may be meant; several
neighbours of rank 2 or more, with nothing but zeros in and between them, are a hole.
"""

import os
from collections.abc import Collection

from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.checkpoint.differences import refuse_differences
from nemo_prune.errors import CheckpointError
from nemo_prune.files.header import Header, Tensor, quoted
from nemo_prune.files.rewrite import Source

_UNFINISHED = (".aria2", ".st")  # beside a file while aria2 or axel write it, and gone at its end
_PERHAPS = (".part", ".crdownload", ".download", ".fdmdownload")  # of browsers; may be another try
_LOOKED_AT = 64  # bytes of a tensor, which decide nearly every one
_CHUNK = 2**20


def refuse_unfit(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a file of differences, or a model that `hole_in` finds incomplete."""
    refuse_differences(checkpoint)
    if fault := hole_in(checkpoint):
        raise CheckpointError(fault)


def hole_in(checkpoint: Checkpoint) -> str | None:
    """Why a model is incomplete though its headers are whole, and what to do; None if it is not.

    Reads a few bytes of each tensor of its denoiser's files, and whole ones only where they are zeros.
    Raises CheckpointError if they cannot be read.
    """
    for path in checkpoint.weights().values():
        for suffix in _UNFINISHED:
            control = path.with_name(path.name + suffix)
            if os.path.lexists(control):
                return (
                    f"{path}: is not downloaded to its end, as {control.name} lies beside it; finish "
                    f"the download, or remove {control.name} if the model is whole"
                )
    for part in checkpoint.parts:
        values = {key for v in part.value_layers for key in (*v.tensors, *v.biases)}
        if hole := _first_hole(part.header, values):
            beside = [part.path.name + suffix for suffix in _PERHAPS]
            found = [name for name in beside if os.path.lexists(part.path.with_name(name))]
            return (
                f"{part.path}: {' and '.join(quoted(tensor.name) for tensor in hole)} and all between "
                f"them are zeros, as where a download was not finished"
                f"{f' ({found[0]} lies beside it)' if found else ''}; download or copy it again"
            )
    return None


def _first_hole(header: Header, values: Collection[str]) -> tuple[Tensor, Tensor] | None:
    """The first neighbours that are a hole; the value layers' tensors count as what lies between."""
    before = None
    with Source(header) as source:
        for tensor in sorted(header.tensors.values(), key=lambda tensor: tensor.start):
            if not _is_zero(source, tensor):
                before = None
            elif len(tensor.shape) > 1 and tensor.start < tensor.end and tensor.name not in values:
                if before is not None:
                    return before, tensor
                before = tensor
    return None


def _is_zero(source: Source, tensor: Tensor) -> bool:
    first, size = tensor.start, _LOOKED_AT
    while first < tensor.end:
        last = min(first + size, tensor.end)
        if any(source.read(first, last)):
            return False
        first, size = last, _CHUNK
    return True
