"""The edit as a LoRA, loaded by diffusers: it draws as the pruned file does."""

import pytest
import tiny
import torch

from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.lora import new_lora
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.model.loading import load_pipeline

pytest.importorskip("peft", reason="diffusers loads LoRAs through it")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("names", ["kohya", "diffusers"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_fused_at_weight_1_it_is_the_pruned_model(tmp_path, family, names):
    path = tiny.write_small(tmp_path / "m.safetensors", 16, family)
    checkpoint = open_checkpoint(path)
    layers = [checkpoint.value_layers[number] for number in (0, 3, -1)]
    chosen = [Neuron(layer.name, row) for n, layer in enumerate(layers) for row in range(2, 3 + n)]
    write_model(checkpoint, chosen, tmp_path / "pruned.safetensors", {})
    with new_lora(checkpoint, chosen, tmp_path / "patch.safetensors", names):
        pass

    def pipeline(name):
        found = open_checkpoint(tmp_path / name)
        return load_pipeline(found, device=torch.device("cpu"), dtype=torch.float32)

    pruned, mended = pipeline("pruned.safetensors"), pipeline("m.safetensors")
    mended.load_lora_weights(str(tmp_path), weight_name="patch.safetensors")
    with torch.no_grad():
        assert torch.allclose(noise(mended.unet), noise(pruned.unet), atol=1e-5)
    mended.fuse_lora()
    mended.unload_lora_weights()
    before = open_checkpoint(path)
    for layer in before.value_layers:
        wanted = pruned.unet.get_submodule(layer.name).weight
        assert torch.equal(mended.unet.get_submodule(layer.name).weight, wanted)
    for neuron in chosen:
        assert not mended.unet.get_submodule(neuron.layer).weight[neuron.row].any()
    with torch.no_grad():
        same = noise(pruned.unet)
        assert torch.equal(noise(mended.unet), same)
        assert not torch.allclose(noise(pipeline("m.safetensors").unet), same, atol=1e-5)


def noise(unet):
    made = torch.Generator().manual_seed(0)
    width, side = unet.config.cross_attention_dim, 16
    latents = torch.randn(2, 4, side, side, generator=made)
    text = torch.randn(2, 5, width, generator=made)
    more = {}
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * 256
        more["added_cond_kwargs"] = {
            "text_embeds": torch.randn(2, pooled, generator=made), "time_ids": torch.ones(2, 6),
        }  # fmt: skip
    return unet(latents, 900, text, **more).sample
