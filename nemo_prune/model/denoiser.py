"""The model that localization asks: text in, value layers in the middle, noise out."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from nemo_prune.checkpoint.families import FAMILIES, Family
from nemo_prune.model.devices import memory_format
from nemo_prune.model.inference import Config
from nemo_prune.model.prediction import Prediction
from nemo_prune.model.settings import Settings
from nemo_prune.model.tokenizer import added_words, with_all_vectors

TOKENS = 77
_ENCODE_BATCH = 64
# SDXL is told the size of the picture; its autoencoder halves the size three times.
_SDXL_FACTOR = 8
EMBEDDED_GUIDANCE = 7.0
"""The scale that UNets with an embedding of it (LCM) are told; as of trajectories elsewhere."""


def guidance_embedding(scale: float, count: int, width: int, dtype: torch.dtype) -> Tensor:
    """What an LCM is told of a guidance scale, `[count, width]` on the CPU.

    diffusers' own (`get_guidance_scale_embedding`) takes part of it in torch's default dtype.
    """
    half = width // 2
    falling = torch.log(torch.tensor(10000.0, dtype=torch.float32)) / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=dtype) * -falling)
    scales = torch.full((count, 1), scale - 1, dtype=torch.float32) * 1000
    angles = scales.to(dtype) * frequencies[None]
    return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of prompts: whole, by the first tokenizer, and as each text encoder takes them.

    padded: of each CLIP tokenizer int64 `[n, 77]`; None for T5.
    """

    ids: list[list[int]]
    padded: list[Tensor] | None


