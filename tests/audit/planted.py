"""Denoisers that memorize what they are told to, for audits with known answers.

The text embedding's channels draw pictures; two value layers stand between, as in a UNet.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nemo_prune.audit.codec import Codec
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.report.pictures import Picture
from nemo_prune.scoring.engine import Engine
from nemo_prune.scoring.trajectory import scaled

CHANNELS, SIDE, TIMESTEP = 8, 16, 961
Words = Callable[[str], Mapping[int, float]]


class Planted(torch.nn.Module):
    """Knows the clean picture that a text means, and predicts noise accordingly.

    Channel i of the text, through row i of the value layer, means `pictures[i]`. What no picture is
    meant by depends on the noise, so it differs from seed to seed.
    """

    def __init__(self, pictures: Tensor, alphas: Tensor) -> None:
        super().__init__()
        self.pictures, self.alphas = pictures, alphas
        self.value = torch.nn.Linear(CHANNELS, CHANNELS, bias=False)
        torch.nn.init.eye_(self.value.weight)

    def forward(self, inputs: Tensor, timestep: int | Tensor, text: Tensor, **_options: Any) -> Any:
        drive = self.value(text).mean(dim=1)
        alpha = self.alphas[timestep].reshape(-1, 1, 1, 1)
        clean = torch.einsum("nc,cdhw->ndhw", drive, self.pictures)
        clean = clean + 0.6 * inputs.flip(-1)
        return ((inputs - alpha.sqrt() * clean) / (1 - alpha).sqrt(),)


def pictures(shared: Mapping[int, int] = {}) -> Tensor:
    """`[channels, 4, side, side]`, smooth; `shared`: channel -> the channel whose picture it has."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randn(CHANNELS, 4, 4, 4, generator=generator)
    found = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
    for channel, other in shared.items():
        found[channel] = found[other]
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Reading(LoadedModel):
    """A model whose text encoder is a function from words to channels."""

    words: Words = lambda _text: {}

    def encode_pooled(self, prompts: Sequence[str], _tokens: object = None) -> tuple[Tensor, None]:
        found = torch.zeros(len(prompts), 77, CHANNELS)
        for place, text in enumerate(prompts):
            for channel, strength in self.words(text).items():
                found[place, :, channel] = strength
        return found, None


def engine(words: Words, pruned: Sequence[int] = (), shared: Mapping[int, int] = {}) -> Engine:
    """An engine of the planted model; `pruned`: rows of its value layer that are zero."""
    alphas = torch.linspace(0.99, 0.02, 1000)
    unet = Planted(pictures(shared), alphas).eval().requires_grad_(False)
    with torch.no_grad():
        unet.value.weight[list(pruned)] = 0
    model = Reading(
        family="sd1", unet=unet, text_encoders=(), scheduler_config={}, alphas_cumprod=alphas,
        prediction_type="epsilon", latent_shape=(4, SIDE, SIDE), value_layers={"value": unet.value},
        device=torch.device("cpu"), dtype=torch.float32, words=words,
    )  # fmt: skip
    return Engine(model, timestep=TIMESTEP)


class Enlarging(Codec):
    """Pictures are latents' first three channels, enlarged."""

    factor = 8

    def __init__(self) -> None:
        pass

    def encode(self, picture: Picture) -> Tensor:
        small = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX))
        pixels = torch.from_numpy(small.copy()).permute(2, 0, 1) / 127.5 - 1
        return torch.cat([pixels, pixels[:1]])

    def decode(self, latents: Tensor) -> Picture:
        small = (scaled(latents[None])[0, :3] * 255).byte().permute(1, 2, 0).numpy()
        side = SIDE * self.factor
        return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))
