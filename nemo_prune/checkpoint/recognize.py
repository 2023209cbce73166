"""Recognize a safetensors file: which model it holds, and where its value layers lie.

Everything is read from the names and shapes of the tensors, so thinner and shorter UNets of the
known families are recognized too. A value layer is known by its name in diffusers, whatever the
layout of the file, so that one manifest fits all files of a model.
"""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from nemo_prune.checkpoint.blocks import DIFFUSERS_VALUE, PIXART_VALUE, Blocks, plain_name
from nemo_prune.checkpoint.checkpoint import Checkpoint, Part, ValueLayer
from nemo_prune.checkpoint.families import FAMILIES, Traits
from nemo_prune.checkpoint.foreign import (
    INJECTED,
    TEXT_IN_BOTH,
    class_of,
    denoiser_class,
    foreign_class,
    is_addition,
    is_pixarts,
    is_value_like,
    other_noise,
    refuse_pictures,
    refuse_whole,
    refuse_without_values,
    text_in_both,
)
from nemo_prune.checkpoint.neurons import network_order
from nemo_prune.checkpoint.provenance import joint_metadata
from nemo_prune.checkpoint.sidecar import read_sidecar
from nemo_prune.errors import CheckpointError, option
from nemo_prune.files.header import Header, Tensor, quoted, read_header
from nemo_prune.files.strict_json import read_object

# Dtypes in which zero bytes mean 0.0: not F8_E8M0 (2^-127), not quantized integers (an offset).
_ZERO_IS_ZERO = frozenset(
    {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}
)
# Of neurons in a layer, and of channels of its text; the largest known are 1280 and 2048.
_MOST = 4096
_MOST_WRAPPERS = 4  # around a model: module._orig_mod.unet. and one more
_LDM_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "")
# As diffusers and transformers save a component.
USUAL_NAMES = ("diffusion_pytorch_model.", "model.")
SHARD = re.compile(r"-\d{5}-of-\d{5}(\.[\w-]+)?\.safetensors$")
# Factors beside an 8-bit weight: whatever they are, zero times them is zero.
SCALES = (".scale_weight", ".weight_scale", ".scale_input", ".input_scale", ".comfy_quant")

_V = "v_prediction"
_PREDICTION_TYPES = {"epsilon": "epsilon", "eps": "epsilon", "v": _V, "v_prediction": _V,
                     "v-prediction": _V, "vpred": _V, "v_pred": _V}  # fmt: skip

Tensors = Mapping[str, Tensor]


class _Fault(Exception):
    """Why a file is refused, without its name."""


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
    # The config beside a file of this name is its own.
    folder = header.path.parent if header.path.name.startswith(USUAL_NAMES) else None
    try:
        found = _with_sidecar(identify(header.path, [header], folder))
    except CheckpointError as error:
        whole = header.path.parent.parent
        denoiser = header.path.parent.name in ("unet", "transformer")
        if denoiser or not (whole / "model_index.json").is_file():
            raise
        what = f"{error.message}, or the diffusers folder that it is a part of ({whole})"
        raise CheckpointError(what) from None
    refuse_pictures(header.path.parent, header.path)
    return found


def _with_sidecar(checkpoint: Checkpoint) -> Checkpoint:
    """What the YAML beside a single file adds to what the file says of itself."""
    found = read_sidecar(checkpoint.path)
    if found is None:
        return checkpoint
    path, sidecar = found
    if sidecar.fault:
        return replace(checkpoint, unclear=sidecar.fault)
    stated = sidecar.prediction_type
    if stated and checkpoint.prediction_type not in (None, stated):
        return replace(
            checkpoint,
            unclear=f"{path}: says that the model predicts {stated} where {checkpoint.told_by} says "
            f"{checkpoint.prediction_type}; say which with {option('prediction_type')}",
        )
    return replace(
        checkpoint,
        prediction_type=checkpoint.prediction_type or stated,
        told_by=checkpoint.told_by or (path.name if stated else ""),
        zero_snr=checkpoint.zero_snr or sidecar.zero_snr,
    )


def identify(path: Path, headers: Sequence[Header], folder: Path | None = None) -> Checkpoint:
    """The model of which these files are the one copy; `path` names it. Raises as `recognize` does.

    folder: where the config lies that states its class; None if none is known.
    """
    stated = denoiser_class(folder) if folder else ""
    try:
        found = _identify(path, headers, stated, (class_of(folder) if folder and not stated else stated))
        if folder and (folder / "config.json").is_file():
            with contextlib.suppress(CheckpointError):  # whoever needs the config will say so
                if fault := text_in_both(read_object(folder / "config.json")):
                    raise _Fault(fault)
        return found
    except _Fault as fault:
        raise CheckpointError(f"{path}: {fault}") from None


