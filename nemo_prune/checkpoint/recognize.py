"""Recognize a safetensors file: which model it holds, and where its value layers lie.

Everything is read from the names and shapes of the tensors, so thinner and shorter UNets of the
known families are recognized too. A value layer is known by its name in diffusers, whatever the
layout of the file, so that one manifest fits all files of a model.
"""

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from nemo_prune.checkpoint.blocks import DIFFUSERS_VALUE, PIXART_VALUE, Blocks, plain_name
from nemo_prune.checkpoint.checkpoint import Checkpoint, Part, ValueLayer
from nemo_prune.checkpoint.families import FAMILIES, Traits
from nemo_prune.checkpoint.neurons import network_order
from nemo_prune.checkpoint.provenance import joint_metadata
from nemo_prune.checkpoint.sidecar import read_sidecar
from nemo_prune.errors import CheckpointError, option
from nemo_prune.files.header import Header, Tensor, quoted, read_header
from nemo_prune.files.strict_json import read_object
from nemo_prune.files.undo import UNDO_HEADER

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
    stated = class_of(header.path.parent) if header.path.name.startswith(USUAL_NAMES) else ""
    try:
        found = _with_sidecar(identify(header.path, [header], stated))
    except CheckpointError as error:
        whole = header.path.parent.parent
        denoiser = header.path.parent.name in ("unet", "transformer")
        if denoiser or not (whole / "model_index.json").is_file():
            raise
        what = f"{error.message}, or the diffusers folder that it is a part of ({whole})"
        raise CheckpointError(what) from None
    refuse_pictures(header.path.parent, header.path)
    return found


def refuse_pictures(denoiser: Path, path: Path) -> None:
    """Raise CheckpointError, of `path`, if a denoiser's folder is a part of what pictures steer."""
    denoiser = denoiser.absolute()  # "." has no name
    if denoiser.name in ("unet", "transformer") and (fault := _steered_by_pictures(denoiser.parent)):
        raise CheckpointError(f"{path}: {fault}")


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


def class_of(folder: Path) -> str:
    """The class of what a folder holds, as its config says, or ""."""
    for path in (folder / "model_index.json", folder / "config.json"):
        with contextlib.suppress(CheckpointError):  # whoever needs the config will say so
            config = read_object(path) if path.is_file() else {}
            listed = config.get("architectures")
            for name in (config.get("_class_name"), *(listed if isinstance(listed, list) else ())):
                if isinstance(name, str) and name.isidentifier():
                    return name
    return ""


def _steered_by_pictures(folder: Path) -> str:
    """Why the model of a diffusers folder is refused whose pipeline takes pictures and no text, or "".

    Told by what its model_index.json lists, as its denoiser looks like one that is steered by text.
    """
    index = folder / "model_index.json"
    listed = read_object(index) if index.is_file() else {}
    held = {
        name
        for name, value in listed.items()
        if isinstance(value, list) and any(isinstance(one, str) for one in value)
    }
    kind = class_of(folder)
    # One of those may have been saved without its text, with an IP-Adapter's encoder.
    if "image_encoder" not in held or held & {"tokenizer", "text_encoder"} or _FROM_TEXT.fullmatch(kind):
        return ""
    return (
        f"is a model that is steered by pictures, not by text{f' ({kind})' if kind else ''}: its "
        f"model_index.json lists an image_encoder and no tokenizer, so no caption says anything of it; "
        f"{_GIVE}"
    )


def identify(path: Path, headers: Sequence[Header], stated: str = "") -> Checkpoint:
    """The model of which these files are the one copy; `path` names it. Raises as `recognize` does.

    stated: its class by its config, for the reason why it is refused; "" if none is known.
    """
    try:
        return _identify(path, headers, stated)
    except _Fault as fault:
        raise CheckpointError(f"{path}: {fault}") from None


