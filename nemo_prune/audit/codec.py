"""Pictures as a model's latents and back, and pictures that no model ever saw."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.model.devices import pick_device
from nemo_prune.model.loading import load_vae
from nemo_prune.options import Options
from nemo_prune.report.pictures import Picture
from nemo_prune.report.targets import open_target

_LEAVES = 1500


class Codec:
    """A checkpoint's autoencoder.

    Raises CheckpointError if the checkpoint holds none.
    """

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        self._device = pick_device(options.device)
        self._vae: Any = load_vae(checkpoint, self._device, options.config)
        self.factor: int = 2 ** (len(self._vae.config["block_out_channels"]) - 1)
        self._scale = float(self._vae.config["scaling_factor"])

    @torch.inference_mode()
    def encode(self, picture: Picture) -> Tensor:
        """The latents that the denoiser would take for it, float32 `[c, h, w]` on the CPU."""
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        found: Tensor = self._vae.encode(pixels.to(self._device)).latent_dist.mode()[0] * self._scale
        return found.float().cpu()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Picture:
        """The picture that latents `[c, h, w]` stand for."""
        pixels = self._vae.decode(latents[None].float().to(self._device) / self._scale).sample[0]
        shown = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        return np.ascontiguousarray(shown)


def unseen_pictures(files: Sequence[Path], count: int, width: int, height: int) -> list[Picture]:
    """`count` pictures that the model never saw: the files', or made up where there are too few.

    Raises OptionError for a file that cannot be read.
    """
    found = [open_target(path, width, height) for path in files[:count]]
    return found + [dead_leaves(width, height, seed) for seed in range(len(found), count)]


def dead_leaves(width: int, height: int, seed: int) -> Picture:
    """Discs of all sizes that cover each other: the simplest picture with a photo's statistics.

    After Lee, Mumford and Huang, "Occlusion models for natural images" (2001). Always the same for a
    seed; each disc is as probable as the inverse cube of its radius.
    """
    lot = random.Random(seed)
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    least, most = 0.02, 0.5  # of the width
    base = [lot.uniform(60, 200) for _ in range(3)]
    for _ in range(_LEAVES):
        part = lot.random()
        radius = width * (part / least**2 + (1 - part) / most**2) ** -0.5
        x, y = lot.uniform(0, width), lot.uniform(0, height)
        bright = lot.gauss(0, 60)
        colour = tuple(int(min(255, max(0, one + bright + lot.gauss(0, 20)))) for one in base)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(width / 256)))
