"""Diffusers configs from tensors' shapes: all that shapes tell, over a family's config; no torch.

Raises KeyError, with the name of a tensor that every such model has, where that is lacking.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

Config = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

# Every CLIP text encoder that Stable Diffusion uses has heads of this many channels.
_TEXT_HEAD = 64


class NotDescribed(Exception):
    """A UNet that no config of diffusers describes; the message says in what, without the file."""


def _count(names: Iterable[str], pattern: str) -> int:
    """How many indices the pattern's group takes in the names: the largest plus one, or 0."""
    found = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def infer_unet(base: Config, shapes: Shapes) -> Config:
    """`base` with everything that a UNet's shapes tell.

    Blocks may have any lengths, attention of any depth in each layer or none in a whole block, and
    the middle may lack its attention or be missing, as in distilled models.

    Args:
        base: the family's config; its attention heads are kept if they are one number (SD1) and
            follow from the widths if they are listed per level (SD2, SDXL: 64 channels a head).
        shapes: diffusers tensor names to shapes.

    Raises:
        KeyError: with the name of a tensor that every such UNet has and this one lacks.
        NotDescribed: the blocks are such as diffusers cannot be told to build.
    """
    levels = max(1, _count(shapes, r"down_blocks\.(\d+)\."))
    widths = [shapes[f"down_blocks.{n}.resnets.0.conv1.weight"][0] for n in range(levels)]
    layers = [_count(shapes, rf"down_blocks\.{n}\.resnets\.(\d+)\.") for n in range(levels)]
    ups = [_count(shapes, rf"up_blocks\.{n}\.resnets\.(\d+)\.") for n in range(levels)]
    wanted = [count + 1 for count in reversed(layers)]
    if ups != wanted or _count(shapes, r"up_blocks\.(\d+)\.") > levels:
        raise NotDescribed(f"up blocks of {ups} layers to down blocks of {layers}")
    down = [_depths(shapes, f"down_blocks.{n}", layers[n]) for n in range(levels)]
    up = [_depths(shapes, f"up_blocks.{n}", ups[n]) for n in range(levels)]
    middle = _count(shapes, r"mid_block\.attentions\.0\.transformer_blocks\.(\d+)\.")
    if middle and not down[-1][0]:
        # A block without attention ignores its entry, and the middle goes by the last one.
        depths = [*map(_entry, down[:-1]), middle]
    elif middle not in (0, down[-1][0]):
        raise NotDescribed(f"a mid block of depth {middle} after a down block of depth {down[-1][0]}")
    else:
        depths = [*map(_entry, down)]
    config = {
        **base,
        "block_out_channels": widths,
        "down_block_types": [f"{_kind(own)}DownBlock2D" for own in down],
        "up_block_types": [f"{_kind(own)}UpBlock2D" for own in up],
        "layers_per_block": layers[0] if len({*layers}) == 1 else layers,
        "transformer_layers_per_block": depths,
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
    }
    mirrored = zip(up, reversed(depths), strict=True)
    if any(own[0] and _entry(own) != entry for own, entry in mirrored):
        config["reverse_transformer_layers_per_block"] = [*map(_entry, up)]
    if not middle:
        config["mid_block_type"] = _middle_without_attention(shapes)
    if isinstance(base.get("attention_head_dim"), list):
        config["attention_head_dim"] = [max(1, width // _TEXT_HEAD) for width in widths]
    values = [name for name in shapes if name.endswith(".attn2.to_v.weight")]
    if values:
        config["cross_attention_dim"] = shapes[values[0]][1]
        entrance = values[0].split(".transformer_blocks.")[0] + ".proj_in.weight"
        config["use_linear_projection"] = len(shapes[entrance]) == 2
    if "time_embedding.cond_proj.weight" in shapes:
        config["time_cond_proj_dim"] = shapes["time_embedding.cond_proj.weight"][1]
    if "add_embedding.linear_1.weight" in shapes:
        config["projection_class_embeddings_input_dim"] = shapes["add_embedding.linear_1.weight"][1]
    return config


def _depths(shapes: Shapes, block: str, layers: int) -> list[int]:
    """How many transformer blocks each layer of a block has: 0 for all of them, or for none."""
    depths = [
        _count(shapes, rf"{re.escape(block)}\.attentions\.{layer}\.transformer_blocks\.(\d+)\.")
        for layer in range(layers)
    ]
    if 0 in depths and any(depths):
        raise NotDescribed(f"attention in some layers of {block} and not in the others")
    return depths


def _kind(depths: list[int]) -> str:
    return "CrossAttn" if any(depths) else ""


def _entry(depths: list[int]) -> int | list[int]:
    """A block's entry in a list of depths; one without attention needs one that is ignored."""
    return max(1, depths[0]) if len({*depths}) == 1 else depths


def _middle_without_attention(shapes: Shapes) -> str | None:
    resnets = _count(shapes, r"mid_block\.resnets\.(\d+)\.")
    if resnets > 1:
        raise NotDescribed(f"{resnets} layers and no attention in its mid block")
    return "UNetMidBlock2D" if resnets else None


def infer_text(base: Config, shapes: Shapes) -> Config:
    """`base` with everything that a CLIP text encoder's shapes tell.

    Args:
        base: the family's config.
        shapes: transformers' tensor names, without `text_model.` in front, to shapes.

    Raises:
        KeyError: with the name of a tensor that every such encoder has and this one lacks.
    """
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    config = {
        **base,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "num_hidden_layers": _count(shapes, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, width // _TEXT_HEAD),
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
    }
    if "text_projection.weight" in shapes:
        config["projection_dim"] = shapes["text_projection.weight"][0]
    return config


def infer_vae(base: Config, shapes: Shapes) -> Config:
    """`base` with everything that an autoencoder's shapes (diffusers names) tell.

    Raises KeyError with the name of a tensor that every such autoencoder has and this one lacks.
    """
    levels = _count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    widths = [shapes[f"encoder.down_blocks.{n}.resnets.0.conv1.weight"][0] for n in range(levels)]
    return {
        **base,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
    }
