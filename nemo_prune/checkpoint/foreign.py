"""What a model is that is refused: told by its class, as configs state it, and by its tensors' names.

Other models have blocks by the same names as those that are read, so a class that is not theirs is
believed before the names are.
"""

import contextlib
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_prune.errors import CheckpointError, option
from nemo_prune.files.header import Tensor, quoted
from nemo_prune.files.strict_json import read_object
from nemo_prune.files.trees import shown
from nemo_prune.files.undo import UNDO_HEADER

if TYPE_CHECKING:
    from nemo_prune.checkpoint.checkpoint import Checkpoint

Tensors = Mapping[str, Tensor]

_CONTROLNET = re.compile(
    r"(^|\.)(control_model|zero_convs|input_hint_block|controlnet_cond_embedding"
    r"|controlnet_down_blocks|controlnet_blocks)\.|^(lora_controlnet$|lllite_)"
)
_VIDEO = re.compile(
    r"(\.|^)(time_stack|time_mixer|temporal_transformer(_blocks)?|motion_modules|temp_convs"
    r"|temp_attentions|patchify_proj|temopral_conv|init_attn)\."
)
_LORA = re.compile(r"(^|[._])(lora|lycoris|hada|lokr|oft|dora)[._]|\.diff(_b)?$", re.IGNORECASE)
_IP_ADAPTER = re.compile(r"\.to_[kv]_ip\.|^(ip_adapter|image_proj)\.")
_WRAPPED_LAYER = re.compile(r"\.base_layer\.")
_FUSED_LAYER = re.compile(r"\.attn[12]\.to_(qkv|kv)\.")  # as diffusers' fuse_qkv_projections leaves them
_ENTRANCE = re.compile(r"(^|\.)((?<!coder\.)conv_in|input_blocks\.0\.0|pos_embed\.proj)\.weight$")
_OTHER_UNET = re.compile(r"(.*?)(input_blocks|down_blocks)\.\d.*\.attn2\.to_v\.weight$")

_WHOLE = "give the checkpoint that it belongs to"
_GIVE = "give a Stable Diffusion 1, 2 or XL checkpoint"
INJECTED = (
    "is a model with an adapter (a LoRA or the like) injected and not merged; merge the adapter first "
    "(diffusers: fuse_lora, then unload_lora_weights and save_pretrained)"
)
_FUSED = (
    "has fused projections (to_kv), which hold each value row a second time; give the model from "
    "before, or load it with diffusers, which leaves them out, and save it again"
)
_JOINT = (
    "its attention joins text and picture in one stream, so no value layer sees the text "
    "alone and the method does not apply as it stands; use a Stable Diffusion 1, 2 or XL file"
)
_FROM_TEXT = re.compile(r"StableDiffusion(XL)?(Img2Img|Inpaint)?Pipeline")  # of diffusers
_VIDEO_CLASS = re.compile(r"3D(?!i)|SpatioTemporal|Motion|Video|I2V|T2V")  # of diffusers
_OTHER_NOISE = ("FlowMatch", "EDM", "CMStochastic")  # how diffusers' schedulers begin
_AUDIO_CLASS = re.compile(r"Audio|Music|AceStep|Riffusion")  # a spectrogram is drawn like a picture
# Of the denoisers that are read; older PixArts have the second, and weights of a Flax folder the first.
_OWN_CLASS = re.compile(r"(Flax)?UNet2DConditionModel|(PixArt)?Transformer2DModel")
_VIDEO_REASON = "is a video model, a family the method was never tried on; give an image model"
TEXT_IN_BOTH = (
    "has a UNet that takes the text in attn1 too (only_cross_attention), whose value layers are neither "
    f"searched nor pruned, so memorization could stay in them; {_GIVE}"
)
_UNTRIED = "a transformer which the method was never tried on"
_PIXELS = "takes its text through added keys and values beside the picture's own, and has no layer attn2"

