"""tools/ldm.py against diffusers' own reading of the single-file layout."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny import ldm, tiny_configs

from nemo_prune.model import hub
from nemo_prune.model.configs import complete_folder

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"


@pytest.mark.parametrize(
    ("widths", "layers", "kinds", "vae_widths", "vae_layers"),
    [
        ([32, 64, 96, 96], 2, [CROSS, CROSS, CROSS, PLAIN], [32, 64, 64], 2),
        ([32, 64, 64], 1, [PLAIN, CROSS, CROSS], [32, 32], 1),
        ([32, 64], 3, [CROSS, CROSS], [32, 32, 64, 64], 3),
    ],
)
def test_single_file_gives_back_every_tensor(
    tmp_path: Path,
    widths: list[int],
    layers: int,
    kinds: list[str],
    vae_widths: list[int],
    vae_layers: int,
) -> None:
    configs = tiny_configs()
    configs["unet"] |= {
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
    }
    configs["vae"] |= {
        "block_out_channels": vae_widths,
        "layers_per_block": vae_layers,
        "down_block_types": ["DownEncoderBlock2D"] * len(vae_widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(vae_widths),
    }
    unet = hub.UNet2DConditionModel.from_config(configs["unet"])
    vae = hub.AutoencoderKL.from_config(configs["vae"])
    text = hub.CLIPTextModel(hub.CLIPTextConfig.from_dict(configs["text_encoder"]))
    states = [model.state_dict() for model in (unet, vae, text)]
    path = tmp_path / "model.safetensors"
    ldm.save_single_file(path, *states, {"title": "a", "b": "c"}, torch.float32)

    folder = complete_folder("sd1", configs, tmp_path / "configs")
    pipeline = hub.StableDiffusionPipeline.from_single_file(
        str(path), config=str(folder), local_files_only=True
    )
    for state, model in zip(states, (pipeline.unet, pipeline.vae, pipeline.text_encoder), strict=True):
        loaded = model.state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], state[name]) for name in state)

    with safe_open(path, "pt") as file:
        names = set(file.keys())
        assert file.metadata() == {"title": "a", "b": "c", "format": "pt"}
        attention = file.get_tensor("first_stage_model.decoder.mid.attn_1.q.weight")
        positions = file.get_tensor(ldm.TEXT_PREFIX + "embeddings.position_ids")
    assert attention.shape == (vae_widths[-1], vae_widths[-1], 1, 1)
    assert torch.equal(positions, torch.arange(77)[None])
    assert f"{ldm.UNET_PREFIX}input_blocks.{layers + 1}.0.op.weight" in names

    again = tmp_path / "again.safetensors"
    ldm.save_single_file(again, *states, {"b": "c", "title": "a"}, torch.float32)
    assert again.read_bytes() == path.read_bytes()
