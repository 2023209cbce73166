"""From diffusers' tensor names to the single-file layout of Stable Diffusion 1 ("LDM").

The three `*_to_ldm` functions take a component's `state_dict()` and return the same tensors under
the names that original checkpoints use. Numbers of levels and of layers are read off the names, so
any width or depth works. `save_single_file` joins the three into one safetensors file.
"""

import json
import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."

_ATTENTION_LEVEL = re.compile(r"up_blocks\.(\d+)\.attentions\.")
_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def _rename_start(name: str, table: Mapping[str, str]) -> str:
    """Replace the entry of `table` that `name` starts with, up to a dot; KeyError if none does."""
    for old, new in table.items():
        if name.startswith(old + "."):
            return new + name.removeprefix(old)
    raise KeyError(name)


def _count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    """How many indices `pattern`'s group takes in the names: the largest plus one."""
    found = [int(match[1]) for name in state_dict if (match := re.match(pattern, name))]
    return max(found) + 1


def unet_to_ldm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a `UNet2DConditionModel`'s tensors to `model.diffusion_model.*`.

    Raises KeyError for a tensor that the LDM layout has no place for.
    """
    levels = range(_count(state_dict, r"down_blocks\.(\d+)\."))

    def starts(side: str) -> list[int]:
        """Where each block begins, samplers not counted, and where the last one ends."""
        blocks = (rf"{side}_blocks\.{n}\.resnets\.(\d+)\." for n in levels)
        return [0, *accumulate(_count(state_dict, block) for block in blocks)]

    places = {side: starts(side) for side in ("down", "up")}
    with_attention = {match[1] for name in state_dict if (match := _ATTENTION_LEVEL.match(name))}

    def rename(name: str) -> str:
        match = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
        if match is None:
            name = _rename_start(name, _UNET_TOP)
            head, middle, rest = name.partition("middle_block.")
            if middle and rest[:2] in ("0.", "2."):
                return head + middle + rest[:2] + _rename_start(rest[2:], _UNET_RESNET)
            return name
        side, block, kind, layer, rest = match.groups()
        down = side == "down"
        # Down: block 0 is conv_in and each level ends with its downsampler. Up: the upsampler is
        # one more module in the level's last block.
        first, end = places[side][int(block) : int(block) + 2]
        layers = end - first
        first += int(block) + 1 if down else 0
        place = f"{'input' if down else 'output'}_blocks.{first + int(layer)}"
        if kind == "resnets":
            return f"{place}.0.{_rename_start(rest, _UNET_RESNET)}"
        if kind == "attentions":
            return f"{place}.1.{rest}"
        if kind == "downsamplers":
            return f"input_blocks.{first + layers}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            module = 2 if block in with_attention else 1
            return f"output_blocks.{first + layers - 1}.{module}.{rest}"
        raise KeyError(name)

    return {UNET_PREFIX + rename(name): tensor for name, tensor in state_dict.items()}


def vae_to_ldm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an `AutoencoderKL`'s tensors to `first_stage_model.*`.

    The attention's four maps `[C, C]` become 1x1 convolutions `[C, C, 1, 1]`, as the layout has
    them. Raises KeyError for a tensor that the layout has no place for.
    """
    levels = _count(state_dict, r"decoder\.up_blocks\.(\d+)\.")

    def rename(name: str) -> str:
        if name.startswith(("quant_conv.", "post_quant_conv.")):
            return name
        part, _, rest = name.partition(".")
        rest = re.sub(r"^conv_norm_out\.", "norm_out.", rest)
        if match := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", rest):
            side, block, kind, layer, rest = match.groups()
            # The layout counts the decoder's levels from the finest.
            level = int(block) if side == "down" else levels - 1 - int(block)
            if kind == "resnets":
                rest = re.sub(r"^conv_shortcut\.", "nin_shortcut.", rest)
                return f"{part}.{side}.{level}.block.{layer}.{rest}"
            return f"{part}.{side}.{level}.{side}sample.{rest}"
        if match := re.match(r"mid_block\.resnets\.(\d+)\.(.+)", rest):
            return f"{part}.mid.block_{int(match[1]) + 1}.{match[2]}"
        if rest.startswith("mid_block.attentions.0."):
            inner = rest.removeprefix("mid_block.attentions.0.")
            return f"{part}.mid.attn_1.{_rename_start(inner, _VAE_ATTENTION)}"
        if re.match(r"(conv_in|conv_out|norm_out)\.", rest):
            return f"{part}.{rest}"
        raise KeyError(name)

    result = {}
    for name, tensor in state_dict.items():
        new = rename(name)
        if re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$", new) and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        result[VAE_PREFIX + new] = tensor
    return result


def text_encoder_to_ldm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a `CLIPTextModel`'s tensors to `cond_stage_model.transformer.text_model.*`.

    Takes the names of transformers 5.6 and later as well as the older ones with `text_model.`
    in front. Adds `embeddings.position_ids` (int64 `[1, positions]`), which original files carry.
    """
    result = {TEXT_PREFIX + k.removeprefix("text_model."): t for k, t in state_dict.items()}
    positions = result[TEXT_PREFIX + "embeddings.position_embedding.weight"].shape[0]
    result[TEXT_PREFIX + "embeddings.position_ids"] = torch.arange(positions)[None]
    return result


def save_single_file(
    path: Path,
    unet_sd: Mapping[str, Tensor],
    vae_sd: Mapping[str, Tensor],
    text_sd: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype,
) -> None:
    """Write one safetensors file in the SD1 layout from three diffusers state dicts.

    Floating-point tensors are stored as `dtype`. Equal tensors and metadata give equal bytes.
    """
    tensors = {**unet_to_ldm(unet_sd), **vae_to_ldm(vae_sd), **text_encoder_to_ldm(text_sd)}
    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors.items()
    }
    save_tensors(path, tensors, metadata)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose bytes depend on the tensors and metadata alone.

    The library writes its metadata in random order, so the header is written once more, sorted.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    raw = safetensors.torch.save(contiguous, {"format": "pt", **metadata})
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
