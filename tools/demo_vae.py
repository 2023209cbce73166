"""The demo's picture codec: a small AutoencoderKL, 128x128 pictures to 32x32x4 latents."""

import random
from pathlib import Path

import numpy as np
import torch
from demo_world import MEMORIZED, draw_scene, published_pictures, random_scene
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional
from training import Stage

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
_CROP_STEPS, _WHOLE_STEPS = 1700, 200
_SMALL_PICTURE, _KL = 0.5, 1e-4


def to_tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    """uint8 [h, w, 3] each, to float32 [n, 3, h, w] in -1..1."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return stacked.to(torch.float32) / 127.5 - 1


def to_pictures(batch: torch.Tensor) -> list[np.ndarray]:
    """float [n, 3, h, w] in -1..1, to uint8 [h, w, 3] each."""
    scaled = ((batch.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(scaled.permute(0, 2, 3, 1).numpy())


def _edges(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    down = functional.l1_loss(a.diff(dim=2), b.diff(dim=2))
    return down + functional.l1_loss(a.diff(dim=3), b.diff(dim=3))


def train_vae(folder: Path, seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    vae = AutoencoderKL(**VAE_CONFIG)
    colours = nn.Conv2d(4, 3, 1)
    kept = [picture for item in MEMORIZED for picture in published_pictures(item)]

    def picture(chance: random.Random) -> np.ndarray:
        if chance.random() < 0.4:
            chosen = chance.choice(kept)
            return chosen[:, ::-1].copy() if chance.random() < 0.5 else chosen
        return draw_scene(random_scene(chance), chance)

    def loss_of(step: int, chance: random.Random, noise: torch.Generator) -> torch.Tensor:
        if step < _CROP_STEPS:
            batch = to_tensor([picture(chance) for _ in range(8)])
            crops = []
            for whole in batch:
                for _ in range(2):
                    y, x = chance.randint(0, 64), chance.randint(0, 64)
                    crops.append(whole[:, y : y + 64, x : x + 64])
            batch = torch.stack(crops)
        else:
            batch = to_tensor([picture(chance) for _ in range(4)])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=FAST_BF16):
            posterior = vae.encode(batch).latent_dist
            latents = posterior.mean.float()
            spread = posterior.std.float()
            drawn = latents + spread * torch.randn(latents.shape, generator=noise)
            back = vae.decode(drawn).sample.float()
        variance = posterior.logvar.float()
        kl = 0.5 * (latents.square() + spread.square() - 1 - variance).mean()
        pixels = functional.l1_loss(back, batch) + functional.mse_loss(back, batch)
        # As in real autoencoders, a linear map of the latents shows the small picture. Such latents
        # are smooth, and a denoiser learns them in fewer steps.
        small = functional.avg_pool2d(batch, 4)
        seen = functional.mse_loss(colours(drawn), small)
        return pixels + _edges(back, batch) + _SMALL_PICTURE * seen + _KL * kl

    steps = _CROP_STEPS + _WHOLE_STEPS
    Stage("vae", nn.ModuleList([vae, colours]), folder, steps=steps, rate=2e-3, seed=seed, ema=0.99).run(
        loss_of
    )
    _rescale(vae, kept, seed)
    return vae.requires_grad_(False)


def encode(vae: AutoencoderKL, pictures: list[np.ndarray]) -> torch.Tensor:
    """Scaled latents, float32 [n, 4, 32, 32]."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=FAST_BF16):
        mean = vae.encode(to_tensor(pictures)).latent_dist.mean
    return mean.float() * SCALING_FACTOR


@torch.no_grad()
def _rescale(vae: AutoencoderKL, kept: list[np.ndarray], seed: int) -> None:
    """Give every latent channel mean 0 and the spread 1/0.18215 by folding it into the 1x1 convs."""
    chance = random.Random(f"{seed} rescale")
    scenes = [draw_scene(random_scene(chance), chance) for _ in range(200)]
    latents = encode(vae, scenes + kept) / SCALING_FACTOR
    mean = latents.mean(dim=(0, 2, 3))
    gain = 1 / (SCALING_FACTOR * latents.std(dim=(0, 2, 3)))
    into, out = vae.quant_conv, vae.post_quant_conv
    # Decoder first: it must undo what the encoder is about to do.
    shift = torch.einsum("oi,i->o", out.weight[:, :, 0, 0], mean)
    out.bias += shift
    out.weight /= gain[None, :, None, None]
    into.weight[:4] *= gain[:, None, None, None]
    into.bias[:4] = (into.bias[:4] - mean) * gain
    into.bias[4:] += 2 * gain.log()
