"""The one place that imports diffusers and transformers, cut off from the network and quiet.

Both read their settings while they are imported, so nothing else in the package imports them.
"""

import importlib
import os
from typing import Any

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        # Standard error belongs to the command line's own progress bar, from the import on.
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
    }
)

# Any on purpose: how far the two annotate their interfaces changes with every release.
_diffusers: Any = importlib.import_module("diffusers")
_single_file: Any = importlib.import_module("diffusers.loaders.single_file_utils")
_transformers: Any = importlib.import_module("transformers")

AutoencoderKL: Any = _diffusers.AutoencoderKL
DDIMScheduler: Any = _diffusers.DDIMScheduler
StableDiffusionPipeline: Any = _diffusers.StableDiffusionPipeline
StableDiffusionXLPipeline: Any = _diffusers.StableDiffusionXLPipeline
UNet2DConditionModel: Any = _diffusers.UNet2DConditionModel

CLIPModel: Any = _transformers.CLIPModel
CLIPTextConfig: Any = _transformers.CLIPTextConfig
CLIPTextModel: Any = _transformers.CLIPTextModel
CLIPTextModelWithProjection: Any = _transformers.CLIPTextModelWithProjection
CLIPTokenizer: Any = _transformers.CLIPTokenizer

convert_ldm_unet_checkpoint: Any = _single_file.convert_ldm_unet_checkpoint
convert_ldm_vae_checkpoint: Any = _single_file.convert_ldm_vae_checkpoint
convert_open_clip_checkpoint: Any = _single_file.convert_open_clip_checkpoint

# Again, for a process that had imported them before.
_transformers.logging.set_verbosity_error()
_diffusers.logging.set_verbosity_error()
_diffusers.logging.disable_progress_bar()
