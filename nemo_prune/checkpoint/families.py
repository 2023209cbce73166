"""Find out which model a safetensors file holds, and where its value layers lie.

Everything is told from the names and shapes of the tensors, so thinner and shorter UNets of the
known families are recognized too. A value layer is known by its name in diffusers, whatever the
layout of the file, so that one manifest fits all files of a model.
"""

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nemo_prune.checkpoint.blocks import DIFFUSERS_VALUE, Blocks
from nemo_prune.checkpoint.foreign import is_value_like, refuse_whole, refuse_without_values
from nemo_prune.checkpoint.neurons import network_order
from nemo_prune.errors import CheckpointError, OptionError, option
from nemo_prune.files.header import Header, Tensor, quoted, read_header

ZERO_IS_ZERO = frozenset(
    {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}
)
"""Dtypes in which zero bytes mean 0.0: not F8_E8M0 (2^-127), not quantized integers (an offset)."""

# Of neurons in a layer, and of channels of its text; the largest known are 1280 and 2048.
_MOST = 4096
_LDM_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "")
SHARD = re.compile(r"-\d{5}-of-\d{5}(\.[\w-]+)?\.safetensors$")
# Factors beside an 8-bit weight: whatever they are, zero times them is zero.
SCALES = (".scale_weight", ".weight_scale", ".scale_input", ".input_scale", ".comfy_quant")

_V = "v_prediction"
_PREDICTION_TYPES = {"epsilon": "epsilon", "eps": "epsilon", "v": _V, "v_prediction": _V,
                     "v-prediction": _V, "vpred": _V, "v_pred": _V}  # fmt: skip


@dataclass(frozen=True)
class ValueLayer:
    """The map `attn2.to_v` of one cross-attention block.

    `name` is canonical: its module's name in diffusers. `part` is "down", "mid" or "up".
    The weight is [rows, columns], a row a neuron, the columns the text embedding's channels.
    `tensors` are the keys of every copy of the weight in this file, the main one first, then EMA
    twins; `biases` likewise, [rows], and usually empty.
    """

    name: str
    part: str
    rows: int
    columns: int
    tensors: tuple[str, ...]
    biases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A recognized file.

    `family` is "sd1", "sd2" or "sdxl". `layout` is "ldm" (a single file with a text encoder or VAE
    beside the UNet), "unet-ldm" or "unet-diffusers" (a UNet alone, by the names it uses).
    `value_layers` are in the order of the network. `in_channels` is the UNet's: 4, or 9 for
    inpainting. `prediction_type` is "epsilon", "v_prediction", or None where the file does not say.
    """

    header: Header
    family: str
    layout: str
    value_layers: tuple[ValueLayer, ...]
    text_encoder: bool
    vae: bool
    ema: bool
    in_channels: int
    prediction_type: str | None

    @property
    def path(self) -> Path:
        """What was recognized: the file, or the folder."""
        return self.header.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The file or files that together hold the main copy of the denoiser."""
        return (self.header.path,)

    @property
    def kind(self) -> str:
        """The family and the size of its value layers; equal for all files of one architecture."""
        rows = sum(layer.rows for layer in self.value_layers)
        return (
            f"{self.family}, {len(self.value_layers)} value layers with {rows} rows, "
            f"{self.value_layers[0].columns} text channels"
        )

    def select(self, layers: str) -> tuple[ValueLayer, ...]:
        """The value layers that `layers` names, in the order of the network.

        "down+mid" (the paper's), any other sum of "down", "mid" and "up", "all", or patterns on
        canonical names (`*`, `?`, `[...]`), separated by commas. Raises OptionError for a pattern
        that matches nothing.
        """
        chosen: set[str] = set()
        for pattern in layers.split(","):
            matching = {v.name for v in self.value_layers if _matches(v, pattern.strip())}
            if not matching:
                example = self.value_layers[0].name.partition(".attn")[0]
                raise OptionError(
                    f"{option('layers')} {layers}: no value layer matches {pattern.strip()!r}; give "
                    f"down+mid, all, or patterns such as {example}.*"
                )
            chosen |= matching
        return tuple(v for v in self.value_layers if v.name in chosen)


