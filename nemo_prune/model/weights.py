"""Tensors out of a checkpoint file, under the names that diffusers and transformers use.

Renaming is diffusers' own where it is sound; filling a model is not, because
`from_single_file` leaves a missing weight at random without a word where accelerate is absent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nemo_prune.checkpoint.blocks import Blocks, plain_name
from nemo_prune.checkpoint.folder import component_copies
from nemo_prune.checkpoint.foreign import is_another_part
from nemo_prune.checkpoint.recognize import SCALES
from nemo_prune.errors import CheckpointError, option
from nemo_prune.model.hub import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from nemo_prune.model.inference import Shapes

if TYPE_CHECKING:
    from nemo_prune.checkpoint.checkpoint import Checkpoint

Tensors = dict[str, Tensor]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIXES = ("first_stage_model.", "vae.")
_UNET_BLOCKS = ("input_blocks.", "middle_block.", "output_blocks.")
_UNET_PARTS = ("time_embed.", "label_emb.", *_UNET_BLOCKS, "out.")
_BLOCKS = re.compile("|".join(map(re.escape, _UNET_BLOCKS)))
_CONVERTED = re.compile(r"(down|up)_blocks\.(\d+)\.(?:(resnets|attentions)\.0\.)?(.+)")
_MAP_BIAS = re.compile(r"(.+\.attn[12]\.to_[qkv])\.bias")
_OPEN_CLIP_LAYERS = 24
_VAE_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_tensors(
    path: Path, wanted: Callable[[str], bool] = lambda _: True, wrapper: str = ""
) -> Tensors:
    """The tensors whose names are wanted, mapped from the file: no data is read yet.

    Names are those of `plain_name`, to which `wrapper` is handed.

    Raises CheckpointError if the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = {plain_name(name, wrapper): name for name in file.keys()}  # noqa: SIM118
            return {plain: file.get_tensor(name) for plain, name in names.items() if wanted(plain)}
    except (OSError, SafetensorError) as error:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise CheckpointError(
                f"{path}: has a name that is not UTF-8, which the safetensors library cannot open; "
                f"rename it"
            ) from None
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def read_component(folder: Path) -> Tensors:
    """A component of a diffusers folder: the set of weights that diffusers would take, {} if none.

    Scaled 8-bit weights are multiplied out, as by all readers here but `read_tensors`.

    Raises CheckpointError if it cannot be read, or lies there as a pickle only.
    """
    copies = component_copies(folder)
    if not copies:
        if any(folder.glob("*.bin")):
            raise CheckpointError(
                f"{folder}: holds its weights as a pickle only, which is not opened; save them again "
                f"with save_pretrained(safe_serialization=True)"
            )
        return {}
    return _unscaled({name: t for path in copies[0].files for name, t in read_tensors(path).items()})


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Names to shapes."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _starting(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The tensors below `prefix`, without it."""
    return {
        name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
    }


def read_unet(checkpoint: Checkpoint) -> Tensors:
    """A UNet's tensors under diffusers' names, for every layout of `Checkpoint`; no EMA twins.

    What a single file's denoiser holds and diffusers has no name for comes under its own, for `fill` to
    refuse. Raises CheckpointError if the file cannot be read or lacks a weight that SDXL needs.
    """
    path, wrapper = checkpoint.path, checkpoint.wrapper
    if checkpoint.is_folder or checkpoint.layout == "unet-diffusers":
        # Marker keys for other programs, such as v_pred, have no dot. One tensor of PixArt's has none.
        def wanted(name: str) -> bool:
            dotted = "." in name and not name.startswith("model_ema.")
            return dotted or name == "scale_shift_table"

        pieces = (read_tensors(file, wanted, wrapper) for file in checkpoint.files)
        return _unscaled({name: tensor for piece in pieces for name, tensor in piece.items()})
    # What stands before the blocks differs where a UNet is saved alone.
    prefix = _BLOCKS.split(plain_name(checkpoint.value_layers[0].tensors[0], wrapper))[0]
    # Without a prefix of its own a denoiser lies among the other parts of the model.
    alone = prefix.endswith("diffusion_model.")

    def own(name: str) -> bool:
        return name.startswith(prefix) and (alone or not is_another_part(name.removeprefix(prefix)))

    found = {n.removeprefix(prefix): t for n, t in _unscaled(read_tensors(path, own, wrapper)).items()}
    tensors = {UNET_PREFIX + name: t for name, t in found.items() if name.startswith(_UNET_PARTS)}
    # The converter knows blocks of one length only, so each becomes a block of its own, of no layers
    # but the first, and is put in its place after that.
    config: dict[str, object] = {"layers_per_block": 0}
    if f"{UNET_PREFIX}label_emb.0.0.weight" in tensors:
        config["addition_embed_type"] = "text_time"
    try:
        renamed = convert_ldm_unet_checkpoint(tensors, config)
    except KeyError as error:
        raise missing(path, f"{UNET_PREFIX}{error.args[0]}") from None
    if (guidance := f"{UNET_PREFIX}time_embed.cond_proj.weight") in tensors:
        # LCM's, which the converter leaves out without a word.
        renamed["time_embedding.cond_proj.weight"] = tensors[guidance]
    blocks = Blocks(found)
    # It puts None where a bias has no weight beside it or the other way round.
    placed = {_placed(name, blocks): t for name, t in renamed.items() if t is not None}
    # What it does not know it leaves out without a word. Markers have no dot and at most one axis.
    taken = {id(tensor) for tensor in placed.values()}
    left = {n: t for n, t in found.items() if id(t) not in taken and ("." in n or t.ndim > 1)}
    return left | placed


