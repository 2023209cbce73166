"""The edit as a LoRA: a small file that mends a model where it is loaded, without a new checkpoint.

Zeroing rows of a weight W adds a matrix of low rank to it. With the k rows r_1 to r_k of a layer to be
zeroed::

    up    [rows, k]     column j is 1 in row r_j and 0 elsewhere
    down  [k, columns]  row j is -W[r_j]
    W + up @ down       is W with these rows 0, exactly, at weight 1 and alpha = k

So the file holds the removed rows: who has it can put back what was removed, as with an undo file.
All layers are filled up with zeros to the rank of the largest: with a rank for each layer, diffusers
0.42 takes one layer's alpha for all (its names for alphas match no layer) and scales the others wrongly.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemo_prune import __version__
from nemo_prune.checkpoint.checkpoint import Checkpoint, ValueLayer, check_neurons, model_sha256
from nemo_prune.checkpoint.holes import refuse_unfit
from nemo_prune.checkpoint.neurons import Neuron, short_name
from nemo_prune.checkpoint.provenance import NEURONS, VERSION, rows_json
from nemo_prune.errors import CheckpointError, OptionError, option
from nemo_prune.files.atomic import check_place, check_suffix, new_file, refuse_inputs
from nemo_prune.files.header import Header, encode_header
from nemo_prune.files.rewrite import Source, write_at
from nemo_prune.files.trees import check_apart
from nemo_prune.files.undo import SOURCE_SHA256

LoraNames = Literal["kohya", "diffusers"]
"""Whose names the tensors have; diffusers reads both, A1111, Forge and ComfyUI are surest of kohya's."""

# 1.0 in the dtypes in which a sign bit, the highest of the last byte, negates.
_ONE = {
    "F16": b"\x00\x3c",
    "BF16": b"\x80\x3f",
    "F32": struct.pack("<f", 1),
    "F64": struct.pack("<d", 1),
}
_NEGATED = bytes(byte ^ 0x80 for byte in range(256))
# What kohya's scripts and ModelSpec call the families.
_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2",
    "sdxl": "stable-diffusion-xl-v1-base",
}


@dataclass(frozen=True)
class _Layer:
    """A layer of the LoRA: `rows` are to be zeroed in the weight `tensor` of the file `header`."""

    name: str
    header: Header
    tensor: str
    rows: tuple[int, ...]


def check_lora(
    checkpoint: Checkpoint, neurons: Sequence[Neuron], out: Path, *, overwrite: bool = False
) -> None:
    """Raise if no LoRA that zeroes `neurons` could be written to `out`; cheap, writes nothing.

    Raises ManifestError for neurons that the model does not have, OutputError for an output that is
    or lies in the model, or exists, unless `overwrite`, CheckpointError for layers with biases or
    8-bit weights, which a LoRA cannot make zero, OptionError if there is nothing to zero.
    """
    check_neurons(checkpoint, neurons)
    refuse_unfit(checkpoint)
    if checkpoint.family not in _VERSIONS:
        raise CheckpointError(
            f"{checkpoint.path}: is a {checkpoint.family} model, for which no LoRA is written, as its "
            f"value layers have biases, which a LoRA does not change; write a checkpoint with "
            f"{option('output')}"
        )
    if not neurons:
        raise OptionError(f"{option('lora')} {out}: there is no neuron to remove, so no LoRA to write")
    if checkpoint.is_folder:
        check_apart(out, checkpoint.path, "the model's folder")
    refuse_inputs([out], [checkpoint.path])
    check_suffix(out)
    check_place(out, overwrite)
    chosen = {neuron.layer for neuron in neurons}
    for layer in checkpoint.value_layers:
        if layer.name in chosen:
            _check_layer(checkpoint, layer)
    downs = (_factors(layer, len(layer.rows))[3] for layer in _layers(checkpoint, neurons))
    if not any(down.strip(b"\0\x80") for down in downs):  # 0 and -0
        raise OptionError(
            f"{option('lora')} {out}: the rows of all neurons are zero in {checkpoint.path} already, so "
            f"there is no LoRA to write; give the model that was not pruned"
        )