# In this order: a name that tells less comes after the ones that tell more.
_KINDS = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"\.weight\._(data|scale)$",
         "is quantized (optimum-quanto), so zero bytes need not be zeros; give the model from before"),
        *((rf"attn2\.to_v\.{tensors}",
           f"has value layers whose weights {what}, so a row is computed from several tensors; make "
           f"them plain weights ({call}) and save it again")
          for tensors, what, call in (
              (r"weight_mask$", "torch.nn.utils.prune masks (weight_orig, weight_mask)",
               "torch.nn.utils.prune.remove(layer, 'weight')"),
              (r"parametrizations\.", "are parametrized (weight_norm, spectral_norm, ...)",
               "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"),
              (r"weight_(orig|u)$", "are parametrized (spectral_norm)",
               "torch.nn.utils.remove_spectral_norm(layer)"),
              (r"weight_[gv]$", "are parametrized (weight_norm)",
               "torch.nn.utils.remove_weight_norm(layer)"),
          )),
        (r"(^|\.)stylegan_decoder\.|^(params(_ema)?\.)?body\.\d+\.rdb\d\.|\.RDB\d\.|\.residual_group\.blocks\.",
         f"is an upscaler or face restorer, which mends pictures and draws none from text; {_GIVE}"),
        (r"^id_adapter(_attn_layers)?\.",
         f"is a PuLID, an addition that steers a model by a face; {_WHOLE}"),
        (r"^connector\.perceiver_blocks\.",
         f"is an ELLA, an addition that gives a model another text encoder; {_WHOLE}"),
        (r"^\d+\.[01]\.linear\.\d+\.weight$",
         f"is a hypernetwork, an addition to a model's cross-attention; {_WHOLE}"),
        (r"::lora::\d$", f"is a LoRA (LayerDiffuse's), an addition to a model; {_WHOLE}"),
        (r"^(prd_embedding$|proj_to_clip_embeddings\.)",
         f"is a prior (of unCLIP or the like), which predicts no picture's noise; {_GIVE}"),
        (r"^brushnet_(down|mid|up)_blocks?\.",
         f"is a BrushNet, an addition for inpainting; {_WHOLE}"),
        (r"(^|\.)blocks\.\d+\.attn\.qkv_y\.", _VIDEO_REASON),  # Mochi
        (r"(^|\.)blocks\.\d+\.cross_attn\.[qkv]_proj\.",
         f"is a Cosmos model, {_UNTRIED}; {_GIVE}"),
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
         f"is a Hunyuan-DiT model, {_UNTRIED}; {_GIVE}"),
        (r"^time_caption_embed\.", f"is a Lumina model, {_UNTRIED}; {_GIVE}"),
        (r"^mlm_layer\.",
         f"is an aMUSEd model, which predicts the tokens of a picture and no noise; {_GIVE}"),
        (r"(^|\.)cap_pad_token$", f"is a Z-Image model: {_JOINT}"),
        (r"(^|\.)(noise_refiner|context_refiner)\.\d", f"is a Lumina 2 model: {_JOINT}"),
        (r"^llm\.layers\.\d", f"is an OmniGen model: {_JOINT}"),
        (r"(^|\.)time_condition_embed\.", f"is a CogView model: {_JOINT}"),
        (r"(^|\.)patch_embed\.text_proj\.", _VIDEO_REASON),  # CogVideoX
        (r"(^|\.)(clip_txt_(pooled_)?mapper|clip_mapper|clip_img_mapper|effnet_mapper|pixels_mapper)\.",
         f"is a stage of Stable Cascade (Wuerstchen), whose attention takes text and picture "
         f"together; {_GIVE}"),
        (r"encoder_hid_proj\.(image_embeds|text_proj|text_embeds)\.|(^|\.)(add_time_condition"
         r"|visual_transformer_blocks|add_embedding\.(image_proj|text_proj|text_norm))\.",
         f"is a Kandinsky model, which {_PIXELS}; {_GIVE}"),
        (r"(^|\.)add_embedding\.pool\.", f"is a DeepFloyd IF model, which {_PIXELS}; {_GIVE}"),
        (r"\.attentions\.\d+\.transformers\.[01]\.transformer_blocks\.",
         f"has two transformers in each attention (dual_cross_attention, as Versatile Diffusion), a "
         f"form the method was never tried on; {_GIVE}"),
        (r"(^|\.)(down|up)_blocks\.\d+\.attentions\.\d+\.attn2\.",
         f"has blocks of another kind, the K blocks of the latent upscaler, on which the method was "
         f"never tried; {_GIVE}"),
        (r"attn2\.to_v\.delta$",
         f"is SVDiff's, differences to a model's singular values and an addition to it; {_WHOLE}"),
        (r"\.(input_blocks|output_blocks|down_blocks|up_blocks)\.\d.*\.attn2\.to_v\.",
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
_CLIP = re.compile(r"clip|(?!Chinese)\w*CLIP")
_T5 = re.compile(r"t5|T5")
# What pipelines call theirs; the last: latent diffusion's text-to-image.
_ENCODERS = ("text_encoder", "text_encoder_2", "bert")
# The table of words in a file's text encoder that is no CLIP, and whose it is.
_FOREIGN_WORDS = tuple(
    (re.compile(rf"(cond_stage_model|conditioner|text_encoder)\..*\b{words}\.weight"), kind)
    for words, kind in (
        (r"roberta\b.*word_embeddings", "roberta"), ("word_embeddings", "bert"),
        ("token_emb", "bert"), ("shared", "t5"),
    )
)  # fmt: skip


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


def denoiser_class(folder: Path) -> str:
    """The class of the denoiser whose weights lie in a folder, or "".

    By its own config, else by what the model_index.json above it lists. A pipeline's own class says
    nothing of it: community pipelines bring their own, around an ordinary UNet.
    """
    if (folder / "model_index.json").is_file():
        return ""
    folder = folder.absolute()  # "." has no name
    for path, key in ((folder / "config.json", None), (folder.parent / "model_index.json", folder.name)):
        with contextlib.suppress(CheckpointError):  # whoever needs the config will say so
            config = read_object(path) if path.is_file() else {}
            listed = config.get(key) if key else [config.get("_class_name")]
            if isinstance(listed, list) and listed and isinstance(listed[-1], str):
                return listed[-1]
    return ""


def foreign_class(stated: str) -> str:
    """Why a model is refused whose denoiser is of this class, whatever its tensors look like, or ""."""
    if not stated or _OWN_CLASS.fullmatch(stated):
        return ""
    return (
        _no_pictures_class(stated)
        or f"is of the class {shown(stated)} by its config, on which the method was never tried, though "
        f"its tensors have the names of a model that is read; {_GIVE}"
    )


def _no_pictures_class(stated: str) -> str:
    """Why a model is refused that is of this class, for sound or for videos, or ""."""
    return audio_class(stated) or (_VIDEO_REASON if _VIDEO_CLASS.search(stated) else "")


def audio_class(stated: str) -> str:
    """Why a model is refused that is of this class, a pipeline's or a denoiser's, for sound, or ""."""
    if not _AUDIO_CLASS.search(stated):
        return ""
    return (
        f"is an audio model ({shown(stated)}), a family the method was never tried on; give an image "
        f"model"
    )


def text_in_both(config: Mapping[str, Any]) -> str:
    """Why a UNet of this config is refused that takes the text in more than attn2, or ""."""
    stated = config.get("only_cross_attention")
    return TEXT_IN_BOTH if stated is True or (isinstance(stated, list | tuple) and any(stated)) else ""


def other_noise(schedule: Mapping[str, Any], names: Collection[str] = ()) -> str:
    """Why no noise difference is defined for a model of this scheduler's config and tensors, or ""."""
    kind, predicts = str(schedule.get("_class_name", "")), schedule.get("prediction_type")
    flows = predicts == "flow_prediction" or schedule.get("use_flow_sigmas") is True
    if flows or kind.startswith(_OTHER_NOISE) or any(name.startswith("edm_") for name in names):
        return (
            "was trained on another noise process (flow matching, EDM, consistency), for which the "
            "noise difference is not defined; give an ordinary Stable Diffusion 1, 2 or XL"
        )
    return ""


def is_pixarts(stated: str) -> bool:
    """Whether a class is that of a PixArt's transformer, or could be."""
    return stated.endswith("Transformer2DModel") and bool(_OWN_CLASS.fullmatch(stated))


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


def refuse_pictures(denoiser: Path, path: Path) -> None:
    """Raise CheckpointError, of `path`, if a denoiser's folder is a part of what pictures steer."""
    denoiser = denoiser.absolute()  # "." has no name
    if denoiser.name in ("unet", "transformer") and (fault := _steered_by_pictures(denoiser.parent)):
        raise CheckpointError(f"{path}: {fault}")


def refuse_whole(tensors: Tensors) -> str | None:
    """What speaks against a file even if its value layers look right; None if nothing does."""
    if UNDO_HEADER in tensors or _is_calibration(tensors):
        return no_model(tensors)
    if is_controlnet(tensors):
        return "holds a ControlNet, not a text-to-image model alone; give the model it steers"
    if any(_VIDEO.search(name) for name in tensors):
        return _VIDEO_REASON
    if any(_WRAPPED_LAYER.search(name) for name in tensors):
        return INJECTED
    if any(_FUSED_LAYER.search(name) for name in tensors):
        return _FUSED
    return None


def refuse_without_values(tensors: Tensors, stated: str) -> str:
    """Why a file in which no cross-attention value layer was found cannot be pruned."""
    if reason := _no_pictures_class(stated) or no_model(tensors):
        return reason
    # Convolutions over time; StyleGAN's, which take one per picture, have as many dimensions.
    if any(len(t.shape) == 5 and "modulated_conv" not in name for name, t in tensors.items()):
        return _VIDEO_REASON
    if len(units := _unets(tensors)) > 1:
        names = ", ".join(quoted(name.rstrip(".")) for name in units[:3])
        return (
            f"holds {len(units)} UNets ({names}), and nothing says which of them draws; save that one "
            f"alone"
        )
    for pattern, reason in _KINDS:
        if any(pattern.search(name) for name in tensors):
            return reason
    shapes = {tensor.shape for tensor in tensors.values()}
    if all(map(_EMBEDDING.fullmatch, tensors)) and all(
        len(shape) in (1, 2) and shape[-1] in _TEXT_WIDTHS for shape in shapes
    ):
        return f"is an embedding (textual inversion), a word for a model and not a model; {_WHOLE}"
    if stray := next((name for name in tensors if is_value_like(name)), None):
        family = f"the class {stated}" if stated else "an unknown family"
        return (
            f"is of {family}: its value layers ({quoted(stray)}, ...) do not lie as in Stable Diffusion "
            f"1, 2 or XL; give such a checkpoint"
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


def is_kolors(family: str, names: Iterable[str]) -> bool:
    """True for Kolors, SDXL's UNet behind a map from another text encoder's channels."""
    return family == "sdxl" and any("encoder_hid_proj." in name for name in names)


def is_another_part(name: str) -> bool:
    """True for names of a text encoder's, a VAE's or a moving average's tensors."""
    return name.startswith("model_ema.") or any(part.search(name) for part in (_TEXT, _VAE))


def _unets(names: Iterable[str]) -> list[str]:
    """What stands before the names of each UNet in a file that holds any by names of its own."""
    return sorted({match[1] for name in names if (match := _OTHER_UNET.match(name))})


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
        if any(map(_ENTRANCE.search, names)):
            return INJECTED
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


def foreign_encoder(checkpoint: "Checkpoint") -> str:
    """The kind of the model's own text encoder where that is none that its family is read with, or "".

    Of a folder as its configs say it, of a denoiser's folder or file within one as that one's do; of
    another file as its tensors' names do. Raises CheckpointError for a config that cannot be read.
    """
    known = _T5 if checkpoint.record.denoiser == "transformer" else _CLIP
    root = checkpoint.path.absolute()
    if checkpoint.is_folder or root.parent.name in ("unet", "transformer"):
        if checkpoint.layout != "diffusers":
            root = root.parent if checkpoint.is_folder else root.parent.parent
        kinds = (_kind(root, name) for name in _ENCODERS)
        return next((kind for kind in kinds if kind and not known.match(kind)), "")
    names = (name.removeprefix(checkpoint.wrapper) for name in checkpoint.tensors)
    found = (kind for name in names for words, kind in _FOREIGN_WORDS if words.match(name))
    return next(found, "")


def _kind(root: Path, name: str) -> str:
    """What a diffusers folder says of one of its text encoders, "" if nothing."""
    index, path = root / "model_index.json", root / name / "config.json"
    if not index.is_file():
        return ""  # another's folder
    config = read_object(path) if path.is_file() else {}
    if isinstance(kind := config.get("model_type"), str) and kind:
        return kind
    listed = read_object(index).get(name)
    kind = listed[1] if isinstance(listed, list) and len(listed) == 2 else None
    return kind if isinstance(kind, str) else ""