def _placed(name: str, blocks: Blocks) -> str:
    """Diffusers' name of a tensor that was converted as if each block stood alone."""
    match = _CONVERTED.fullmatch(name)
    if match is None:
        return name
    side, number, kind, rest = match.groups()
    # Input block 0 is the first convolution, which the converter does not count.
    block, layer = blocks.down(int(number) + 1) if side == "down" else blocks.up(int(number))
    return f"{side}_blocks.{block}.{f'{kind}.{layer}.' if kind else ''}{rest}"


def _unscaled(tensors: Tensors) -> Tensors:
    """8-bit weights times the factors beside them ("scaled fp8"), float32; all others untouched.

    A factor is one number, or one for each row. What scales activations is left out: it is about
    speed on some devices, not about what the model computes.
    """
    found = {name: t for name, t in tensors.items() if not name.endswith(SCALES)}
    for name, scale in tensors.items():
        stem = name.removesuffix(".scale_weight").removesuffix(".weight_scale")
        weight = found.get(f"{stem}.weight")
        if stem != name and weight is not None:
            rows = (-1, *[1] * (weight.ndim - 1))
            found[f"{stem}.weight"] = weight.float() * scale.float().reshape(rows)
    return found


def read_folder_vae(root: Path) -> Tensors:
    """The autoencoder's tensors out of a diffusers folder, {} if it has none."""
    return {_vae_name(name): tensor for name, tensor in read_component(root / "vae").items()}


def _vae_name(name: str) -> str:
    """The present name of a tensor; folders of the first years call the attention's maps otherwise."""
    if ".attentions." in name:
        for old, new in _OLD_ATTENTION.items():
            name = name.replace(f".{old}.", f".{new}.")
    return name


def read_vae(path: Path, wrapper: str = "") -> Tensors:
    """An autoencoder's tensors under diffusers' names, {} if the file has none."""
    tensors = _unscaled(read_tensors(path, lambda name: name.startswith(VAE_PREFIXES), wrapper))
    if not tensors:
        return {}
    tensors = {_old_vae_name(name): tensor for name, tensor in tensors.items()}
    levels = range(len({name.split(".")[3] for name in tensors if ".encoder.down." in name}))
    config = {"down_block_types": levels, "up_block_types": levels}
    renamed: Tensors = convert_ldm_vae_checkpoint(tensors, config)
    return renamed


def _old_vae_name(name: str) -> str:
    """The name that converters know where a file has diffusers' names for attention's maps alone."""
    if ".mid.attn_1." in name:
        for own, old in _VAE_ATTENTION.items():
            name = name.replace(f".attn_1.{own}.", f".attn_1.{old}.")
    return name


def read_text_encoder(
    path: Path, prefix: str, *, unused_layer: bool = False, wrapper: str = ""
) -> Tensors:
    """A CLIP text encoder's tensors under transformers' names without `text_model.` in front.

    Args:
        path: the file.
        prefix: an entry of `Family.text_prefixes`; below it lies CLIP (`transformer.`, with or without
            `text_model.`) or OpenCLIP (`model.`).
        unused_layer: `Family.unused_text_layer`.
        wrapper: as for `read_tensors`.

    Returns:
        The tensors of the layers that Stable Diffusion uses; {} if there are none.
    """
    tensors = read_tensors(path, lambda name: name.startswith(prefix), wrapper)
    return name_text_encoder(tensors, prefix, unused_layer=unused_layer)