def _check_layer(checkpoint: Checkpoint, layer: ValueLayer) -> None:
    if layer.biases:
        raise CheckpointError(
            f"{checkpoint.path}: {short_name(layer.name)} has a bias, which a LoRA does not change, so "
            f"its rows would not be gone; write a checkpoint with {option('output')}"
        )
    dtype = checkpoint.tensors[layer.tensors[0]].dtype
    if dtype not in _ONE:
        raise CheckpointError(
            f"{checkpoint.path}: {short_name(layer.name)} is {dtype}, which programs scale and round "
            f"as they like before a LoRA is added; make the LoRA from an F16 or F32 file of the model"
        )


@contextmanager
def new_lora(
    checkpoint: Checkpoint,
    neurons: Sequence[Neuron],
    out: Path,
    names: LoraNames = "kohya",
    *,
    overwrite: bool = False,
) -> Iterator[str]:
    """Write a LoRA that zeroes `neurons` of the model when it is added at weight 1.

    The block is given the model's hash. The LoRA lies on the disk when it begins, and gets its name when
    it ends; if it raises, nothing is left. Others get no more rights than the model gives them.

    Args:
        checkpoint: the source; its main copy's rows are taken, in its own dtype.
        neurons: what to zero; each once.
        out: the safetensors file to write, of a rank as large as a layer has neurons to zero.
        names: of the tensors.
        overwrite: whether a file that exists may be replaced.

    Raises what `check_lora` raises, CheckpointError if the source cannot be read.
    """
    check_lora(checkpoint, neurons, out, overwrite=overwrite)
    source_sha256 = model_sha256(checkpoint)
    layers = _layers(checkpoint, neurons)
    rank = max(len(layer.rows) for layer in layers)
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for layer in layers:
        dtype, (rows, columns), up, down = _factors(layer, rank)
        if names == "kohya":
            stem = f"lora_unet_{layer.name.replace('.', '_')}"
            tensors[f"{stem}.alpha"] = ("F32", (), struct.pack("<f", rank))
            ends = ("lora_down.weight", "lora_up.weight")
        else:
            stem, ends = f"unet.{layer.name}", ("lora_A.weight", "lora_B.weight")
        tensors[f"{stem}.{ends[0]}"] = (dtype, (rank, columns), down)
        tensors[f"{stem}.{ends[1]}"] = (dtype, (rows, rank), up)
    metadata = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_base_model_version": _VERSIONS[checkpoint.family],
        "ss_v2": str(checkpoint.family == "sd2"),
        "ss_output_name": out.stem.encode("utf-8", "backslashreplace").decode(),
        "ss_training_comment": f"not trained: zeroes {len(neurons)} neurons; use at weight 1",
        "modelspec.architecture": f"{_ARCHITECTURES[checkpoint.family]}/lora",
        VERSION: __version__,
        SOURCE_SHA256: source_sha256,
        NEURONS: rows_json(neurons),
    }
    entries: dict[str, object] = {"__metadata__": metadata}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        offsets = (position, position + len(data))
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        position = offsets[1]
    content = encode_header(entries) + b"".join(data for _, _, data in tensors.values())
    with new_file(out, overwrite, like=layers[0].header.path) as file:
        write_at(file, content, 0)
        os.fsync(file.fileno())
        yield source_sha256


def _layers(checkpoint: Checkpoint, neurons: Sequence[Neuron]) -> list[_Layer]:
    """In the order of the network, those that lose rows."""
    headers = {key: part.header for part in checkpoint.copies[0] for key in part.header.tensors}
    found = []
    for layer in checkpoint.value_layers:
        key = layer.tensors[0]
        if rows := tuple(sorted(n.row for n in neurons if n.layer == layer.name)):
            found.append(_Layer(layer.name, headers[key], key, rows))
    return found


def _factors(layer: _Layer, rank: int) -> tuple[str, tuple[int, ...], bytes, bytes]:
    """(dtype, shape of the weight, bytes of up [rows, rank], bytes of down [rank, columns])."""
    tensor = layer.header.tensors[layer.tensor]
    one = _ONE[tensor.dtype]
    size, (rows, columns) = len(one), tensor.shape
    up, down = bytearray(rows * rank * size), bytearray(rank * columns * size)
    with Source(layer.header) as source:
        for number, row in enumerate(layer.rows):
            place = (row * rank + number) * size
            up[place : place + size] = one
            data = source.read(*tensor.row(row))
            data[size - 1 :: size] = data[size - 1 :: size].translate(_NEGATED)
            down[number * columns * size : (number + 1) * columns * size] = data
        source.check_unchanged()
    return tensor.dtype, tensor.shape, bytes(up), bytes(down)
