"""What a file says about itself, as plain JSON; no torch."""

from typing import Any

from nemo_prune.families import Checkpoint
from nemo_prune.surgery import provenance_of, zeroed_rows


def inspection(checkpoint: Checkpoint) -> dict[str, Any]:
    """Family, layout, components, value layers with rows already zero, and provenance.

    Reads the header and the value layers only. Raises CheckpointError if they cannot be read.
    """
    zeroed = zeroed_rows(checkpoint)
    return {
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
                "zeroed": zeroed.get(layer.name, []),
            }
            for layer in checkpoint.value_layers
        ],
        "provenance": provenance_of(checkpoint.header),
    }