def _identify(path: Path, headers: Sequence[Header], stated: str, named: str) -> Checkpoint:
    """`identify`; `stated` is the denoiser's class, `named` that, or what else it is called."""
    stored = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    if fault := refuse_whole(stored):
        raise _Fault(fault)
    for wrapper in _wrappers(stored):
        # By their plain names; a `Tensor` has the name in the file.
        tensors = {plain_name(name, wrapper): tensor for name, tensor in stored.items()}
        ldm, prefix, found = _find(tensors, stated)
        if found:
            break
    if not found:
        raise _Fault(refuse_without_values(stored, named))
    if fault := foreign_class(stated):
        raise _Fault(fault)
    if len(tensors) < len(stored):
        raise _Fault(
            "holds tensors twice, with and without the names that a compiled or wrapped model has, so "
            "which of them is used depends on the program; save the plain model"
        )
    if is_addition(tensors):
        raise _Fault(INJECTED)
    layers = tuple(
        _value_layer(tensors, canonical, found[canonical], prefix)
        for canonical in sorted(found, key=network_order)
    )
    claimed = {key for layer in layers for key in (*layer.tensors, *layer.biases)}
    if stray := next(_strays(tensors, claimed), None):
        raise _Fault(
            f"holds the value tensor {quoted(stray)}, whose place in the network is unknown, so "
            f"memorization could stay in it; remove it, or save the plain model"
        )
    if lost := next(_lost(tensors), None):
        raise _Fault(
            f"lacks the value tensor {quoted(lost)}, whose key tensor it holds, so the file "
            f"is damaged; download or copy it again"
        )
    columns = {layer.columns for layer in layers}
    if len(columns) > 1:
        raise _Fault(
            f"has value layers for text of different widths {sorted(columns)}, so it is of an "
            f"unknown family; give a Stable Diffusion 1, 2 or XL checkpoint"
        )
    if any(_takes_text(tensors, key.replace("attn2", "attn1")) for key in found.values()):
        raise _Fault(TEXT_IN_BOTH)
    text = any(n.startswith(("cond_stage_model.", "conditioner.embedders.")) for n in tensors)
    vae = any(n.startswith("first_stage_model.") for n in tensors)
    prediction_type, told_by = _prediction_type(tensors, joint_metadata(headers))
    family = _family(tensors, layers, prefix, found[layers[0].name])
    return Checkpoint(
        path=path,
        family=family,
        layout=("ldm" if text or vae else "unet-ldm") if ldm else "unet-diffusers",
        value_layers=layers,
        copies=(tuple(_part(header, layers) for header in headers),),
        text_encoder=text,
        vae=vae,
        ema=any(len(layer.tensors) > 1 for layer in layers),
        in_channels=_in_channels(tensors, _entrance(family, ldm, prefix)),
        prediction_type=prediction_type,
        wrapper=wrapper,
        told_by=told_by,
        zero_snr="ztsnr" in tensors,
        unclear=f"{path}: {noise}" if (noise := other_noise({}, tensors)) else None,
    )


def _wrappers(names: Collection[str]) -> Iterator[str]:
    """What may stand before all names of a file as a wrapper's own, the shortest first, "" included."""
    # Marker keys for other programs, such as v_pred, have no dot.
    dotted = [name for name in names if "." in name] or [""]
    shared = ""
    yield shared
    # What the first and the last of sorted names share, all share.
    pieces = zip(min(dotted).split("."), max(dotted).split("."), strict=False)
    for first, last in islice(pieces, _MOST_WRAPPERS):
        if first != last:
            return
        shared += f"{first}."
        yield shared


def _part(header: Header, layers: Sequence[ValueLayer]) -> Part:
    """A file with its own share of the value layers."""
    own = (
        replace(
            layer,
            tensors=tuple(key for key in layer.tensors if key in header.tensors),
            biases=tuple(key for key in layer.biases if key in header.tensors),
        )
        for layer in layers
    )
    return Part(header, tuple(layer for layer in own if layer.tensors or layer.biases))


def _find(tensors: Tensors, stated: str) -> tuple[bool, str, dict[str, str]]:
    """(LDM names?, their prefix, canonical layer name -> key of its main weight)."""
    for prefix in _LDM_PREFIXES:
        names = [n[len(prefix) :] for n in tensors if n.startswith(prefix)]
        if found := dict(Blocks(names).values()):
            return True, prefix, {layer: prefix + name for layer, name in found.items()}
    value = PIXART_VALUE if _is_pixart(tensors, stated) else DIFFUSERS_VALUE
    plain = [n for n in tensors if value.fullmatch(n)]
    return False, "", {name.removesuffix(".weight"): name for name in plain}


