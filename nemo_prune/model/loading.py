"""A denoiser with its text encoder out of a checkpoint file, with no network.

Everything that a single file does not hold (configs, CLIP's vocabulary, the noise schedule) is
bundled or inferred; see `configs.py`. This module imports torch, so import it late.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nemo_prune.errors import CheckpointError, option
from nemo_prune.model import weights
from nemo_prune.model.configs import Configs
from nemo_prune.model.denoiser import LoadedModel, TextEncoder
from nemo_prune.model.devices import memory_format
from nemo_prune.model.hub import (
    AutoencoderKL,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    quiet,
)
from nemo_prune.model.inference import Config, NotDescribed
from nemo_prune.model.schedule import alphas_cumprod, read_schedule
from nemo_prune.model.text_sources import TextSource, text_sources
from nemo_prune.model.tokenizer import load_tokenizer, read_tokenizer

__all__ = ["LoadedModel", "TextEncoder", "load_model", "load_pipeline"]

if TYPE_CHECKING:
    from nemo_prune.checkpoint.checkpoint import Checkpoint


@quiet()
def load_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    config: Path | None = None,
    prediction_type: str | None = None,
    text_encoder: tuple[Path, ...] = (),
) -> LoadedModel:
    """Load a model's denoiser and text encoder(s), straight from its file or folder, offline.

    Args:
        checkpoint: what `open_checkpoint` found.
        device: where to put the weights.
        dtype: what to convert them to.
        config: a diffusers config folder that overrides all inference.
        prediction_type: "epsilon" or "v": what the UNet predicts, whatever the model says.
        text_encoder: where to take the text encoder(s) from, as `text_sources` reads it.

    Raises:
        CheckpointError: a component or a weight is missing, shapes do not fit, or the UNet's
            inputs or outputs are such that no noise difference can be taken.
        OptionError: the config folder cannot be used.
    """
    loader = _Loader(checkpoint, device, dtype, config)
    schedule = read_schedule(checkpoint, loader.configs, prediction_type)
    text_encoders = loader.text_encoders(text_encoder)
    unet = loader.unet()
    width = sum(encoder.model.config.hidden_size for encoder in text_encoders)
    if unet.config["cross_attention_dim"] != width:
        raise CheckpointError(
            f"{loader.path}: its text encoder gives {width} channels where the UNet takes "
            f"{unet.config['cross_attention_dim']}; give the right configs with {option('config')} DIR"
        )
    side = loader.configs.sample_size(dict(unet.config), schedule["prediction_type"])
    # A pipeline draws at the size that the UNet's config says.
    unet.register_to_config(sample_size=side)
    shape = (int(unet.config["out_channels"]), side, side)
    inputs = unet.config["in_channels"]
    if inputs not in (shape[0], 2 * shape[0] + 1):
        raise CheckpointError(
            f"{loader.path}: its UNet takes {inputs} channels, so it draws from more than text (a "
            f"picture, a depth map); give a text-to-image or inpainting model"
        )
    return LoadedModel(
        family=checkpoint.family,
        unet=unet,
        text_encoders=text_encoders,
        scheduler_config=schedule,
        alphas_cumprod=alphas_cumprod(schedule, loader.path).to(device),
        prediction_type=schedule["prediction_type"],
        latent_shape=shape,
        value_layers={layer.name: unet.get_submodule(layer.name) for layer in checkpoint.value_layers},
        device=device,
        dtype=dtype,
        blank=loader.blank(shape) if inputs != shape[0] else None,
    )


@quiet()
def load_pipeline(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    config: Path | None = None,
    prediction_type: str | None = None,
    text_encoder: tuple[Path, ...] = (),
) -> Any:
    """A diffusers text-to-image pipeline of the checkpoint for drawing pictures, offline.

    It has a DDIM scheduler, no safety checker and no progress bar. The options are `load_model`'s.

    Raises:
        CheckpointError: as `load_model`; also if the file holds no VAE, or an inpainting UNet.
        OptionError: the config folder cannot be used.
    """
    model = load_model(
        checkpoint,
        device=device,
        dtype=dtype,
        config=config,
        prediction_type=prediction_type,
        text_encoder=text_encoder,
    )
    if model.blank is not None:
        raise CheckpointError(f"{checkpoint.path}: an inpainting model draws only into a given picture")
    loader = _Loader(checkpoint, device, dtype, config)
    first, second = model.text_encoders[0], model.text_encoders[-1]
    parts = {
        "vae": loader.vae(),
        "text_encoder": first.model,
        "tokenizer": first.tokenizer,
        "unet": model.unet,
        "scheduler": DDIMScheduler.from_config(model.scheduler_config),
    }
    if len(model.text_encoders) == 2:
        pipeline = StableDiffusionXLPipeline(
            **parts,
            text_encoder_2=second.model,
            tokenizer_2=second.tokenizer,
            # Otherwise a watermark is drawn wherever its package happens to be installed.
            add_watermarker=False,
        )
    else:
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def model_schedule(
    checkpoint: Checkpoint, config: Path | None = None, prediction_type: str | None = None
) -> Config:
    """The noise schedule that `load_model` would give the model; raises as it does, loads nothing."""
    return read_schedule(checkpoint, _configs(checkpoint, config), prediction_type)


def _configs(checkpoint: Checkpoint, config: Path | None) -> Configs:
    return Configs(checkpoint.family, checkpoint.metadata, checkpoint.path, config, checkpoint.configs)


class _Loader:
    """Loads single components of one checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        config: Path | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        self.path = checkpoint.path
        self.configs = _configs(checkpoint, config)

    def _component(
        self,
        name: str,
        tensors: weights.Tensors,
        make: Callable[[Config], nn.Module],
        *,
        path: Path | None = None,
        own: Config | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:
        path = path or self.path
        try:
            config = self.configs.component(name, weights.shapes_of(tensors), own)
        except KeyError as error:
            raise weights.missing(path, f"{name}.{error.args[0]}") from None
        except NotDescribed as error:
            raise CheckpointError(
                f"{path}: its UNet has {error}, which no config of diffusers describes, so it cannot be "
                f"loaded; give a model that diffusers loads"
            ) from None
        model = weights.build(lambda: make(config), path)
        if name == "unet":
            weights.add_biases(model, tensors)
        if name.startswith("text_encoder"):
            # Wrapped in `text_model.` where transformers is older than 5.6, and with a projection.
            wrap = "text_model." if hasattr(model, "text_model") else ""
            tensors = {
                k if k.startswith("text_projection.") else wrap + k: t for k, t in tensors.items()
            }
            used = model.state_dict().keys()
            # Files carry position numbers, a last layer or a projection that is not used.
            tensors = {k: t for k, t in tensors.items() if k in used}
        weights.fill(
            model, tensors, path=path, label=name, device=self.device, dtype=dtype or self.dtype
        )
        return model

    def unet(self) -> Any:
        tensors = weights.read_unet(self.checkpoint)
        unet = self._component("unet", tensors, UNet2DConditionModel.from_config)
        return unet.to(memory_format=memory_format(self.device))

    def vae(self, dtype: torch.dtype | None = None) -> Any:
        if self.checkpoint.is_folder:
            whole = self.checkpoint.layout == "diffusers"
            tensors = weights.read_folder_vae(self.path) if whole else {}
        else:
            tensors = weights.read_vae(self.path, self.checkpoint.wrapper)
        if not tensors:
            raise CheckpointError(f"{self.path}: holds no VAE, which drawing pictures needs")
        return self._component("vae", tensors, AutoencoderKL.from_config, dtype=dtype)

    def text_encoders(self, given: tuple[Path, ...]) -> tuple[TextEncoder, ...]:
        sources = text_sources(self.checkpoint, given)
        return tuple(self._text_encoder(source, n) for n, source in enumerate(sources))

    def _text_encoder(self, source: TextSource, number: int) -> TextEncoder:
        suffix = f"_{number + 1}" if number else ""
        name, tokenizer = f"text_encoder{suffix}", f"tokenizer{suffix}"
        kind = CLIPTextModelWithProjection if number else CLIPTextModel
        model = self._component(
            name,
            source.tensors,
            lambda config: kind(CLIPTextConfig.from_dict(config)),
            path=source.path,
            own=source.config,
        )
        folder = self.configs.tokenizer_folder(tokenizer) or source.tokenizer
        if folder is None:
            return TextEncoder(load_tokenizer(self.configs.tokenizer(tokenizer)["pad_token"]), model)
        own = read_tokenizer(folder)
        if len(own) > model.config.vocab_size:
            raise CheckpointError(
                f"{folder}: knows {len(own)} tokens where the text encoder of {source.path} knows "
                f"{model.config.vocab_size}; give the two that belong together"
            )
        return TextEncoder(own, model)

    @torch.no_grad()
    def blank(self, shape: tuple[int, int, int]) -> Tensor:
        # Many a VAE, SDXL's first of all, overflows in half precision.
        vae = self.vae(torch.float32)
        sides = [side * 2 ** (len(vae.config["block_out_channels"]) - 1) for side in shape[1:]]
        grey = torch.zeros(1, 3, *sides, device=self.device)
        latents = vae.encode(grey).latent_dist.mode() * vae.config["scaling_factor"]
        return torch.cat([torch.ones_like(latents[:, :1]), latents], dim=1)
