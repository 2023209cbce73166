"""Files whose tensors are named otherwise load as the plain file does."""

import json

import pytest
import tiny
import torch
from safetensors.torch import save_file

from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.model.configs import METADATA_KEY
from nemo_prune.model.loading import load_model, load_pipeline

# What a model predicts is measured on its own pixels: on all 64 x 64 that takes seconds.
SMALL = {METADATA_KEY: json.dumps({"unet": tiny.small_unet(16)})}


def wrapped(tensors):
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def compiled(tensors):
    return {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}


def recomputed(tensors):
    return {
        name.replace(".0.attn", ".0._checkpoint_wrapped_module.attn"): tensor
        for name, tensor in tensors.items()
    }


def vae_of_later_names(tensors):
    """The autoencoder's attention as linear maps under diffusers' names, all else under LDM's."""
    found = {}
    for name, tensor in tensors.items():
        new = name
        if ".mid.attn_1." in name:
            for old, own in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
                new = new.replace(f".attn_1.{old}.", f".attn_1.{own}.")
            new = new.replace(".attn_1.norm.", ".attn_1.group_norm.")
            tensor = tensor.reshape(tensor.shape[:2])
        found[new] = tensor
    assert found.keys() != tensors.keys()
    return found


@pytest.mark.parametrize("renamed", [wrapped, compiled, recomputed, vae_of_later_names])
def test_a_file_with_other_names_loads_as_the_plain_one(tmp_path, renamed):
    tensors = tiny.tiny_tensors("sd1")
    found = []
    for number, kept in enumerate((tensors, renamed(tensors))):
        path = tmp_path / f"{number}.safetensors"
        save_file(kept, path, metadata=SMALL)
        pipeline = load_pipeline(open_checkpoint(path), device=torch.device("cpu"), dtype=torch.float32)
        found.append({
            f"{part}.{key}": tensor
            for part in ("unet", "vae", "text_encoder")
            for key, tensor in getattr(pipeline, part).state_dict().items()
        })  # fmt: skip
    plain, other = found
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[key], other[key]) for key in plain)


def test_a_compiled_unet_alone(tmp_path):
    """As `torch.compile(unet).state_dict()` names it, in diffusers' names."""
    plain = open_checkpoint(tiny.write_small(tmp_path / "plain.safetensors", 16))
    options = {"device": torch.device("cpu"), "dtype": torch.float32}
    unet = load_model(plain, **options).unet
    tensors = {f"_orig_mod.{key}": tensor.contiguous() for key, tensor in unet.state_dict().items()}
    save_file(tensors, tmp_path / "compiled.safetensors", metadata=SMALL)
    found = load_model(
        open_checkpoint(tmp_path / "compiled.safetensors"), text_encoder=(plain.path,), **options
    ).unet
    assert all(torch.equal(tensor, found.state_dict()[key]) for key, tensor in unet.state_dict().items())