def _is_pixart(tensors: Tensors, stated: str) -> bool:
    """Whether these are all of PixArt's parts, by diffusers' names; others have blocks like its own.

    Allegro, for videos, has all of them too. But of each channel that it takes PixArt puts out two, the
    noise and its variance. Where a config states the class, that is believed.
    """
    entrance, out = (tensors.get(f"{name}.weight") for name in ("pos_embed.proj", "proj_out"))
    rest = ("adaln_single.linear.weight", "caption_projection.linear_1.weight", "scale_shift_table")
    if entrance is None or len(entrance.shape) != 4 or not all(name in tensors for name in rest):
        return False
    _, channels, height, width = entrance.shape
    both = out is not None and out.shape[0] == 2 * channels * height * width
    return both or is_pixarts(stated)


def _value_layer(tensors: Tensors, canonical: str, key: str, prefix: str) -> ValueLayer:
    weights = [tensors[k] for k in _copies(key, prefix) if k in tensors]
    bias_key = key.removesuffix("weight") + "bias"
    biases = [tensors[k] for k in _copies(bias_key, prefix) if k in tensors]
    shape = weights[0].shape
    stem = key.removesuffix("weight")
    if f"{key}.absmax" in tensors or f"{stem}SCB" in tensors:  # 4 bits lie packed under any dtype
        raise _Fault(
            "is quantized (bitsandbytes), so its rows lie packed and zero bytes need not be zeros; give "
            "the model from before"
        )
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
    if tensor.dtype not in _ZERO_IS_ZERO:
        raise _Fault(
            f"has the value tensor {tensor.name} in {tensor.dtype}, in which zero bytes do not "
            f"mean zero: it is quantized; give the model from before"
        )


def _strays(tensors: Tensors, claimed: set[str]) -> Iterator[str]:
    """Keys that look like value tensors and are no known copy of one."""
    for name, tensor in tensors.items():
        if is_value_like(name) and tensor.name not in claimed and not name.endswith(SCALES):
            yield name


def _takes_text(tensors: Tensors, value: str) -> bool:
    """Whether a value tensor takes something else than the query tensor beside it, the picture."""
    own = tensors.get(value)
    query = tensors.get(value.removesuffix("v.weight") + "q.weight")
    return own is not None and query is not None and own.shape[1:] != query.shape[1:]


def _lost(tensors: Tensors) -> Iterator[str]:
    """Value tensors that a file ought to hold, since it holds the key tensors beside them."""
    for name in tensors:
        if name.endswith("attn2.to_k.weight"):
            value = name.removesuffix("k.weight") + "v.weight"
            if value not in tensors:
                yield value


def _family(tensors: Tensors, layers: Sequence[ValueLayer], prefix: str, first: str) -> str:
    """The family; `first` is the plain name of the first value layer's weight."""

    def has(*stems: str) -> bool:
        return any(name.startswith(stems) for name in tensors)

    if has(f"{prefix}class_embedding.", f"{prefix}label_emb.weight"):
        raise _Fault("is an upscaler or unCLIP model, which draws from more than text; not known")
    entrance = first.partition("transformer_blocks.")[0] + "proj_in.weight"
    projection = tensors.get(entrance)
    traits = Traits(
        names=tensors.keys(),
        columns=layers[0].columns,
        added=has(f"{prefix}label_emb.", f"{prefix}add_embedding.", "conditioner.embedders."),
        linear=None if projection is None else len(projection.shape) == 2,
        first=layers[0].name,
    )
    family = next(family for family in FAMILIES.values() if family.fits(traits))
    if fault := family.refuse(traits):
        raise _Fault(fault)
    return family.name


def _entrance(family: str, ldm: bool, prefix: str) -> str:
    """The convolution that takes the latents."""
    if family == "pixart":
        return "pos_embed.proj"
    return prefix + ("input_blocks.0.0" if ldm else "conv_in")


def _in_channels(tensors: Tensors, stem: str) -> int:
    tensor = tensors.get(f"{stem}.weight")
    if tensor is None or len(tensor.shape) != 4:
        raise _Fault(
            f"is incomplete: its UNet has no first convolution ({stem}.weight); download or save "
            f"it again"
        )
    return tensor.shape[1]


def _prediction_type(tensors: Tensors, metadata: Mapping[str, str]) -> tuple[str | None, str]:
    """What the file says that it predicts, and what in it says so."""
    stated = metadata.get("modelspec.prediction_type", "").strip().lower()
    if stated in _PREDICTION_TYPES:
        return _PREDICTION_TYPES[stated], "its metadata"
    # Tensors without meaning but their name, as ComfyUI reads them. ztsnr alone says nothing.
    return (_V, "its marker v_pred") if "v_pred" in tensors else (None, "")