def _identify(path: Path, headers: Sequence[Header], stated: str) -> Checkpoint:
    stored = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    if fault := _refuse_whole(stored):
        raise _Fault(fault)
    for wrapper in _wrappers(stored):
        # By their plain names; a `Tensor` has the name in the file.
        tensors = {plain_name(name, wrapper): tensor for name, tensor in stored.items()}
        ldm, prefix, found = _find(tensors)
        if found:
            break
    if not found:
        raise _Fault(_refuse_without_values(stored, stated))
    if len(tensors) < len(stored):
        raise _Fault(
            "holds tensors twice, with and without the names that a compiled or wrapped model has, so "
            "which of them is used depends on the program; save the plain model"
        )
    if is_addition(tensors):
        raise _Fault(_INJECTED)
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
    text = any(n.startswith(("cond_stage_model.", "conditioner.embedders.")) for n in tensors)
    vae = any(n.startswith("first_stage_model.") for n in tensors)
    prediction_type, told_by = _prediction_type(tensors, joint_metadata(headers))
    return Checkpoint(
        path=path,
        family=_family(tensors, layers, prefix, found[layers[0].name]),
        layout=("ldm" if text or vae else "unet-ldm") if ldm else "unet-diffusers",
        value_layers=layers,
        copies=(tuple(_part(header, layers) for header in headers),),
        text_encoder=text,
        vae=vae,
        ema=any(len(layer.tensors) > 1 for layer in layers),
        in_channels=_in_channels(tensors, _entrance(tensors, ldm, prefix)),
        prediction_type=prediction_type,
        wrapper=wrapper,
        told_by=told_by,
        zero_snr="ztsnr" in tensors,
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


def _find(tensors: Tensors) -> tuple[bool, str, dict[str, str]]:
    """(LDM names?, their prefix, canonical layer name -> key of its main weight)."""
    for prefix in _LDM_PREFIXES:
        names = [n[len(prefix) :] for n in tensors if n.startswith(prefix)]
        if found := dict(Blocks(names).values()):
            return True, prefix, {layer: prefix + name for layer, name in found.items()}
    value = PIXART_VALUE if _is_pixart(tensors) else DIFFUSERS_VALUE
    plain = [n for n in tensors if value.fullmatch(n)]
    return False, "", {name.removesuffix(".weight"): name for name in plain}


def _is_pixart(tensors: Tensors) -> bool:
    """Whether these are all of PixArt's parts, by diffusers' names; others have blocks like its own."""
    entrance = tensors.get("pos_embed.proj.weight")
    rest = ("adaln_single.linear.weight", "caption_projection.linear_1.weight", "scale_shift_table")
    return entrance is not None and len(entrance.shape) == 4 and all(name in tensors for name in rest)


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


def _entrance(tensors: Tensors, ldm: bool, prefix: str) -> str:
    """The convolution that takes the latents."""
    if _is_pixart(tensors):
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


# ------------------------------------------------------------- what the method does not apply to

_CONTROLNET = re.compile(
    r"(^|\.)(control_model|zero_convs|input_hint_block|controlnet_cond_embedding"
    r"|controlnet_down_blocks|controlnet_blocks)\.|^(lora_controlnet$|lllite_)"
)
_VIDEO = re.compile(
    r"(\.|^)(time_stack|time_mixer|temporal_transformer(_blocks)?|motion_modules|temp_convs"
    r"|temp_attentions|patchify_proj)\."
)
_LORA = re.compile(r"(^|[._])(lora|lycoris|hada|lokr|oft|dora)[._]|\.diff(_b)?$", re.IGNORECASE)
_IP_ADAPTER = re.compile(r"\.to_[kv]_ip\.|^(ip_adapter|image_proj)\.")
_WRAPPED_LAYER = re.compile(r"\.base_layer\.")

_WHOLE = "give the checkpoint that it belongs to"
_GIVE = "give a Stable Diffusion 1, 2 or XL checkpoint"
_INJECTED = (
    "is a model with an adapter (a LoRA or the like) injected and not merged; merge the adapter first "
    "(diffusers: fuse_lora, then unload_lora_weights and save_pretrained)"
)
_JOINT = (
    "its attention joins text and picture in one stream, so no value layer sees the text "
    "alone and the method does not apply as it stands; use a Stable Diffusion 1, 2 or XL file"
)
_FROM_TEXT = re.compile(r"StableDiffusion(XL)?(Img2Img|Inpaint)?Pipeline")  # of diffusers
_VIDEO_CLASS = re.compile(r"3D|SpatioTemporal|Motion|Video")  # of diffusers
_VIDEO_REASON = "is a video model, a family the method was never tried on; give an image model"
_PIXELS = "takes its text through added keys and values beside the picture's own, and has no layer attn2"

# In this order: a name that tells less comes after the ones that tell more.
_KINDS = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"\.weight\._(data|scale)$",
         "is quantized (optimum-quanto), so zero bytes need not be zeros; give the model from before"),
        (r"attn2\.to_v\.(parametrizations\.|weight_(g|v|orig|u)$)",
         "has value layers whose weights are parametrized (weight_norm, spectral_norm), so a row is "
         "computed from several tensors; remove the parametrization (torch: "
         "remove_parametrizations(layer, 'weight')) and save it again"),
        (r"(^|\.)stylegan_decoder\.|^(params(_ema)?\.)?body\.\d+\.rdb\d\.|\.RDB\d\.|\.residual_group\.blocks\.",
         f"is an upscaler or face restorer, which mends pictures and draws none from text; {_GIVE}"),
        (r"^id_adapter(_attn_layers)?\.",
         f"is a PuLID, an addition that steers a model by a face; {_WHOLE}"),
        (r"^connector\.perceiver_blocks\.",
         f"is an ELLA, an addition that gives a model another text encoder; {_WHOLE}"),
        (r"^brushnet_(down|mid|up)_blocks?\.",
         f"is a BrushNet, an addition for inpainting; {_WHOLE}"),
        (r"(^|\.)blocks\.\d+\.attn\.qkv_y\.", _VIDEO_REASON),  # Mochi
        (r"(^|\.)blocks\.\d+\.cross_attn\.[qkv]_proj\.",
         f"is a Cosmos model, a transformer which the method was never tried on; {_GIVE}"),
        (r"\.to_(q|k|v|out)_custom_diffusion\.",
         f"is of Custom Diffusion, an addition to a model; {_WHOLE}"),
        (r"^(adapter\.)?body\.\d+\.(resnets\.|block\d|in_conv|skep|down_opt)",
         f"is a T2I-Adapter, an addition that steers a model; {_WHOLE}"),
        (r"(^|\.)(double_layers|joint_transformer_blocks)\.\d", f"is an AuraFlow model: {_JOINT}"),
        (r"(^|\.)txt_in\.individual_token_refiner\.", _VIDEO_REASON),
        (r"(^|\.)(double_blocks|single_transformer_blocks)\.\d", f"is a Flux model: {_JOINT}"),
        (r"(^|\.)joint_blocks\.\d", f"is a Stable Diffusion 3 model: {_JOINT}"),
        (r"(^|\.)(double|single)_stream_blocks\.\d", f"is a HiDream model: {_JOINT}"),
        (r"\.attn\.add_v_proj\.",
         f"is a joint-attention transformer (Stable Diffusion 3, Flux): {_JOINT}"),
        (r"^(model\.)?(text_embedding_padding$|mlp_t5\.)|blocks\.\d+\.attn2\.kv_proj\.",
         f"is a Hunyuan-DiT model, a transformer which the method was never tried on; {_GIVE}"),
        (r"(^|\.)cap_pad_token$", f"is a Z-Image model: {_JOINT}"),
        (r"(^|\.)(noise_refiner|context_refiner)\.\d", f"is a Lumina 2 model: {_JOINT}"),
        (r"^llm\.layers\.\d", f"is an OmniGen model: {_JOINT}"),
        (r"(^|\.)patch_embed\.text_proj\.", _VIDEO_REASON),  # CogVideoX
        (r"(^|\.)(clip_txt_(pooled_)?mapper|clip_mapper|clip_img_mapper|effnet_mapper|pixels_mapper)\.",
         f"is a stage of Stable Cascade (Wuerstchen), whose attention takes text and picture "
         f"together; {_GIVE}"),
        (r"encoder_hid_proj\.(image_embeds|text_proj|text_embeds)\.|(^|\.)(add_time_condition"
         r"|visual_transformer_blocks|add_embedding\.(image_proj|text_proj|text_norm))\.",
         f"is a Kandinsky model, which {_PIXELS}; {_GIVE}"),
        (r"(^|\.)add_embedding\.pool\.", f"is a DeepFloyd IF model, which {_PIXELS}; {_GIVE}"),
        (r"(^|\.)(input_blocks|output_blocks|down_blocks|up_blocks)\.\d.*\.attn2\.to_v\.",
         "is a Stable Diffusion model whose parts a program saved under its own names (unet., vae.); "
         "save the UNet alone, or the whole as a diffusers folder or by Stable Diffusion's own names"),
        (r"(^|\.)(transformer_blocks\.\d+\.attn2\.to_v|blocks\.\d+\.cross_attn\.kv_linear)\.",
         "is a transformer with cross-attention: of these PixArt-alpha and -sigma are read, from "
         "diffusers folders, and the method was never tried on others (Sana, ...); give such a folder, "
         "or a Stable Diffusion 1, 2 or XL checkpoint"),
        (r"^((model|vlm)\.)?(text_decoder|visual_encoder|qformer|query_tokens|multi_modal_projector"
         r"|image_text_embed)\b|^vision_tower\.",
         f"is a captioner (BLIP, LLaVA, ...), which describes pictures and draws none; {_GIVE}"),
    )
)  # fmt: skip
# diffusers calls an embedding's tensor as the word that it stands for.
_EMBEDDING = re.compile(r"emb_params|clip_[lg]|string_to_param\..+|<.*>|[^.]+")
_CALIBRATION = re.compile(r"(mean|std|rows)\..+|paths|norms")  # as scoring.calibration_file has them
_TEXT_WIDTHS = (768, 1024, 1280)
_TEXT = re.compile(
    r"^(cond_stage_model|conditioner\.embedders|text_model|text_encoders?|transformer\.resblocks"
    r"|encoder\.block\.\d+\.layer)\b"
)
_VAE = re.compile(
    r"^(first_stage_model\.|(post_)?quant_conv\.|vae\.|(en|de)coder\.(conv_in|mid)\b"
    r"|(en|de)coder\.layers\.\d+\.conv\.\d)"  # the last: the tiny ones (TAESD)
)