def _matches(layer: ValueLayer, pattern: str) -> bool:
    parts = {part.strip() for part in pattern.split("+")}
    if parts <= {"down", "mid", "up"}:
        return layer.part in parts
    return pattern == "all" or fnmatch.fnmatchcase(layer.name, pattern)


def recognize(path: Path) -> Checkpoint:
    """Return what the safetensors file at `path` holds, from its header alone.

    Raises CheckpointError, one line, for a file that cannot be read or that the method does not
    apply to: additions to a model, parts of one, joint-attention models, unknown families, and
    value layers in a form in which zeroing a row is not possible or would leave a copy behind.
    """
    header = read_header(path)
    if SHARD.search(header.path.name):
        raise CheckpointError(
            f"{header.path}: is one shard of a model in several files; give the folder that holds "
            f"the whole model (the one with unet/ in it)"
        )
    return identify(header)


def identify(header: Header) -> Checkpoint:
    """What the tensors of a header are, by their names and shapes; raises as `recognize` does."""
    try:
        return _recognize(header)
    except _Fault as fault:
        raise CheckpointError(f"{header.path}: {fault}") from None


class _Fault(Exception):
    """Why a file is refused, without its name."""


def _recognize(header: Header) -> Checkpoint:
    names = header.tensors.keys()
    if fault := refuse_whole(names):
        raise _Fault(fault)
    ldm, prefix, found = _find(header)
    if not found:
        raise _Fault(refuse_without_values(names))
    layers = tuple(
        _value_layer(header, canonical, found[canonical], prefix)
        for canonical in sorted(found, key=network_order)
    )
    claimed = {key for layer in layers for key in (*layer.tensors, *layer.biases)}
    if stray := next(_strays(header, claimed), None):
        raise _Fault(
            f"holds the value tensor {quoted(stray)}, whose place in the network is unknown, so "
            f"memorization could stay in it; remove it, or save the plain model"
        )
    columns = {layer.columns for layer in layers}
    if len(columns) > 1:
        raise _Fault(
            f"has value layers for text of different widths {sorted(columns)}, so it is of an "
            f"unknown family; give a Stable Diffusion 1, 2 or XL checkpoint"
        )
    text = any(n.startswith(("cond_stage_model.", "conditioner.embedders.")) for n in names)
    vae = any(n.startswith("first_stage_model.") for n in names)
    return Checkpoint(
        header=header,
        family=_family(header, layers, prefix),
        layout=("ldm" if text or vae else "unet-ldm") if ldm else "unet-diffusers",
        value_layers=layers,
        text_encoder=text,
        vae=vae,
        ema=any(len(layer.tensors) > 1 for layer in layers),
        in_channels=_in_channels(header, prefix + ("input_blocks.0.0" if ldm else "conv_in")),
        prediction_type=_prediction_type(header),
    )


def _find(header: Header) -> tuple[bool, str, dict[str, str]]:
    """(LDM names?, their prefix, canonical layer name -> key of its main weight)."""
    for prefix in _LDM_PREFIXES:
        names = [n[len(prefix) :] for n in header.tensors if n.startswith(prefix)]
        if found := dict(Blocks(names).values()):
            return True, prefix, {layer: prefix + name for layer, name in found.items()}
    plain = [n for n in header.tensors if DIFFUSERS_VALUE.fullmatch(n)]
    return False, "", {name.removesuffix(".weight"): name for name in plain}


