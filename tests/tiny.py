"""Small random checkpoints with the true topology and tensor names of each family.

`write_tiny` writes a single file in a second or so; `config_folder` writes the diffusers config
folder that describes it, for comparing with diffusers' own loading.
"""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import ldm
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from nemo_prune.cli.main import main
from nemo_prune.errors import rendered
from nemo_prune.model.configs import METADATA_KEY, complete_folder, data_folder, read_config
from nemo_prune.model.hub import (
    AutoencoderKL,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    UNet2DConditionModel,
)

_WIDTHS = {"sd1": [32, 64, 96, 96], "sd2": [64, 64, 128, 128], "sdxl": [64, 64, 128]}
_TEXT_WIDTHS = {"sd1": [64], "sd2": [64], "sdxl": [64, 128]}
_POOLED = 32


def tiny_configs(
    family: str = "sd1", in_channels: int = 4, layers: int = 2, fewer: bool = False
) -> dict[str, dict[str, Any]]:
    """The family's configs at a few channels, and so many layers a block: `{component: config}`.

    fewer: a Stable Diffusion 1 or 2 has three levels, as SDXL has; the family's own are four.
    """
    bundled = data_folder("configs", family)
    widths, text_widths = _WIDTHS[family], _TEXT_WIDTHS[family]
    own = read_config(bundled, "unet")
    if fewer and len(widths) > 3:
        widths = widths[:3]
        own = own | {
            "down_block_types": own["down_block_types"][1:],
            "up_block_types": own["up_block_types"][:-1],
        }
    unet = own | {
        "block_out_channels": widths,
        "cross_attention_dim": sum(text_widths),
        "in_channels": in_channels,
        "layers_per_block": layers,
    }
    if family != "sd1":
        unet["attention_head_dim"] = [width // 64 for width in widths]
    if family == "sdxl":
        unet["transformer_layers_per_block"] = [1, 2, 3]
        unet["projection_class_embeddings_input_dim"] = 6 * 256 + _POOLED
    vae = read_config(bundled, "vae") | {
        "block_out_channels": [32, 32, 64, 64],
        "layers_per_block": 1,
    }
    configs = {"unet": unet, "vae": vae}
    for name, width in zip(("text_encoder", "text_encoder_2"), text_widths, strict=False):
        configs[name] = read_config(bundled, name) | {
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_attention_heads": width // 64,
            "num_hidden_layers": 2,
            "projection_dim": _POOLED,
        }
    return configs


def config_folder(destination: Path, family: str = "sd1", in_channels: int = 4, layers: int = 2) -> Path:
    """A whole diffusers config folder for `write_tiny`'s checkpoint of the same family."""
    return complete_folder(family, tiny_configs(family, in_channels, layers), destination)


def open_clip(state: Mapping[str, Tensor], prefix: str, layers: int) -> dict[str, Tensor]:
    """A CLIP text encoder's tensors under OpenCLIP's names; it always has `text_projection`."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    width = state["embeddings.position_embedding.weight"].shape[1]
    projection = state.get("text_projection.weight", torch.zeros(width, width))
    result = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": projection.T,
        "logit_scale": torch.tensor(4.6),
    }
    for layer in range(layers):
        # Stable Diffusion 2 files hold one layer more than it uses: any numbers will do for it.
        found = f"encoder.layers.{layer}.layer_norm1.weight" in state
        old = f"encoder.layers.{layer if found else 0}."
        new = f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            names = [f"{old}self_attn.{part}_proj.{kind}" for part in "qkv"]
            result[f"{new}attn.in_proj_{kind}"] = torch.cat([state[name] for name in names])
            for ours, theirs in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                result[f"{new}{theirs}.{kind}"] = state[f"{old}{ours}.{kind}"]
    return {prefix + name: tensor for name, tensor in result.items()}


def tiny_tensors(
    family: str = "sd1",
    *,
    ema: bool = False,
    text_encoder: bool = True,
    vae: bool = True,
    in_channels: int = 4,
    layers: int = 2,
    fewer: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """All tensors of a tiny single file, float32, with random weights."""
    drawn = _drawn(family, ema, text_encoder, vae, in_channels, layers, fewer, seed)
    return {name: tensor.clone() for name, tensor in drawn.items()}


@lru_cache(maxsize=8)
def _drawn(
    family: str, ema: bool, text_encoder: bool, vae: bool, in_channels: int, layers: int, fewer: bool,
    seed: int,
) -> dict[str, Tensor]:  # fmt: skip
    """Drawn once, since many tests start from the same tensors."""
    configs = tiny_configs(family, in_channels, layers, fewer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = ldm.unet_to_ldm(UNet2DConditionModel.from_config(configs["unet"]).state_dict())
        if ema:
            twins = {
                "model_ema." + name.removeprefix("model.").replace(".", ""): tensor
                for name, tensor in tensors.items()
            }
            extra = {"model_ema.decay": torch.tensor(0.9999)}
            extra["model_ema.num_updates"] = torch.tensor(1000)
            tensors = tensors | twins | extra
        if vae:
            tensors |= ldm.vae_to_ldm(AutoencoderKL.from_config(configs["vae"]).state_dict())
        if text_encoder:
            first = CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"])).state_dict()
            if family == "sd2":
                tensors |= open_clip(first, "cond_stage_model.model.", layers=3)
            else:
                renamed = ldm.text_encoder_to_ldm(first)
                place = "cond_stage_model." if family == "sd1" else "conditioner.embedders.0."
                tensors |= {
                    place + name.removeprefix("cond_stage_model."): tensor
                    for name, tensor in renamed.items()
                }
            if family == "sdxl":
                config = CLIPTextConfig.from_dict(configs["text_encoder_2"])
                second = CLIPTextModelWithProjection(config).state_dict()
                tensors |= open_clip(second, "conditioner.embedders.1.model.", layers=2)
    return {name: tensor.detach() for name, tensor in tensors.items()}


class Told:
    """`Progress` that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None: ...
    def advance(self, count: int = 1) -> None: ...
    def detail(self, text: str) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(rendered(text))


def run(*arguments: object) -> Result:
    """The command line as a user runs it, in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    ours_state, theirs_state = ours.state_dict(), theirs.state_dict()
    return ours_state.keys() == theirs_state.keys() and all(
        torch.equal(ours_state[name], theirs_state[name]) for name in ours_state
    )


def small_unet(side: int, family: str = "sd1") -> dict[str, Any]:
    """What a UNet's config says otherwise where latents are `side` pixels wide, and attention is cheap.

    Stable Diffusion 1's eight heads have four channels each at these widths, the slowest there is.
    """
    return {"sample_size": side} | ({"attention_head_dim": 1} if family == "sd1" else {})


def write_small(path: Path, side: int = 32, family: str = "sd1", **options: Any) -> Path:
    """`write_tiny` of a model whose UNet is `small_unet`: three levels, one layer a block (`layers`)."""
    small = json.dumps({"unet": small_unet(side, family)})
    fewest = {"layers": 1, "fewer": True}
    return write_tiny(path, family, metadata={METADATA_KEY: small}, **fewest | options)


def told_heads(family: str = "sd1", **unet: Any) -> dict[str, str]:
    """Metadata with how many heads a tiny UNet has, where its tensors do not tell; and more of it."""
    heads = {"attention_head_dim": 8} if family == "sd1" else {}
    return {METADATA_KEY: json.dumps({"unet": heads | unet})}


def write_tiny(
    path: Path,
    family: str = "sd1",
    *,
    dtype: torch.dtype = torch.float32,
    drop: Iterable[str] = (),
    metadata: Mapping[str, str] | None = None,
    **options: Any,
) -> Path:
    """Write a tiny single-file checkpoint and return its path.

    Args:
        path: where to.
        family: "sd1", "sd2" or "sdxl".
        dtype: of all floating-point tensors.
        drop: names of tensors to leave out.
        metadata: of the file; `told_heads` are added.
        options: as `tiny_tensors` takes them: ema, text_encoder, vae, in_channels, layers, fewer, seed.
    """
    dropped = set(drop)
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tiny_tensors(family, **options).items()
        if name not in dropped
    }
    heads = told_heads() if family == "sd1" else {}
    ldm.save_tensors(path, tensors, heads | dict(metadata or {}))
    return path