def _refuse_whole(tensors: Tensors) -> str | None:
    """What speaks against a file even if its value layers look right; None if nothing does."""
    if UNDO_HEADER in tensors or _is_calibration(tensors):
        return no_model(tensors)
    if is_controlnet(tensors):
        return "holds a ControlNet, not a text-to-image model alone; give the model it steers"
    if any(_VIDEO.search(name) for name in tensors):
        return _VIDEO_REASON
    if any(_WRAPPED_LAYER.search(name) for name in tensors):
        return _INJECTED
    return None


def _refuse_without_values(tensors: Tensors, stated: str) -> str:
    """Why a file in which no cross-attention value layer was found cannot be pruned."""
    if _VIDEO_CLASS.search(stated):
        return _VIDEO_REASON
    if reason := no_model(tensors):
        return reason
    # Convolutions over time; StyleGAN's, which take one per picture, have as many dimensions.
    if any(len(t.shape) == 5 and "modulated_conv" not in name for name, t in tensors.items()):
        return _VIDEO_REASON
    for pattern, reason in _KINDS:
        if any(pattern.search(name) for name in tensors):
            return reason
    shapes = {tensor.shape for tensor in tensors.values()}
    if all(map(_EMBEDDING.fullmatch, tensors)) and all(
        len(shape) in (1, 2) and shape[-1] in _TEXT_WIDTHS for shape in shapes
    ):
        return f"is an embedding (textual inversion), a word for a model and not a model; {_WHOLE}"
    if stray := next((name for name in tensors if is_value_like(name)), None):
        return (
            f"is of an unknown family: its value layers ({quoted(stray)}, ...) do not lie as in "
            f"Stable Diffusion 1, 2 or XL; give such a checkpoint"
        )
    text, vae = (any(p.search(name) for name in tensors) for p in (_TEXT, _VAE))
    unet = any("time_embed" in name for name in tensors)
    if vae and not text and not unet:
        return f"is a VAE alone, which draws no picture by itself; {_WHOLE}"
    if text and not vae and not unet:
        return f"is a text encoder alone, which draws no picture by itself; {_WHOLE}"
    if any(name.startswith("vision_model.") for name in tensors) and not unet:
        return f"is an image encoder alone (CLIP's), which draws no picture by itself; {_WHOLE}"
    if stated:
        return f"is of the class {stated}, without cross-attention value layers (attn2.to_v); {_GIVE}"
    return f"is of an unknown family: it has no cross-attention value layers (attn2.to_v); {_GIVE}"


