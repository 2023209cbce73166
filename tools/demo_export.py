"""The demo checkpoint as one file in Stable Diffusion 1's layout.

The file alone is enough for nemo-prune: what its shapes cannot tell stands in its metadata. Plain
diffusers reads no such metadata and needs a config folder; see
`nemo_prune.report.demo.write_config_folder`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from ldm import save_single_file
from transformers import CLIPTextModel

from nemo_prune.model.configs import METADATA_KEY
from nemo_prune.report.demo import component_configs

# The settings that change what a model computes and leave no trace in its tensors' shapes.
_UNSEEN = {
    "unet": ("attention_head_dim", "norm_num_groups", "sample_size"),
    "vae": ("norm_num_groups", "sample_size", "scaling_factor"),
    "text_encoder": ("num_attention_heads", "bos_token_id", "eos_token_id", "pad_token_id"),
}


def export(
    painter_text: CLIPTextModel,
    painter_unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    path: Path,
    extra_metadata: Mapping[str, str],
) -> None:
    """Write one fp16 safetensors file that nemo-prune loads without any further file.

    Args:
        painter_text: the text encoder.
        painter_unet: the denoiser; it predicts epsilon.
        vae: the autoencoder.
        path: where to; equal weights and metadata give equal bytes.
        extra_metadata: further entries, such as `modelspec.author`; they win over the standard
            ones, except for the hash.
    """
    side = painter_unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
    configs = component_configs(painter_text, painter_unet, vae)
    unseen = {part: {key: configs[part][key] for key in keys} for part, keys in _UNSEEN.items()}
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": "nemo-prune demo",
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "epsilon",
        METADATA_KEY: json.dumps(unseen, sort_keys=True),
        **extra_metadata,
    }
    metadata.pop("modelspec.hash_sha256", None)
    states = [model.state_dict() for model in (painter_unet, vae, painter_text)]
    save_single_file(path, *states, metadata, torch.float16)
    # The hash is over what follows the header, which stays the same when the header gets it.
    metadata["modelspec.hash_sha256"] = f"0x{_data_sha256(path)}"
    save_single_file(path, *states, metadata, torch.float16)


def _data_sha256(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()
