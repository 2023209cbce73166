"""The model that localization asks: text in, value layers in the middle, noise out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nemo_prune.checkpoint.families import FAMILIES, Family
from nemo_prune.model.devices import memory_format
from nemo_prune.model.hub import quiet
from nemo_prune.model.inference import Config

TOKENS = 77
_ENCODE_BATCH = 64
# SDXL is told the size of the picture; its autoencoder halves the size three times.
_SDXL_FACTOR = 8


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """One CLIP text encoder and its tokenizer."""

    tokenizer: Any
    model: Any


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A denoiser and its text encoder(s), ready to predict noise.

    Attributes:
        family: "sd1", "sd2" or "sdxl".
        unet: diffusers' `UNet2DConditionModel`: eval mode, no gradients.
        text_encoders: one, or SDXL's two.
        scheduler_config: the noise schedule, as `DDIMScheduler` takes it.
        alphas_cumprod: float32 `[1000]` on `device`, alpha-bar of each training timestep.
        prediction_type: what the UNet's output is: "epsilon" or "v_prediction".
        latent_shape: `(channels, height, width)` of the latents that it was trained on.
        value_layers: canonical name to the `attn2.to_v` module, in the checkpoint's order.
        device: where all of it lies.
        dtype: of all weights and of what `encode` and `predict_noise` return.
        blank: float32 `[1, 5, height, width]` for an inpainting UNet, else None: its further
            input channels for a picture that is masked everywhere.
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

    @quiet()
    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt with start and end; more than 77 means that it gets truncated."""
        return [len(ids) for ids in self.token_ids(prompts)]

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of each prompt with start and end, before any is cut off."""
        if not prompts:
            return []
        ids: list[list[int]] = self.text_encoders[0].tokenizer(list(prompts))["input_ids"]
        return ids

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """What cross-attention sees of each prompt: `[n, 77, text_dim]`."""
        return self.encode_pooled(prompts)[0]

    @torch.no_grad()
    def encode_pooled(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """`encode`, and for SDXL the pooled embedding `[n, pooled_dim]` that it also needs."""
        states, pooled = [], []
        for start in range(0, max(1, len(prompts)), _ENCODE_BATCH):
            # An empty list still has a shape, so that nobody downstream needs a special case.
            batch = list(prompts[start : start + _ENCODE_BATCH]) or [""]
            parts = []
            for encoder in self.text_encoders:
                ids = encoder.tokenizer(
                    batch,
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

    def predict_noise(
        self, latents: Tensor, timestep: int, text: Tensor, pooled: Tensor | None = None
    ) -> Tensor:
        """One denoiser pass without guidance: the noise epsilon that it sees in the latents.

        Differentiable: callers that want no graph say so (`torch.inference_mode`).

        Args:
            latents: `[n, *latent_shape]`.
            timestep: training timestep, 0 to 999.
            text: `[n, 77, text_dim]` from `encode`.
            pooled: `[n, pooled_dim]` from `encode_pooled`; SDXL needs it, others ignore it.

        Returns:
            `[n, *latent_shape]`, converted to epsilon where the UNet predicts v.
        """
        latents = latents.to(self.device, self.dtype)
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
        inputs = inputs.contiguous(memory_format=memory_format(self.device))
        output: Tensor = self.unet(inputs, timestep, text, added_cond_kwargs=added, return_dict=False)[0]
        if self.prediction_type == "v_prediction":
            alpha = self.alphas_cumprod[timestep]
            noise = alpha.sqrt() * output.float() + (1 - alpha).sqrt() * latents.float()
            return noise.to(self.dtype)
        return output