def _value_layer(header: Header, canonical: str, key: str, prefix: str) -> ValueLayer:
    weights = [header.tensors[k] for k in _copies(key, prefix) if k in header.tensors]
    bias_key = key.removesuffix("weight") + "bias"
    biases = [header.tensors[k] for k in _copies(bias_key, prefix) if k in header.tensors]
    shape = weights[0].shape
    for tensor in (*weights, *biases):
        _check_dtype(tensor)
    for weight in weights:
        if len(weight.shape) != 2 or 0 in weight.shape or max(weight.shape) > _MOST:
            raise _Fault(
                f"has the value tensor {weight.name} of shape {list(weight.shape)} where [neurons, "
                f"text channels] is due; save the model unquantized and unpacked"
            )
        if weight.shape != shape:
            raise _Fault(
                f"has copies of one value tensor in two shapes, {list(shape)} and "
                f"{list(weight.shape)} ({weight.name}); download or save it again"
            )
    for bias in biases:
        if bias.shape != shape[:1]:
            raise _Fault(
                f"has the bias {bias.name} of shape {list(bias.shape)} where {list(shape[:1])} "
                f"is due; download or save it again"
            )
    return ValueLayer(
        name=canonical,
        part=canonical.partition("_")[0],
        rows=shape[0],
        columns=shape[1],
        tensors=tuple(weight.name for weight in weights),
        biases=tuple(bias.name for bias in biases),
    )


def _copies(key: str, prefix: str) -> tuple[str, ...]:
    """The main key, then what its twin in the training code's moving average may be called."""
    dotted = "diffusion_model." + key[len(prefix) :]
    return key, "model_ema." + dotted.replace(".", ""), "model_ema." + dotted


def _check_dtype(tensor: Tensor) -> None:
    if tensor.dtype not in ZERO_IS_ZERO:
        raise _Fault(
            f"has the value tensor {tensor.name} in {tensor.dtype}, in which zero bytes do not "
            f"mean zero; convert the model to F16 first"
        )


def _strays(header: Header, claimed: set[str]) -> Iterator[str]:
    """Keys that look like value tensors and are no known copy of one."""
    for name in header.tensors:
        if is_value_like(name) and name not in claimed and not name.endswith(SCALES):
            yield name


def _family(header: Header, layers: tuple[ValueLayer, ...], prefix: str) -> str:
    def has(*stems: str) -> bool:
        return any(name.startswith(stems) for name in header.tensors)

    columns = layers[0].columns
    if has(f"{prefix}class_embedding.", f"{prefix}label_emb.weight"):
        raise _Fault("is an upscaler or unCLIP model, which draws from more than text; not known")
    added = has(f"{prefix}label_emb.", f"{prefix}add_embedding.", "conditioner.embedders.")
    if added or columns == 2048:
        lone = has("conditioner.embedders.0.model.") and not has("conditioner.embedders.1.")
        if columns == 1280 or lone:
            raise _Fault(
                "is the SDXL refiner, which only retouches what the base model drew; prune that"
            )
        if layers[0].name.startswith("down_blocks.0."):
            raise _Fault(
                "is of an unknown family: it has SDXL's added conditions but attends to text in "
                "its first block (unCLIP?); give a Stable Diffusion 1, 2 or XL checkpoint"
            )
        return "sdxl"
    if columns == 1024 or has("cond_stage_model.model."):
        return "sd2"
    if columns == 768 or has("cond_stage_model.transformer."):
        return "sd1"
    # A thinner UNet alone: SD2 projects by a linear map, SD1 by a 1x1 convolution.
    first = layers[0].tensors[0].partition("transformer_blocks.")[0] + "proj_in.weight"
    projection = header.tensors.get(first)
    return "sd2" if projection and len(projection.shape) == 2 else "sd1"


def _in_channels(header: Header, stem: str) -> int:
    tensor = header.tensors.get(f"{stem}.weight")
    if tensor is None or len(tensor.shape) != 4:
        raise _Fault(
            f"is incomplete: its UNet has no first convolution ({stem}.weight); download or save "
            f"it again"
        )
    return tensor.shape[1]


def _prediction_type(header: Header) -> str | None:
    stated = header.metadata.get("modelspec.prediction_type", "").strip().lower()
    if stated in _PREDICTION_TYPES:
        return _PREDICTION_TYPES[stated]
    # Tensors without meaning but their name, as ComfyUI reads them. ztsnr alone says nothing.
    return _V if "v_pred" in header.tensors else None
