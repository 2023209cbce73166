"""What a model on disk is and says about itself, as plain JSON."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from nemo_prune.checkpoint.checkpoint import Checkpoint, channels_from_text, model_sha256
from nemo_prune.checkpoint.differences import holds_differences
from nemo_prune.checkpoint.foreign import class_of, foreign_encoder, is_kolors
from nemo_prune.checkpoint.holes import hole_in
from nemo_prune.checkpoint.neurons import union
from nemo_prune.checkpoint.provenance import MODELSPEC_HASH, earlier_neurons, provenance_of
from nemo_prune.checkpoint.zeros import Zeros, model_zeros
from nemo_prune.errors import CheckpointError, rendered
from nemo_prune.files.hashing import file_hashes


def inspection(checkpoint: Checkpoint, hashed: bool = False) -> dict[str, Any]:
    """Family, layout, components, value layers with rows already zero, and provenance.

    "zeroed" are the rows that are zero in every copy of a layer, biases included,
    "zeroed_in_some_copies" those where the copies disagree. "named_but_not_zero" are neurons that a
    file's metadata names as removed (`nemo_prune.neurons`) though their rows are not zero in every copy,
    as when a program kept the metadata and lost the edit, or an unpruned copy was laid beside; None if
    that entry is damaged. `hashed` adds "hashes": of the whole file ("sha256", "a1111"), of all behind
    the header ("modelspec"), and "modelspec_stated", what the metadata say of the latter or None.

    "text_encoder_foreign" is the kind of a text encoder that its family is not read with, or None.

    "incomplete" is why the model was not downloaded to its end, as `hole_in` says it, or None.

    "kind" is what it is beside its family ("kolors", "lcm", "instruct-pix2pix", "gligen", "multi-view",
    "blip-diffusion", "inpainting", "draws from more than text" (by its channels; no captions are
    scored), "differences to a model"), or None.

    Of a folder, bytes, dtypes and provenance are the main copy's, "copies" has files, bytes and
    dtypes of each, "files" are where they lie, "unedited" those that cannot be pruned, and "hashes"
    has only "sha256", `model_sha256`.

    Reads headers and value layers, and whole files only if `hashed`. Raises CheckpointError if
    they cannot be read.
    """
    zeros = model_zeros(checkpoint)
    none = Zeros((), ())
    keys = Counter(v.name for part in checkpoint.parts for v in part.value_layers for _ in v.tensors)
    found = {
        "path": str(checkpoint.path),
        "bytes": sum(part.header.size for part in checkpoint.copies[0]),
        "family": checkpoint.family,
        "kind": _kind(checkpoint),
        "layout": checkpoint.layout,
        "prediction_type": checkpoint.prediction_type,
        "prediction_type_told_by": checkpoint.told_by or None,
        "prediction_type_unclear": None if checkpoint.unclear is None else rendered(checkpoint.unclear),
        "text_encoder": checkpoint.text_encoder,
        "text_encoder_foreign": (checkpoint.text_encoder and foreign_encoder(checkpoint)) or None,
        "vae": checkpoint.vae,
        "ema": checkpoint.ema,
        "in_channels": checkpoint.in_channels,
        "dtypes": sorted({tensor.dtype for tensor in checkpoint.tensors.values()}),
        "value_layers": [
            {
                "name": layer.name,
                "part": layer.part,
                "rows": layer.rows,
                "columns": layer.columns,
                "copies": keys[layer.name],
                "zeroed": list(zeros.get(layer.name, none).everywhere),
                "zeroed_in_some_copies": list(zeros.get(layer.name, none).somewhere),
            }
            for layer in checkpoint.value_layers
        ],
        "incomplete": None if (hole := hole_in(checkpoint)) is None else rendered(hole),
        "named_but_not_zero": _named_but_not_zero(checkpoint, zeros),
        "provenance": provenance_of(checkpoint.metadata),
    }
    if checkpoint.is_folder:
        edited = [part.path for part in checkpoint.parts if part.value_layers]
        found["copies"] = [
            {
                "files": [checkpoint.place(part.path) for part in copy],
                "bytes": sum(part.header.size for part in copy),
                "dtypes": sorted({t.dtype for part in copy for t in part.header.tensors.values()}),
            }
            for copy in checkpoint.copies
        ]
        found["files"] = [checkpoint.place(path) for path in edited]
        found["unedited"] = [checkpoint.place(path) for path in checkpoint.twins]
        if hashed:
            found["hashes"] = {"sha256": model_sha256(checkpoint)}
    elif hashed:
        hashes = file_hashes(checkpoint.parts[0].header)
        found["hashes"] = {
            "sha256": hashes.sha256,
            "a1111": hashes.a1111,
            "modelspec": hashes.modelspec,
            "modelspec_stated": checkpoint.metadata.get(MODELSPEC_HASH),
        }
    return found


def _kind(checkpoint: Checkpoint) -> str | None:
    """What a model is beside its family, by its configs and by the tensors that only such have."""
    stated = class_of(checkpoint.path) if checkpoint.is_folder else ""
    names, outputs = checkpoint.tensors, checkpoint.out_channels
    pix2pix = "InstructPix2Pix" in stated
    from_text = channels_from_text(outputs, pix2pix)
    kinds = {
        "kolors": is_kolors(checkpoint.family, names) or "Kolors" in stated,
        "lcm": any(".cond_proj." in name for name in names),
        "instruct-pix2pix": pix2pix,
        "gligen": any(".fuser." in name for name in names),
        "multi-view": any("camera_embed" in name for name in names),  # MVDream
        "blip-diffusion": "BlipDiffusion" in stated,  # takes a picture of what it is to draw
        "inpainting": checkpoint.in_channels == 9,
        "draws from more than text": bool(outputs) and checkpoint.in_channels not in from_text,
        "differences to a model": holds_differences(checkpoint),
    }
    return ", ".join(kind for kind, holds in kinds.items() if holds) or None


def _named_but_not_zero(
    checkpoint: Checkpoint, zeros: Mapping[str, Zeros]
) -> list[dict[str, Any]] | None:
    try:
        named = union(*(earlier_neurons(part.header) for copy in checkpoint.copies for part in copy))
    except CheckpointError:
        return None
    left = {n for n in named if n.layer not in zeros or n.row not in zeros[n.layer].everywhere}
    return [{"layer": neuron.layer, "row": neuron.row} for neuron in sorted(left)]