def name_text_encoder(tensors: Tensors, prefix: str = "", *, unused_layer: bool = False) -> Tensors:
    """`read_text_encoder` for tensors already read; with `prefix` "" for an encoder's own file.

    Args:
        tensors: of the whole encoder, in any of the namings.
        prefix: what stands in front of them.
        unused_layer: leave out the last layer where the file holds the whole stack.
    """
    tensors = _unscaled(tensors)
    for start in (prefix + "transformer.", prefix):
        clip = {n.removeprefix("text_model."): t for n, t in _starting(tensors, start).items()}
        if "embeddings.token_embedding.weight" in clip:
            last = f"encoder.layers.{_OPEN_CLIP_LAYERS - 1}."
            return {name: t for name, t in clip.items() if not (unused_layer and name.startswith(last))}
    start = prefix + "model." if prefix + "model.token_embedding.weight" in tensors else prefix
    if start + "token_embedding.weight" not in tensors:
        # One without its table of tokens is still told to be incomplete, not to be missing.
        clip = _starting(tensors, prefix + "transformer.")
        return {name.removeprefix("text_model."): tensor for name, tensor in clip.items()}
    width = tensors[start + "token_embedding.weight"].shape[1]
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    renamed = convert_open_clip_checkpoint(model, tensors, prefix=start)
    block = re.compile(re.escape(start) + r"transformer\.resblocks\.(\d+)\.")
    count = len({match[1] for name in tensors if (match := block.match(name))})
    whole = start + "text_projection" in tensors or count == _OPEN_CLIP_LAYERS
    # Stable Diffusion 2 takes the last layer but one, and original files hold the whole stack.
    # Those that went through diffusers hold what is used, without a projection.
    unused = unused_layer and whole
    last = f"encoder.layers.{count - 1}."
    result = {name.removeprefix("text_model."): tensor for name, tensor in renamed.items()}
    return {name: t for name, t in result.items() if not (unused and name.startswith(last))}


def missing(path: Path, name: str) -> CheckpointError:
    """The error for a weight that the model needs and the file lacks."""
    return CheckpointError(f"{path}: no tensor for {name}; the file is incomplete")


def build(make: Callable[[], nn.Module], path: Path) -> nn.Module:
    """Call `make` so that no memory is spent on weights that are about to be replaced.

    Raises CheckpointError if the config that it uses describes no such model.
    """
    try:
        with torch.device("meta"):
            model = make()
    except (ValueError, TypeError, ZeroDivisionError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: its config describes no model that loads ({error}); "
            f"mend it, or give the right configs with {option('config')} DIR"
        ) from None
    return model.eval().requires_grad_(False)


def add_biases(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make room for the biases of attention's maps, which diffusers builds its UNets without.

    A model that has them was trained with them. diffusers itself leaves them out without a word.
    """
    modules = dict(model.named_modules())
    for name in tensors:
        layer = modules.get(match[1]) if (match := _MAP_BIAS.fullmatch(name)) else None
        if isinstance(layer, nn.Linear) and layer.bias is None:
            empty = torch.empty(layer.out_features, dtype=layer.weight.dtype, device="meta")
            layer.bias = nn.Parameter(empty, requires_grad=False)


def fill(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    path: Path,
    label: str,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give a model made by `build` its weights, on `device` as `dtype`, and check every one.

    Args:
        model: its parameters lie on the meta device.
        tensors: by the model's own names; copied, so that the file can change afterwards.
        path: named in errors.
        label: the component's name for errors, e.g. "unet".
        device: where the weights go.
        dtype: what floating-point weights become.

    Raises:
        CheckpointError: a weight is missing, has another shape, or has no place in the model.
    """
    expected = model.state_dict()
    for name, slot in expected.items():
        if name not in tensors:
            raise missing(path, f"{label}.{name}")
        if tensors[name].shape != slot.shape:
            raise CheckpointError(
                f"{path}: {label}.{name} has shape {list(tensors[name].shape)} where its config "
                f"asks for {list(slot.shape)}; give the right configs with {option('config')} DIR"
            )
    for name in sorted(tensors.keys() - expected.keys()):
        raise CheckpointError(
            f"{path}: {label}.{name} has no place in a model of this kind, so what "
            f"it does would be left out (an adapter or extension such as GLIGEN?); give the plain model"
        )
    ready = {
        name: tensors[name].to(device, dtype if slot.is_floating_point() else slot.dtype, copy=True)
        for name, slot in expected.items()
    }
    model.load_state_dict(ready, assign=True)
    # Buffers that are not saved are still empty; CLIP's position numbers are the only ones.
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            owner = model.get_submodule(name.rpartition(".")[0])
            numbers = torch.arange(buffer.shape[-1], dtype=torch.long, device=device)
            owner.register_buffer(
                name.rpartition(".")[2], numbers.expand(buffer.shape), persistent=False
            )