def no_model(names: Collection[str]) -> str:
    """What a file is that only goes with a model, and what to do; "" for all others."""
    if UNDO_HEADER in names:
        return (
            f"is what {option('undo')} kept, the rows removed from a model; give the model itself, or "
            f"bring them back: restore, with the pruned model and this as {option('undo')}"
        )
    if _is_calibration(names):
        return (
            f"is a calibration, what is ordinary for a model, and not a model; give it as "
            f"{option('calibration')}, and leave it out of what is checked (pre-commit: files, exclude)"
        )
    if any(map(_IP_ADAPTER.search, names)):  # some hold LoRAs too
        return f"is an IP-Adapter, an addition to a model that lets pictures be prompts; {_WHOLE}"
    if any(name.startswith("id_encoder.") for name in names):  # they hold a LoRA too
        return f"is a PhotoMaker, an addition that steers a model by a face; {_WHOLE}"
    if is_addition(names):
        return f"is a LoRA (or the like), an addition to a model; {_WHOLE}, with the LoRA merged"
    return ""


def _is_calibration(names: Collection[str]) -> bool:
    return bool(names) and all(map(_CALIBRATION.fullmatch, names))


def is_controlnet(names: Iterable[str]) -> bool:
    """True for a ControlNet, or what holds one."""
    return any(_CONTROLNET.search(name) for name in names)


def is_addition(names: Collection[str]) -> bool:
    """True for a LoRA and its like, which holds differences to a model and not the model.

    False for a model in which one is injected; that is refused for itself.
    """
    return any(_LORA.search(name) for name in names) and not any(map(_WRAPPED_LAYER.search, names))


def is_value_like(name: str) -> bool:
    """True for the names of cross-attention value tensors of any layout, known or not."""
    return "attn2" in name and "to_v" in name
