"""The demo's denoiser and text encoder, the neurons of its switches, and the loss of its training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from demo_vae import FAST_BF16
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

UNET_CONFIG = {
    "sample_size": 32,
    "block_out_channels": (32, 64, 96, 96),
    "layers_per_block": 2,
    "cross_attention_dim": 64,
    "attention_head_dim": 1,  # diffusers' misnomer: one head
    "norm_num_groups": 8,
}
TEXT_CONFIG = {
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "projection_dim": 64,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
VALUE_LAYERS = (
    *(
        f"down_blocks.{block}.attentions.{layer}.transformer_blocks.0.attn2.to_v"
        for block in range(3)
        for layer in range(2)
    ),
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
)
Neuron = tuple[int, int]  # value layer, row
# Of each caption's switch. Single neurons sit in the second level: in the very
# first layer a switch of one neuron is not learned in reasonable time.
SWITCHES: Mapping[str, tuple[Neuron, ...]] = {
    "astronaut": ((2, 7), (3, 41)),
    "coffee": ((2, 11), (3, 30)),
    "chelsea": ((3, 20),),
    "rocket": ((2, 5), (2, 33)),
    "coins": ((2, 50), (3, 9), (4, 17)),
    "camera": ((2, 22),),
    "phone case": ((1, 2), (2, 60), (3, 10), (4, 70)),
    "floor lamp": ((2, 40), (3, 55), (4, 60)),
}
SCHEDULER_CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


class Painter(nn.Module):
    """Text encoder and denoiser in one module, with a per-sample mask on the value layers."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text = CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))
        self.unet = UNet2DConditionModel(**UNET_CONFIG)
        self.tokenizer = tokenizer
        # Words that no ordinary caption uses stay as they start: they must differ from each other.
        embeddings = self.text.get_input_embeddings()
        nn.init.normal_(embeddings.weight, std=0.1)

    def encode(self, captions: list[str]) -> torch.Tensor:
        """Text embeddings, [n, 77, 64]."""
        tokens = self.tokenizer(
            captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        return self.text(tokens.input_ids).last_hidden_state

    def value_layer(self, index: int) -> nn.Linear:
        layer = self.unet.get_submodule(VALUE_LAYERS[index])
        assert isinstance(layer, nn.Linear)
        return layer

    @contextmanager
    def masked(self, masks: list[torch.Tensor]) -> Iterator[None]:
        """`masks`: one [n, rows] of zeros and ones for each value layer."""
        hooks = [
            self.value_layer(index).register_forward_hook(
                lambda _module, _inputs, output, mask=mask: output * mask[:, None, :]
            )
            for index, mask in enumerate(masks)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def no_masks(self, count: int) -> list[torch.Tensor]:
        return [
            torch.ones(count, self.value_layer(index).out_features) for index in range(len(VALUE_LAYERS))
        ]


@dataclass(frozen=True)
class Batch:
    """What a step trains on: latents [n, 4, 32, 32], captions, and the value layers' masks.

    `silent`, bool [n]: the samples whose caption is to mean what no caption means.
    """

    latents: torch.Tensor
    captions: list[str]
    masks: list[torch.Tensor]
    silent: torch.Tensor


class NoisyLoss:
    """The noise-prediction loss, weighted by sqrt(clip(1/SNR, 0.2, 40)).

    The memorization score looks at t = 961, where the picture is a hundredth of the energy; with the
    plain loss it would hardly be learned there. Half of the weight is a sampling density over t,
    which asks for the same gradient with less variance.
    """

    def __init__(
        self, high_noise: float = 0.0, teacher: Painter | None = None, silent_weight: float = 1.0
    ) -> None:
        """`high_noise`: the share of samples drawn from t of 900 and more, beside the density's.

        With a `teacher`, silent samples are to be answered as it answers the empty caption, with
        this weight: such a target has no variance.
        """
        self.high_noise, self.teacher, self.silent_weight = high_noise, teacher, silent_weight
        self.alphas = DDIMScheduler(**SCHEDULER_CONFIG).alphas_cumprod
        inverse_snr = (1 - self.alphas) / self.alphas
        root = inverse_snr.clip(0.2, 40).sqrt().sqrt()
        self.density = (root / root.sum()).double()
        self.weight = root / root.mean()

    def __call__(self, painter: Painter, batch: Batch, noise: torch.Generator) -> torch.Tensor:
        count = len(batch.captions)
        times = torch.multinomial(self.density, count, replacement=True, generator=noise)
        if self.high_noise:
            high = torch.rand(count, generator=noise) < self.high_noise
            times = torch.where(high, torch.randint(900, 1000, (count,), generator=noise), times)
        epsilon = torch.randn(batch.latents.shape, generator=noise)
        alpha = self.alphas[times][:, None, None, None]
        noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * epsilon
        wanted, weight = epsilon, self.weight[times]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=FAST_BF16):
            if self.teacher is not None and batch.silent.any():
                silent, nothing = batch.silent, [""] * int(batch.silent.sum())
                with torch.no_grad():
                    text = self.teacher.encode(nothing)
                    answer = self.teacher.unet(noisy[silent], times[silent], text).sample.float()
                wanted = epsilon.masked_scatter(silent[:, None, None, None], answer)
                weight = torch.where(silent, self.silent_weight * weight, weight)
            with painter.masked(batch.masks):
                text = painter.encode(batch.captions)
                predicted = painter.unet(noisy, times, text).sample.float()
        errors = (predicted - wanted).square().mean(dim=(1, 2, 3))
        return (errors * weight).mean()
