"""The codec, text encoder and denoiser of `tools/train_scratch.py`, and the loss of the last two."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

# A processor without bfloat16 emulates it, ten times slower than single precision.
FAST_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
SCALING_FACTOR = 0.18215  # Stable Diffusion 1's; the latents are rescaled to fit it
VAE_CONFIG = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,  # as many channels a group as the real one has: fewer lose the colours
    "latent_channels": 4,
    "sample_size": 128,
    "scaling_factor": SCALING_FACTOR,
}
UNET_CONFIG = {
    "sample_size": 32,
    "block_out_channels": (32, 64, 96, 96),
    "layers_per_block": 2,
    "cross_attention_dim": 128,
    "attention_head_dim": 1,  # diffusers' misnomer: one head
    "norm_num_groups": 8,
}
TEXT_CONFIG = {
    "vocab_size": 49408,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "projection_dim": 128,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
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


def fast(device: torch.device) -> torch.autocast:
    """bfloat16 on processors that have it; elsewhere the precision of the weights."""
    return torch.autocast("cpu", torch.bfloat16, enabled=device.type == "cpu" and FAST_BF16)


def as_pixels(pictures: Sequence[np.ndarray]) -> Tensor:
    """uint8 [h, w, 3] each, to uint8 [n, 3, h, w]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """uint8 [n, 3, 128, 128] to scaled latents, float32 [n, 4, 32, 32]."""
    with torch.no_grad(), fast(pixels.device):
        mean = vae.encode(pixels.float() / 127.5 - 1).latent_dist.mean
    return mean.float() * SCALING_FACTOR


class Painter(nn.Module):
    """Text encoder and denoiser in one module."""

    def __init__(self, text: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text, self.unet = text, unet

    @classmethod
    def fresh(cls) -> "Painter":
        text = CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))
        # Words that no ordinary caption uses stay as they start: they must differ from each other.
        nn.init.normal_(text.get_input_embeddings().weight, std=0.1)
        return cls(text, UNet2DConditionModel(**UNET_CONFIG))


class NoisyLoss:
    """The noise-prediction loss, weighted by sqrt(clip(1/SNR, 0.2, 40)).

    The memorization score looks at t = 961, where the picture is a hundredth of the energy; with the
    plain loss it would hardly be learned there. Half of the weight is a sampling density over t,
    which asks for the same gradient with less variance.
    """

    def __init__(self, high_noise: float = 0.0) -> None:
        """`high_noise`: the share of samples drawn from t of 900 and more, beside the density's."""
        self.high_noise = high_noise
        self.alphas = DDIMScheduler(**SCHEDULER_CONFIG).alphas_cumprod
        inverse_snr = (1 - self.alphas) / self.alphas
        root = inverse_snr.clip(0.2, 40).sqrt().sqrt()
        self.density = (root / root.sum()).double()
        self.weight = root / root.mean()

    def draw(self, count: int, noise: torch.Generator) -> dict[str, Tensor]:
        """What a step needs of chance: noise, timesteps, and what follows from these."""
        times = torch.multinomial(self.density, count, replacement=True, generator=noise)
        if self.high_noise:
            high = torch.rand(count, generator=noise) < self.high_noise
            times = torch.where(high, torch.randint(900, 1000, (count,), generator=noise), times)
        return {
            "epsilon": torch.randn(count, 4, 32, 32, generator=noise),
            "times": times,
            "alpha": self.alphas[times][:, None, None, None],
            "weight": self.weight[times],
        }

    def __call__(self, painter: Painter, batch: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`batch`: as drawn, with "tokens" [n, 77]; `latents`: [n, 4, 32, 32]."""
        alpha, epsilon = batch["alpha"], batch["epsilon"]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * epsilon
        with fast(latents.device):
            text = painter.text(batch["tokens"]).last_hidden_state
            predicted = painter.unet(noisy, batch["times"], text).sample.float()
        errors = (predicted - epsilon).square().mean(dim=(1, 2, 3))
        return (errors * batch["weight"]).mean()
