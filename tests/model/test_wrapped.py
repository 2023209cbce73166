"""Files whose tensors have a wrapper's names load as the plain file does."""

import pytest
import tiny
import torch
from safetensors.torch import save_file

from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.model.loading import load_model, load_pipeline


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_a_wrapped_file_loads_as_the_plain_one(tmp_path, wrapper):
    tensors = tiny.tiny_tensors("sd1")
    found = []
    for name, prefix in (("plain", ""), ("wrapped", wrapper)):
        save_file({prefix + key: tensor for key, tensor in tensors.items()}, tmp_path / name)
        checkpoint = open_checkpoint(tmp_path / name)
        pipeline = load_pipeline(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
        found.append({
            f"{part}.{key}": tensor
            for part in ("unet", "vae", "text_encoder")
            for key, tensor in getattr(pipeline, part).state_dict().items()
        })  # fmt: skip
    plain, wrapped = found
    assert plain.keys() == wrapped.keys()
    assert all(torch.equal(plain[key], wrapped[key]) for key in plain)


def test_a_compiled_unet_alone(tmp_path):
    """As `torch.compile(unet).state_dict()` names it, in diffusers' names."""
    plain = open_checkpoint(tiny.write_tiny(tmp_path / "plain.safetensors"))
    options = {"device": torch.device("cpu"), "dtype": torch.float32}
    unet = load_model(plain, **options).unet
    tensors = {f"_orig_mod.{key}": tensor.contiguous() for key, tensor in unet.state_dict().items()}
    save_file(tensors, tmp_path / "compiled.safetensors")
    found = load_model(
        open_checkpoint(tmp_path / "compiled.safetensors"), text_encoder=(plain.path,), **options
    ).unet
    assert all(torch.equal(tensor, found.state_dict()[key]) for key, tensor in unet.state_dict().items())
