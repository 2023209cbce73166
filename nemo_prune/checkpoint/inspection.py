"""What a file says about itself, as plain JSON; no torch."""

from pathlib import Path
from typing import Any

from nemo_prune.checkpoint.families import Checkpoint
from nemo_prune.checkpoint.folder import Folder
from nemo_prune.checkpoint.models import model_sha256, model_zeros
from nemo_prune.checkpoint.provenance import MODELSPEC_HASH, provenance_of
from nemo_prune.checkpoint.zeros import Zeros
from nemo_prune.files.hashing import file_hashes


def inspection(checkpoint: Checkpoint, hashed: bool = False) -> dict[str, Any]:
    """Family, layout, components, value layers with rows already zero, and provenance.

    "zeroed" are the rows that are zero in every copy of a layer, biases included,
    "zeroed_in_some_copies" those where the copies disagree. `hashed` adds "hashes": of the whole
    file ("sha256", "a1111"), of all behind the header ("modelspec"), and "modelspec_stated", what
    the metadata say of the latter or None.

    Of a folder, bytes, dtypes and provenance are the main copy's, "files" are where the copies lie,
    "unedited" those that cannot be pruned, and "hashes" has only "sha256", `folder_sha256`.

    Reads headers and value layers, and whole files only if `hashed`. Raises CheckpointError if
    they cannot be read.
    """
    zeros = model_zeros(checkpoint)
    none = Zeros((), ())
    found = {
        "path": str(checkpoint.path),
        "bytes": checkpoint.header.size,
        "family": checkpoint.family,
        "layout": checkpoint.layout,
        "prediction_type": checkpoint.prediction_type,
        "text_encoder": checkpoint.text_encoder,
        "vae": checkpoint.vae,
        "ema": checkpoint.ema,
        "in_channels": checkpoint.in_channels,
        "dtypes": sorted({tensor.dtype for tensor in checkpoint.header.tensors.values()}),
        "value_layers": [
            {
                "name": layer.name,
                "part": layer.part,
                "rows": layer.rows,
                "columns": layer.columns,
                "copies": len(layer.tensors),
                "zeroed": list(zeros.get(layer.name, none).everywhere),
                "zeroed_in_some_copies": list(zeros.get(layer.name, none).somewhere),
            }
            for layer in checkpoint.value_layers
        ],
        "provenance": provenance_of(checkpoint.header),
    }
    if isinstance(checkpoint, Folder):
        found["files"] = [_within(checkpoint, part.path) for part in checkpoint.parts]
        found["unedited"] = [_within(checkpoint, path) for path in checkpoint.twins]
        if hashed:
            found["hashes"] = {"sha256": model_sha256(checkpoint)}
    elif hashed:
        hashes = file_hashes(checkpoint.header)
        found["hashes"] = {
            "sha256": hashes.sha256,
            "a1111": hashes.a1111,
            "modelspec": hashes.modelspec,
            "modelspec_stated": checkpoint.header.metadata.get(MODELSPEC_HASH),
        }
    return found


def _within(folder: Folder, path: Path) -> str:
    return path.relative_to(folder.path).as_posix()
