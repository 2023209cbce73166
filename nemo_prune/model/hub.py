"""The one place that imports diffusers and transformers, and how they are kept quiet.

Nothing here touches the process's settings: what is read from a folder is read with
`local_files_only`, and both libraries' log levels change only inside `quiet`.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Any on purpose: how far the two annotate their interfaces changes with every release.
_diffusers: Any = importlib.import_module("diffusers")
_transformers: Any = importlib.import_module("transformers")


@contextmanager
def quiet() -> Iterator[None]:
    """Errors alone are logged, and no progress bars are drawn; as before on any exit.

    Both libraries keep one level for the whole process, so other threads are quiet meanwhile too.
    """
    libraries = (_transformers.logging, _diffusers.logging)
    before = [(logging.get_verbosity(), logging.is_progress_bar_enabled()) for logging in libraries]
    for logging in libraries:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, (level, bars) in zip(libraries, before, strict=True):
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


# Both load their parts when these are asked for, and say what optional packages are missing.
with quiet():
    _single_file: Any = importlib.import_module("diffusers.loaders.single_file_utils")

    AutoencoderKL: Any = _diffusers.AutoencoderKL
    DDIMScheduler: Any = _diffusers.DDIMScheduler
    LCMScheduler: Any = _diffusers.LCMScheduler
    PixArtAlphaPipeline: Any = _diffusers.PixArtAlphaPipeline
    PixArtSigmaPipeline: Any = _diffusers.PixArtSigmaPipeline
    PixArtTransformer2DModel: Any = _diffusers.PixArtTransformer2DModel
    StableDiffusionPipeline: Any = _diffusers.StableDiffusionPipeline
    StableDiffusionXLPipeline: Any = _diffusers.StableDiffusionXLPipeline
    UNet2DConditionModel: Any = _diffusers.UNet2DConditionModel

    CLIPModel: Any = _transformers.CLIPModel
    CLIPTextConfig: Any = _transformers.CLIPTextConfig
    CLIPTextModel: Any = _transformers.CLIPTextModel
    CLIPTextModelWithProjection: Any = _transformers.CLIPTextModelWithProjection
    CLIPTokenizer: Any = _transformers.CLIPTokenizer
    T5Config: Any = _transformers.T5Config
    T5EncoderModel: Any = _transformers.T5EncoderModel
    T5Tokenizer: Any = _transformers.T5Tokenizer

PatchEmbed: Any = importlib.import_module("diffusers.models.embeddings").PatchEmbed
convert_ldm_unet_checkpoint: Any = _single_file.convert_ldm_unet_checkpoint
convert_ldm_vae_checkpoint: Any = _single_file.convert_ldm_vae_checkpoint
convert_open_clip_checkpoint: Any = _single_file.convert_open_clip_checkpoint
