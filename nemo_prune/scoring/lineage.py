"""Is a model the one that something was measured on, but for value rows that were zeroed since?

    before = lineage(original)           # kept with what was measured
    zeroed = zeroed_since(before, pruned)  # {layer: rows}, or None: another model

Proven by hashes of the weights as loaded, never by what a file says of itself: one hash of everything
but the value layers, and a short one of each of their rows. A model passes if the first is equal and
every row is either the same or all zero.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nemo_prune.model.denoiser import LoadedModel

ROW_BYTES = 8
"""Of a row's hash. Rows are compared place by place, so another row passes by accident once in 2^64."""


@dataclass(frozen=True, eq=False)
class Lineage:
    """What tells a model from others, and from itself with rows zeroed.

    apart: sha256 of all but the value layers, 64 hexadecimal digits; see `weights_sha256`.
    rows: layer name -> uint8 `[rows, 8]`, BLAKE2b of each row's weights and bias.
    """

    apart: str
    rows: Mapping[str, Tensor]


def weights_sha256(model: LoadedModel, *, apart: bool = False) -> str:
    """sha256 of the denoiser's and the text encoders' weights, as loaded, under diffusers' names.

    The layout of the file, its metadata, its VAE and its EMA twin do not matter, the precision does.
    With the weights go what a config may say otherwise of the same ones: attention heads, and the
    tokens. apart: leave out the value layers' weights and biases.
    """
    values = model.value_layers.values() if apart else ()
    skipped = {id(parameter) for layer in values for parameter in layer.parameters()}
    digest = hashlib.sha256()
    for module in (model.unet, *(encoder.model for encoder in model.text_encoders)):
        for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
            if id(tensor) not in skipped:
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
                digest.update(_bytes(tensor).numpy().data)
    for encoder in model.text_encoders:
        tokens = sorted(encoder.tokenizer.get_vocab().items())
        config = encoder.model.config
        act = config.hidden_act if hasattr(config, "hidden_act") else config.dense_act_fn  # T5's
        told = [config.num_attention_heads, act, encoder.tokenizer.pad_token_id, tokens]
        digest.update(json.dumps(told).encode())
    heads = [model.unet.get_submodule(n.removesuffix(".to_v")).heads for n in model.value_layers]
    digest.update(f"{model.family} {model.prediction_type} {heads}\n".encode())
    return digest.hexdigest()


def lineage(model: LoadedModel) -> Lineage:
    """The model's hashes, as `zeroed_since` compares them."""
    rows = {name: _row_hashes(layer) for name, layer in model.value_layers.items()}
    return Lineage(weights_sha256(model, apart=True), rows)


def zeroed_since(original: Lineage, model: LoadedModel, own: Lineage) -> dict[str, Tensor] | None:
    """Layer name -> bool `[rows]`, the rows that are zero in `model` and were not in the original.

    own: the model's lineage. None where anything else differs, or nothing does.
    """
    if original.apart != own.apart or original.rows.keys() != own.rows.keys():
        return None
    found = {}
    for name, layer in model.value_layers.items():
        before, now = original.rows[name], own.rows[name]
        if before.shape != now.shape:
            return None
        changed = (before != now).any(dim=1)
        if (changed & ~zero_rows(layer)).any():
            return None
        found[name] = changed
    return found if any(mask.any() for mask in found.values()) else None


def zero_rows(layer: nn.Linear) -> Tensor:
    """bool `[rows]` on the CPU: whose weights, and bias, are all zero."""
    zero = (layer.weight == 0).all(dim=1)
    if layer.bias is not None:
        zero = zero & (layer.bias == 0)
    return zero.cpu()


def _row_hashes(layer: nn.Linear) -> Tensor:
    parts = [one for one in (layer.weight, layer.bias) if one is not None]
    joined = torch.cat([_bytes(one).reshape(layer.out_features, -1) for one in parts], dim=1).numpy()
    hashes = [hashlib.blake2b(row.data, digest_size=ROW_BYTES).digest() for row in joined]
    return torch.frombuffer(bytearray(b"".join(hashes)), dtype=torch.uint8).reshape(-1, ROW_BYTES)


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor's bytes, uint8 `[n]` on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
