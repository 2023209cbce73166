"""Say what a file is that the method does not apply to, from the names of its tensors."""

import re
from collections.abc import Collection

from nemo_prune.files.header import quoted

_CONTROLNET = re.compile(
    r"(^|\.)(control_model|zero_convs|input_hint_block|controlnet_cond_embedding"
    r"|controlnet_down_blocks|controlnet_blocks)\."
)
_LORA = re.compile(r"(^|[._])(lora|lycoris|hada|lokr|oft|dora)[._]", re.IGNORECASE)
_FLUX = re.compile(r"(^|\.)(double_blocks|single_transformer_blocks)\.\d")
_SD3 = re.compile(r"(^|\.)joint_blocks\.\d")
_TRANSFORMER = re.compile(
    r"(^|\.)(transformer_blocks\.\d+\.attn2\.to_v|blocks\.\d+\.cross_attn\.kv_linear)\."
)
_JOINT = re.compile(r"\.attn\.add_v_proj\.")
_TEXT = re.compile(
    r"^(cond_stage_model|conditioner\.embedders|text_model|text_encoders?|transformer\.resblocks"
    r"|encoder\.block\.\d+\.layer)\b"
)
_VAE = re.compile(r"^(first_stage_model\.|(post_)?quant_conv\.|vae\.|(en|de)coder\.(conv_in|mid)\b)")
_VIDEO = re.compile(r"\.(time_stack|time_mixer|temporal_transformer_blocks|motion_modules)\.")

_WHOLE = "give the checkpoint that it belongs to"
_JOINT_REASON = (
    "its attention joins text and picture in one stream, so no value layer sees the text "
    "alone and the method does not apply as it stands; use a Stable Diffusion 1, 2 or XL file"
)


def refuse_whole(names: Collection[str]) -> str | None:
    """What speaks against a file even if its value layers look right; None if nothing does."""
    if any(_CONTROLNET.search(name) for name in names):
        return "holds a ControlNet, not a text-to-image model alone; give the model it steers"
    if any(_VIDEO.search(name) for name in names):
        return "is a video model, a family the method was never tried on; give an image model"
    return None


def refuse_without_values(names: Collection[str]) -> str:
    """Why a file in which no cross-attention value layer was found cannot be pruned."""
    if is_addition(names):
        return f"is a LoRA (or the like), an addition to a model; {_WHOLE}, with the LoRA merged"
    if any(_FLUX.search(name) for name in names):
        return f"is a Flux model: {_JOINT_REASON}"
    if any(_SD3.search(name) for name in names):
        return f"is a Stable Diffusion 3 model: {_JOINT_REASON}"
    if any(_JOINT.search(name) for name in names):
        return f"is a joint-attention transformer (Stable Diffusion 3, Flux): {_JOINT_REASON}"
    if any(_TRANSFORMER.search(name) for name in names):
        return (
            "is a transformer with cross-attention (PixArt and the like): it has value layers, but no "
            "down and mid blocks to search and a T5 text encoder, which nobody has tried the method "
            "on; use a Stable Diffusion 1, 2 or XL file"
        )
    if stray := next((name for name in names if is_value_like(name)), None):
        return (
            f"is of an unknown family: its value layers ({quoted(stray)}, ...) do not lie as in "
            f"Stable Diffusion 1, 2 or XL; give such a checkpoint"
        )
    text, vae = (any(p.search(name) for name in names) for p in (_TEXT, _VAE))
    unet = any("time_embed" in name for name in names)
    if vae and not text and not unet:
        return f"is a VAE alone, which draws no picture by itself; {_WHOLE}"
    if text and not vae and not unet:
        return f"is a text encoder alone, which draws no picture by itself; {_WHOLE}"
    return (
        "is of an unknown family: it has no cross-attention value layers (attn2.to_v); give a "
        "Stable Diffusion 1, 2 or XL checkpoint"
    )


def is_addition(names: Collection[str]) -> bool:
    """True for a LoRA and its like, which holds differences to a model and not the model."""
    return any(_LORA.search(name) for name in names)


def is_value_like(name: str) -> bool:
    """True for the names of cross-attention value tensors of any layout, known or not."""
    return "attn2" in name and "to_v" in name
