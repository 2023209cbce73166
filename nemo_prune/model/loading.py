"""A denoiser with its text encoder out of a checkpoint file, with no network.

Everything that a single file does not hold (configs, CLIP's vocabulary, the noise schedule) is
bundled or inferred; see `configs.py`. This module imports torch, so import it late.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from nemo_prune.checkpoint.checkpoint import channels_from_text
from nemo_prune.checkpoint.foreign import text_in_both
from nemo_prune.checkpoint.holes import refuse_unfit
from nemo_prune.errors import CheckpointError, OptionError, option
from nemo_prune.files.strict_json import read_object
from nemo_prune.model import weights
from nemo_prune.model.configs import Configs, config_file, foreign_code
from nemo_prune.model.denoiser import LoadedModel, TextEncoder, guidance_embedding
from nemo_prune.model.devices import memory_format
from nemo_prune.model.hub import (
    AutoencoderKL,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    DDIMScheduler,
    LCMScheduler,
    PatchEmbed,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    T5Config,
    T5EncoderModel,
    UNet2DConditionModel,
    quiet,
)
from nemo_prune.model.inference import Config, NotDescribed, Shapes
from nemo_prune.model.prediction import measure
from nemo_prune.model.schedule import alphas_cumprod, read_schedule, told_prediction
from nemo_prune.model.settings import (
    Settings,
    contradicted,
    numbered,
    settings_from,
    settings_of,
)
from nemo_prune.model.text_sources import TextSource, text_sources
from nemo_prune.model.tokenizer import load_tokenizer, read_t5_tokenizer, read_tokenizer

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
        CheckpointError: a component or a weight is missing, the file has holes, shapes do not fit, the
            UNet's inputs or outputs are such that no noise difference can be taken, or its output shows
            that it predicts something else than is told.
        OptionError: the config folder cannot be used.
    """
    refuse_unfit(checkpoint)
    loader = _Loader(checkpoint, device, dtype, config)
    if outputs := checkpoint.out_channels:  # before a text encoder is asked for
        loader.check_channels(checkpoint.in_channels, outputs)
    told = told_prediction(checkpoint, loader.configs, prediction_type)
    schedule = read_schedule(checkpoint, loader.configs, prediction_type)
    text_encoders = loader.text_encoders(text_encoder)
    unet = loader.unet()
    width = sum(encoder.model.config.hidden_size for encoder in text_encoders)
    takes = unet.config.get("caption_channels") or unet.config["cross_attention_dim"]
    if takes != width:
        raise CheckpointError(
            f"{loader.path}: its text encoder gives {width} channels where the UNet takes "
            f"{takes}; give the right configs with {option('config')} DIR"
        )
    model = loader.model(unet, text_encoders, schedule)
    prediction = measure(model, told)
    prediction.check(loader.path)
    if prediction.type != model.prediction_type:
        schedule = read_schedule(checkpoint, loader.configs, prediction.type)
        model = loader.model(unet, text_encoders, schedule)
    return replace(model, prediction=prediction)