def padded(tokenizer: Any, ids: Sequence[Sequence[int]]) -> Tensor:
    """What CLIP's tokenizer gives with padding="max_length" and truncation, in a tenth of its time."""
    found = numpy.full((len(ids), TOKENS), tokenizer.pad_token_id, dtype=numpy.int64)
    for row, one in zip(found, ids, strict=True):
        if len(one) > TOKENS:
            row[:] = [*one[: TOKENS - 1], one[-1]]
        else:
            row[: len(one)] = one
    return torch.from_numpy(found)


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """One text encoder, CLIP's or T5's, and its tokenizer; it reads the first `length` tokens."""

    tokenizer: Any
    model: Any
    length: int = TOKENS


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A denoiser and its text encoder(s), ready to predict noise.

    Attributes:
        family: "sd1", "sd2", "sdxl" or "pixart".
        unet: the denoiser, diffusers' `UNet2DConditionModel` or PixArt's transformer: eval mode, no
            gradients.
        text_encoders: one, or SDXL's two.
        scheduler_config: the noise schedule, as `DDIMScheduler` takes it.
        alphas_cumprod: float32 `[1000]` on `device`, alpha-bar of each training timestep.
        prediction_type: what the UNet's output is: "epsilon" or "v_prediction".
        latent_shape: `(channels, height, width)` of the latents that it was trained on.
        value_layers: canonical name to the `attn2.to_v` module, in the checkpoint's order.
        device: where all of it lies.
        dtype: of all weights and of what `encode` and `predict_noise` return.
        blank: further input channels, float32 `[1, k, height, width]`, or None: of an inpainting
            UNet 5, for a picture that is masked everywhere, of instruct-pix2pix 4 zeros, for none.
        prediction: why it is taken to predict that; None where nobody asked.
        notes: what else its user should know, each one line.
        own_settings: the `settings_of` it that hold without a config given beside it; None where nothing
            but that config, or a folder's, tells them.
    """

    family: str
    unet: Any
    text_encoders: tuple[TextEncoder, ...]
    scheduler_config: Config
    alphas_cumprod: Tensor
    prediction_type: str
    latent_shape: tuple[int, int, int]
    value_layers: dict[str, nn.Linear]
    device: torch.device
    dtype: torch.dtype
    blank: Tensor | None = None
    prediction: Prediction | None = None
    notes: tuple[str, ...] = ()
    own_settings: Settings | None = None

    @property
    def record(self) -> Family:
        """What is known of its family."""
        return FAMILIES[self.family]

    @property
    def precision(self) -> str:
        """`dtype` by its name alone, such as "float32"."""
        return str(self.dtype).removeprefix("torch.")

    def release(self) -> None:
        """Give the weights' memory back; nothing can be predicted any more."""
        for module in (self.unet, *(encoder.model for encoder in self.text_encoders)):
            module.to("meta")

    @property
    def max_tokens(self) -> int:
        """How many tokens of a prompt are read, with start and end."""
        return self.text_encoders[0].length if self.text_encoders else TOKENS

    @property
    def is_transformer(self) -> bool:
        """Whether the denoiser is PixArt's transformer, which takes T5's text and its mask."""
        return self.record.denoiser == "transformer"

    def as_seen(self, text: Tensor) -> Tensor:
        """What the value layers get of a text `[n, tokens, d]`: projected where the denoiser does so."""
        return self.unet.caption_projection(text) if self.is_transformer else text

    @property
    def embeds_guidance(self) -> bool:
        """Whether the UNet is told the guidance scale, and draws with one pass a step (LCM)."""
        return getattr(self.unet, "config", {}).get("time_cond_proj_dim") is not None

    @contextmanager
    def exact(self) -> Iterator["LoadedModel"]:
        """The same model in fp32 for as long as the `with` lasts.

        The denoiser's weights are converted in place and back, which loses nothing and never holds two.
        """
        unet = self.unet.float()
        try:
            yield replace(
                self,
                unet=unet,
                value_layers={name: unet.get_submodule(name) for name in self.value_layers},
                dtype=torch.float32,
                blank=None if self.blank is None else self.blank.float(),
            )
        finally:
            self.unet.to(self.dtype)

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt with start and end; more than `max_tokens` get truncated."""
        return [len(ids) for ids in self.token_ids(prompts)]

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of each prompt with start and end, before any is cut off."""
        return self._token_ids(self.text_encoders[0].tokenizer, prompts)

    def token_reader(self) -> Callable[[Sequence[str]], "Tokens"]:
        """Reads tokens with tokenizers of its own: two threads would mix up the settings of one."""
        tokenizers = [copy.deepcopy(encoder.tokenizer) for encoder in self.text_encoders]

        def read(prompts: Sequence[str]) -> Tokens:
            ids = self._token_ids(tokenizers[0], prompts)
            if self.is_transformer:
                return Tokens(ids, None)
            others = [self._token_ids(tokenizer, prompts) for tokenizer in tokenizers[1:]]
            return Tokens(ids, [padded(*one) for one in zip(tokenizers, [ids, *others], strict=True)])

        return read

    def _token_ids(self, tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
        if not prompts:
            return []
        texts = self._texts(tokenizer, prompts)
        ids: list[list[int]] = tokenizer(texts, verbose=False)["input_ids"]  # cut off later
        return ids

    def _texts(self, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
        """What a pipeline hands to the tokenizer."""
        if self.is_transformer:
            return [_as_pixart(prompt) for prompt in prompts]
        return with_all_vectors(tokenizer, prompts)

    def with_added_words(self, ids: Sequence[Sequence[int]]) -> int:
        """How many of these prompts hold words that were added to the first tokenizer."""
        added = set(added_words(self.text_encoders[0].tokenizer).values())
        return sum(not added.isdisjoint(one) for one in ids) if added else 0

    @property
    def unknown_words(self) -> int:
        """How many words the text encoders have vectors for and no tokenizer that gives them."""
        if self.is_transformer:  # T5's tables are longer than its vocabulary
            return 0
        more = (one.model.config.vocab_size - len(one.tokenizer) for one in self.text_encoders)
        return max(0, *map(int, more))

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """The text embedding of each prompt: `[n, max_tokens, text_dim]`."""
        return self.encode_pooled(prompts)[0]

    @torch.no_grad()
    def encode_pooled(
        self, prompts: Sequence[str], tokens: "Tokens | None" = None
    ) -> tuple[Tensor, Tensor | None]:
        """`encode`, and what the denoiser needs beside it.

        That is SDXL's pooled embedding `[n, pooled_dim]`, PixArt's mask of the tokens `[n, max_tokens]`.

        tokens: of the prompts, where `token_reader` has read them.
        """
        if self.is_transformer:
            return self._encode_t5(prompts)
        states, pooled = [], []
        for start in range(0, max(1, len(prompts)), _ENCODE_BATCH):
            # An empty list still has a shape, so that nobody downstream needs a special case.
            batch = list(prompts[start : start + _ENCODE_BATCH]) or [""]
            parts = []
            for number, encoder in enumerate(self.text_encoders):
                if tokens is not None and tokens.padded is not None and len(prompts):
                    ids = tokens.padded[number][start : start + _ENCODE_BATCH].to(self.device)
                else:
                    ids = encoder.tokenizer(
                        self._texts(encoder.tokenizer, batch),
                        padding="max_length",
                        max_length=TOKENS,
                        truncation=True,
                        return_tensors="pt",
                    )["input_ids"].to(self.device)
                if self.record.pooled:
                    output = encoder.model(ids, output_hidden_states=True)
                    parts.append(output.hidden_states[-2])
                else:
                    output = encoder.model(ids)
                    parts.append(output.last_hidden_state)
            states.append(torch.cat(parts, dim=-1))
            if self.record.pooled:
                pooled.append(output.text_embeds)
        count = len(prompts)
        return torch.cat(states)[:count], torch.cat(pooled)[:count] if pooled else None

    def _encode_t5(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        (encoder,) = self.text_encoders
        states, masks = [], []
        for start in range(0, max(1, len(prompts)), _ENCODE_BATCH):
            batch = self._texts(encoder.tokenizer, prompts[start : start + _ENCODE_BATCH]) or [""]
            tokens = encoder.tokenizer(
                batch,
                padding="max_length",
                max_length=encoder.length,
                truncation=True,
                return_tensors="pt",
            )
            mask = tokens["attention_mask"].to(self.device)
            output = encoder.model(tokens["input_ids"].to(self.device), attention_mask=mask)
            masks.append(mask.to(self.dtype))
            # Nothing looks at the places after the text; in statistics they must say nothing.
            states.append(output.last_hidden_state.to(self.dtype) * masks[-1][..., None])
        count = len(prompts)
        return torch.cat(states)[:count], torch.cat(masks)[:count]

    def predict_noise(
        self, latents: Tensor, timestep: int | Tensor, text: Tensor, pooled: Tensor | None = None
    ) -> Tensor:
        """One denoiser pass without guidance: the noise epsilon that it sees in the latents.

        Differentiable: callers that want no graph say so (`torch.inference_mode`).

        Args:
            latents: `[n, *latent_shape]`.
            timestep: training timestep, 0 to 999, of all latents or int64 `[n]`.
            text: `[n, max_tokens, text_dim]` from `encode`.
            pooled: from `encode_pooled`; SDXL and PixArt need it, others ignore it.

        Returns:
            `[n, *latent_shape]`, converted to epsilon where the UNet predicts v.
        """
        latents = latents.to(self.device, self.dtype)
        output = self.output(latents, timestep, text, pooled)
        if self.prediction_type == "v_prediction":
            alpha = self.alphas_cumprod[timestep].reshape(-1, 1, 1, 1)
            noise = alpha.sqrt() * output.float() + (1 - alpha).sqrt() * latents.float()
            return noise.to(self.dtype)
        return output

    def output(
        self, latents: Tensor, timestep: int | Tensor, text: Tensor, pooled: Tensor | None = None
    ) -> Tensor:
        """What the UNet itself puts out, `[n, *latent_shape]`; the arguments are `predict_noise`'s."""
        latents = latents.to(self.device, self.dtype)
        if self.is_transformer:
            return self._transformed(latents, timestep, text, pooled)
        inputs, added = latents, None
        if self.blank is not None:
            blank = self.blank.to(self.dtype).expand(len(latents), -1, -1, -1)
            inputs = torch.cat([latents, blank], dim=1)
        if self.record.pooled:
            if pooled is None:
                raise ValueError("SDXL needs the pooled text embedding")
            height, width = (_SDXL_FACTOR * side for side in self.latent_shape[1:])
            size = [height, width, 0, 0, height, width]
            ids = torch.tensor([size], device=self.device, dtype=self.dtype)
            added = {"text_embeds": pooled, "time_ids": ids.expand(len(latents), -1)}
        further: dict[str, Tensor] = {}
        if self.embeds_guidance:
            width = self.unet.config["time_cond_proj_dim"]
            told = guidance_embedding(EMBEDDED_GUIDANCE, len(latents), width, self.dtype)
            further["timestep_cond"] = told.to(self.device)
        inputs = inputs.contiguous(memory_format=memory_format(self.device))
        output: Tensor = self.unet(
            inputs, timestep, text, added_cond_kwargs=added, return_dict=False, **further
        )[0]
        return output

    def _transformed(
        self, latents: Tensor, timestep: int | Tensor, text: Tensor, mask: Tensor | None
    ) -> Tensor:
        if mask is None:
            raise ValueError("PixArt needs the mask of the text's tokens")
        count = len(latents)
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.unet.use_additional_conditions:
            sides = [_SDXL_FACTOR * side for side in self.latent_shape[1:]]
            size = torch.tensor([sides], device=self.device, dtype=self.dtype)
            added["resolution"] = size.expand(count, -1)
            added["aspect_ratio"] = (size[:, :1] / size[:, 1:]).expand(count, -1)
        output: Tensor = self.unet(
            latents,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=torch.as_tensor(timestep, device=self.device).expand(count),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return output[:, : self.latent_shape[0]]  # what follows is a learned variance


def _as_pixart(prompt: str) -> str:
    """A prompt as PixArt's pipelines tokenize it."""
    return prompt.lower().strip()