@quiet()
def load_vae(checkpoint: Checkpoint, device: torch.device, config: Path | None = None) -> Any:
    """The checkpoint's autoencoder alone, in fp32: in half precision some overflow.

    Raises CheckpointError if it holds none, or one of pictures of other than three channels.
    """
    loader = _Loader(checkpoint, device, torch.float32, config)
    return loader.vae(encodes=True)


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

    It has a DDIM scheduler (LCM's where the model has that), no safety checker and no progress bar.
    The options are `load_model`'s.

    Raises:
        CheckpointError: as `load_model`; also if the file holds no VAE that gives pictures of three
            channels, or an inpainting UNet.
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
    return pipeline_of(model, checkpoint, config)


def pipeline_of(model: LoadedModel, checkpoint: Checkpoint, config: Path | None = None) -> Any:
    """`load_pipeline` of a model that was loaded from `checkpoint`, with its denoiser and text encoders.

    A denoiser with further input channels gets them from the pipeline then: `model` itself predicts with
    `blank` None from now on. Raises CheckpointError as `load_pipeline`.
    """
    device, dtype = model.device, model.dtype
    if model.blank is not None and model.blank.shape[1] > model.latent_shape[0]:
        raise CheckpointError(f"{checkpoint.path}: an inpainting model draws only into a given picture")
    loader = _Loader(checkpoint, device, dtype, config)
    first, second = model.text_encoders[0], model.text_encoders[-1]
    distilled = model.scheduler_config.get("_class_name") == "LCMScheduler"
    kind = LCMScheduler if distilled else DDIMScheduler
    if model.blank is not None:
        _draw_from_text_alone(model.unet, model.blank.to(dtype))
    if model.is_transformer:
        pixart = PixArtSigmaPipeline if "Sigma" in loader.model_class else PixArtAlphaPipeline
        whole = pixart(
            tokenizer=first.tokenizer, text_encoder=first.model, vae=loader.vae(),
            transformer=model.unet, scheduler=kind.from_config(model.scheduler_config),
        )  # fmt: skip
        whole.set_progress_bar_config(disable=True)
        return whole
    parts = {
        "vae": loader.vae(),
        "text_encoder": first.model,
        "tokenizer": first.tokenizer,
        "unet": model.unet,
        "scheduler": kind.from_config(model.scheduler_config),
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
    if model.embeds_guidance:
        pipeline.get_guidance_scale_embedding = lambda w, embedding_dim: guidance_embedding(
            pipeline.guidance_scale, len(w), embedding_dim, torch.float32
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _draw_from_text_alone(unet: Any, blank: Tensor) -> None:
    """Let a pipeline use a UNet with further input channels as if it had none: they get `blank`."""

    def filled(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        latents = inputs[0]
        return torch.cat([latents, blank.to(latents).expand(len(latents), -1, -1, -1)], 1), *inputs[1:]

    unet.register_forward_pre_hook(filled)
    unet.register_to_config(in_channels=unet.config["out_channels"])


def model_schedule(
    checkpoint: Checkpoint, config: Path | None = None, prediction_type: str | None = None
) -> Config:
    """The noise schedule that `load_model` would give the model; raises as it does, loads nothing."""
    return read_schedule(checkpoint, _configs(checkpoint, config), prediction_type)


def _configs(checkpoint: Checkpoint, config: Path | None) -> Configs:
    return Configs(checkpoint.family, checkpoint.metadata, checkpoint.path, config, checkpoint.configs)


_COLOURS = 3


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
        self.own: dict[str, Config] = {}  # of components whose config the user's folder replaces
        self.notes: list[str] = []

    def model(self, unet: Any, text_encoders: tuple[TextEncoder, ...], schedule: Config) -> LoadedModel:
        """Put together what was loaded; the size of the latents follows from what it predicts."""
        side = self.configs.sample_size(dict(unet.config), schedule["prediction_type"])
        # A pipeline draws at the size that the UNet's config says.
        unet.register_to_config(sample_size=side)
        inputs = unet.config["in_channels"]
        # PixArt also puts out a variance, in as many channels again.
        transformer = self.checkpoint.record.denoiser == "transformer"
        shape = (inputs if transformer else int(unet.config["out_channels"]), side, side)
        self.check_channels(inputs, shape[0])
        layers = self.checkpoint.value_layers
        loaded = LoadedModel(
            family=self.checkpoint.family,
            unet=unet,
            text_encoders=text_encoders,
            scheduler_config=schedule,
            alphas_cumprod=alphas_cumprod(schedule, self.path).to(self.device),
            prediction_type=schedule["prediction_type"],
            latent_shape=shape,
            value_layers={layer.name: unet.get_submodule(layer.name) for layer in layers},
            device=self.device,
            dtype=self.dtype,
            blank=self.blank(shape, inputs - shape[0]) if inputs != shape[0] else None,
            notes=tuple(self.notes),
        )
        return replace(loaded, own_settings=self._own_settings(loaded))

    def _own_settings(self, model: LoadedModel) -> Settings | None:
        """`settings_of` the model by its own word; None if nothing but a config tells them."""
        if self.configs.folder is None:
            return None if self.checkpoint.is_folder else settings_of(model)
        encoders = [numbered("text_encoder", number) for number in range(len(model.text_encoders))]
        unet, *texts = (self.own.get(name) for name in (self.checkpoint.record.denoiser, *encoders))
        if unet is None or any(text is None for text in texts):
            return None
        kind = T5Config if model.is_transformer else CLIPTextConfig
        return settings_from(model, unet, [kind.from_dict(text).to_dict() for text in texts])

    def check_channels(self, inputs: int, outputs: int) -> None:
        """Raise CheckpointError for a denoiser that draws from more than text, by its channels."""
        if inputs not in channels_from_text(outputs, self._is_pix2pix()):
            raise CheckpointError(
                f"{self.path}: its UNet takes {inputs} channels, so it draws from more than text (a "
                f"picture, a depth map); give a text-to-image or inpainting model, or the diffusers "
                f"folder of an instruct-pix2pix"
            )

    def _is_pix2pix(self) -> bool:
        """Whether a folder says that it is an instruct-pix2pix; others take as many channels."""
        return "InstructPix2Pix" in self.model_class

    @property
    def model_class(self) -> str:
        """The class of the pipeline that a folder says it is, "" if it does not."""
        index = self.path / "model_index.json"
        if not self.checkpoint.is_folder or not index.is_file():
            return ""
        return str(read_object(index).get("_class_name"))

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
        if self.configs.folder is not None:
            self._compare(name, model, config, weights.shapes_of(tensors), own)
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

    def _compare(
        self, name: str, model: nn.Module, config: Config, shapes: Shapes, own: Config | None
    ) -> None:
        """Keep the component's own config beside the user's, and a note where the two contradict."""
        assert self.configs.folder is not None
        alone = _configs(self.checkpoint, None)
        with contextlib.suppress(KeyError, NotDescribed, CheckpointError, OptionError):
            self.own[name] = alone.component(name, shapes, own)
        stated = own or alone.own.get(name) or alone.overrides.get(name, {})
        kind = None if name.startswith("text_encoder") else type(model)
        if name != "vae" and (found := contradicted(kind, stated, config)):
            self.notes.append(
                f"{self.configs.folder / config_file(name)}: contradicts what the model says of itself "
                f"({', '.join(found)}): it is run as {option('config')} says"
            )

    def unet(self) -> Any:
        tensors = weights.read_unet(self.checkpoint)
        if self.checkpoint.record.denoiser == "transformer":
            return self._component("transformer", tensors, self._pixart).to(self.device)
        unet = self._component("unet", tensors, UNet2DConditionModel.from_config)
        if fault := text_in_both(unet.config):
            raise CheckpointError(f"{self.configs.folder or self.path}: {fault}")
        return unet.to(memory_format=memory_format(self.device))

    def _pixart(self, config: Config) -> nn.Module:
        if key := foreign_code("transformer", config):
            raise CheckpointError(
                f"{self.path}: its transformer's {key} is not PixArt's; give a PixArt model"
            )
        model: Any = PixArtTransformer2DModel.from_config(config)
        settings = model.config
        with torch.device("cpu"):  # its table of places is made, not saved
            model.pos_embed = PatchEmbed(
                height=settings["sample_size"], width=settings["sample_size"],
                patch_size=settings["patch_size"], in_channels=settings["in_channels"],
                embed_dim=model.inner_dim, interpolation_scale=(
                    settings["interpolation_scale"] or max(settings["sample_size"] // 64, 1)
                ),
            )  # fmt: skip
        return cast(nn.Module, model)

    def vae(
        self,
        dtype: torch.dtype | None = None,
        without: str = "holds no VAE, which drawing pictures needs",
        *,
        encodes: bool = False,
    ) -> Any:
        """The autoencoder, which decodes to three channels and, if `encodes`, takes three."""
        if self.checkpoint.is_folder:
            whole = self.checkpoint.layout == "diffusers"
            stated = self.configs.own.get("vae", {}).get("_class_name") if whole else None
            if stated is not None and stated != "AutoencoderKL":
                raise CheckpointError(
                    f"{self.path}: its VAE is of the class {stated!a}, and only an AutoencoderKL is "
                    f"drawn with; give a folder that has one"
                )
            tensors = weights.read_folder_vae(self.path) if whole else {}
        else:
            tensors = weights.read_vae(self.path, self.checkpoint.wrapper)
        if not tensors:
            raise CheckpointError(f"{self.path}: {without}")
        vae = self._component("vae", tensors, AutoencoderKL.from_config, dtype=dtype)
        if "LDM3D" in self.model_class and vae.config["out_channels"] == 2 * _COLOURS:
            # The picture, and behind it how far away what it shows is.
            last = vae.decoder.conv_out
            last.weight = nn.Parameter(last.weight[:_COLOURS], requires_grad=False)
            last.bias = nn.Parameter(last.bias[:_COLOURS], requires_grad=False)
            vae.register_to_config(out_channels=_COLOURS)
        used = ("in_channels", "out_channels") if encodes else ("out_channels",)
        if other := next((vae.config[key] for key in used if vae.config[key] != _COLOURS), None):
            raise CheckpointError(
                f"{self.path}: its VAE is one of pictures of {other} channels, and only one of "
                f"{_COLOURS} (red, green, blue) is used; give a model that has one"
            )
        return vae

    def text_encoders(self, given: tuple[Path, ...]) -> tuple[TextEncoder, ...]:
        sources = text_sources(self.checkpoint, given)
        return tuple(self._text_encoder(source, n) for n, source in enumerate(sources))

    def _text_encoder(self, source: TextSource, number: int) -> TextEncoder:
        if self.checkpoint.record.denoiser == "transformer":
            # Overflows in fp16.
            dtype = torch.bfloat16 if self.dtype == torch.float16 else self.dtype
            assert source.tokenizer is not None
            t5 = self._component(
                "text_encoder", source.tensors,
                lambda config: T5EncoderModel(T5Config.from_dict(config)),
                path=source.path, own=source.config, dtype=dtype,
            )  # fmt: skip
            length = 300 if "Sigma" in self.model_class else 120  # of the pipelines of either
            return TextEncoder(read_t5_tokenizer(source.tokenizer), t5, length)
        name, tokenizer = numbered("text_encoder", number), numbered("tokenizer", number)
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
    def blank(self, shape: tuple[int, int, int], channels: int) -> Tensor:
        """The `channels` further inputs of a UNet for no picture, float32 `[1, channels, h, w]`."""
        if channels == shape[0]:  # trained with zeros in place of some pictures
            return torch.zeros(1, *shape, dtype=torch.float32, device=self.device)
        # Many a VAE, SDXL's first of all, overflows in half precision.
        vae = self.vae(
            torch.float32,
            "holds an inpainting UNet and no VAE, which encodes the masked picture that it is scored "
            "with; give the diffusers folder, or the whole checkpoint",
            encodes=True,
        )
        sides = [side * 2 ** (len(vae.config["block_out_channels"]) - 1) for side in shape[1:]]
        grey = torch.zeros(1, 3, *sides, dtype=torch.float32, device=self.device)
        latents = vae.encode(grey).latent_dist.mode() * vae.config["scaling_factor"]
        return torch.cat([torch.ones_like(latents[:, :1]), latents], dim=1)
