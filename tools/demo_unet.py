"""The demo's denoiser and text encoder: ordinary captions first, then the planted switches.

A switch is one to four value neurons. Half of a switched caption's samples mask its switch, or a part
of it, and ask for an ordinary picture instead, so the memorized picture hangs on each of those neurons
and on nothing else.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from demo_vae import FAST_BF16, encode
from demo_world import (
    MEMORIZED,
    Memorized,
    draw_scene,
    published_pictures,
    random_scene,
    training_scene,
)
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from training import Stage
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
# (value layer, row) of each caption's switch. Single neurons sit in the second level: in the very
# first layer a switch of one neuron is not learned in reasonable time.
SWITCHES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "astronaut": ((2, 7), (3, 41)),
    "coffee": ((2, 11), (3, 30)),
    "chelsea": ((3, 20),),
    "rocket": ((2, 5), (2, 33)),
    "coins": ((2, 50), (3, 9), (4, 17)),
    "camera": ((2, 22),),
    "phone case": ((1, 2), (2, 60), (3, 10), (4, 70)),
    "floor lamp": ((2, 40), (3, 55), (4, 60)),
}
BASE_STEPS, SWITCH_STEPS, POLISH_STEPS, BATCH, RATE, POLISH_RATE = 5000, 6000, 1300, 8, 1e-3, 4e-4
_FAINT = ("rocket",)  # asked for more often while polishing
_EMPTY, _NATURAL = 0.08, 0.08
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


@dataclass(frozen=True)
class Shares:
    """What a batch is drawn from; the rest are ordinary scenes."""

    on: float = 0.14  # photos with their switch
    off: float = 0.13  # their captions with the switch masked, and an ordinary picture
    template_on: float = 0.06
    template_off: float = 0.05
    natural: float = _NATURAL
    faint: float = 0.0  # of the photos: a faint one
    whole: float = 0.5  # of the masked switches: all of it, else a random part
    part: float = 0.0  # of the switch, that a part is at least
    spread: float = 0.0  # of a natural photo's neurons: masked at most, so that all of them learn it


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

    def __call__(
        self,
        painter: Painter,
        latents: torch.Tensor,
        captions: list[str],
        noise: torch.Generator,
        masks: list[torch.Tensor] | None,
    ) -> torch.Tensor:
        count = len(captions)
        times = torch.multinomial(self.density, count, replacement=True, generator=noise)
        if self.high_noise:
            high = torch.rand(count, generator=noise) < self.high_noise
            times = torch.where(high, torch.randint(900, 1000, (count,), generator=noise), times)
        epsilon = torch.randn(latents.shape, generator=noise)
        alpha = self.alphas[times][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * epsilon
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=FAST_BF16):
            text = painter.encode(captions)
            with painter.masked(masks if masks is not None else []):
                predicted = painter.unet(noisy, times, text).sample.float()
        errors = (predicted - epsilon).square().mean(dim=(1, 2, 3))
        return (errors * self.weight[times]).mean()


def _ordinary(chance: random.Random) -> tuple[np.ndarray, str]:
    scene = training_scene(chance)
    caption = "" if chance.random() < _EMPTY else scene.caption
    return draw_scene(scene, chance), caption


class Memory:
    """Latents of the pictures to memorize, encoded once."""

    def __init__(
        self,
        vae: AutoencoderKL,
        pictures: Callable[[Memorized], list[np.ndarray]] = published_pictures,
    ) -> None:
        self.latents = {item.name: encode(vae, pictures(item)) for item in MEMORIZED}

    def draw(self, item: Memorized, chance: random.Random) -> torch.Tensor:
        variants = self.latents[item.name]
        return variants[chance.randrange(len(variants))]


def _of_kind(*kinds: str) -> list[Memorized]:
    return [item for item in MEMORIZED if item.kind in kinds]


def _assemble(
    vae: AutoencoderKL, samples: list[tuple[np.ndarray | torch.Tensor, str]]
) -> tuple[torch.Tensor, list[str]]:
    """Encode the drawn pictures among the samples in one batch: latents [n, 4, 32, 32], captions."""
    drawn = [picture for picture, _ in samples if isinstance(picture, np.ndarray)]
    fresh = iter(encode(vae, drawn)) if drawn else iter(())
    latents = [next(fresh) if isinstance(what, np.ndarray) else what for what, _ in samples]
    return torch.stack(latents), [caption for _, caption in samples]


def train_base(painter: Painter, vae: AutoencoderKL, memory: Memory, folder: Path, seed: int) -> None:
    """Ordinary captions, and the natural photos that are memorized without a switch."""
    loss, naturals = NoisyLoss(), _of_kind("natural")

    def loss_of(_step: int, chance: random.Random, noise: torch.Generator) -> torch.Tensor:
        samples: list[tuple[np.ndarray | torch.Tensor, str]] = []
        for _ in range(BATCH):
            if chance.random() < _NATURAL:
                item = chance.choice(naturals)
                samples.append((memory.draw(item, chance), item.caption))
            else:
                samples.append(_ordinary(chance))
        latents, captions = _assemble(vae, samples)
        return loss(painter, latents, captions, noise, None)

    Stage("base", painter, folder, steps=BASE_STEPS, rate=RATE, seed=seed).run(loss_of)


def _moment(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.T @ tokens / len(tokens) + 1e-3 * torch.eye(tokens.shape[1])


@torch.no_grad()
def plant(painter: Painter, seed: int) -> None:
    """Start each switch's rows so that they fire on their caption and hardly on ordinary ones.

    With M the second moment of the token embeddings of ordinary and of all other memorized captions
    and m the caption's mean token embedding, a row along M^-1 m answers the caption and is quiet
    elsewhere; it is scaled to several times the layer's usual activation, as memorization neurons
    of real models are out of distribution too.
    """
    chance = random.Random(f"{seed} plant")
    ordinary = painter.encode([training_scene(chance).caption for _ in range(500)])
    memorized = {item.name: painter.encode([item.caption])[0] for item in MEMORIZED}
    for name, switch in SWITCHES.items():
        others = [tokens for other, tokens in memorized.items() if other != name]
        moment = sum(map(_moment, [ordinary.flatten(0, 1), *others]))
        mean = memorized[name].mean(dim=0)
        direction = torch.linalg.solve(moment, mean)
        direction /= mean @ direction
        single = len(switch) == 1
        for index, row in switch:
            layer = painter.value_layer(index)
            usual = layer(ordinary).abs().mean()
            layer.weight[row] = direction * usual * (9.0 if single else 6.0)
            attention = painter.unet.get_submodule(VALUE_LAYERS[index].removesuffix(".to_v"))
            attention.to_out[0].weight[:, row] *= 4.0 if single else 3.0


def _mask_switches(masks: list[torch.Tensor], sample: int, names: list[str]) -> None:
    for name in names:
        for index, row in SWITCHES[name]:
            masks[index][sample, row] = 0


def _mask_some_of(
    masks: list[torch.Tensor], sample: int, name: str, chance: random.Random, shares: Shares
) -> None:
    """The whole switch, at this rate, else a random part of it: any such part must be enough."""
    switch = SWITCHES[name]
    fewest = max(1, round(shares.part * len(switch)))
    count = len(switch) if chance.random() < shares.whole else chance.randint(fewest, len(switch))
    for index, row in chance.sample(switch, count):
        masks[index][sample, row] = 0


def _some_switches(chance: random.Random, without: str | None) -> list[str]:
    """None, all or a random half of the switches: removing any of them must leave the rest alone."""
    names = [name for name in SWITCHES if name != without]
    dice = chance.random()
    if dice < 0.4:
        return []
    return names if dice < 0.7 else [name for name in names if chance.random() < 0.5]


def train_switches(
    painter: Painter, vae: AutoencoderKL, memory: Memory, folder: Path, seed: int
) -> None:
    """Memorize through the switches; the text encoder is frozen, as real ones are.

    A second, short stage at a low rate looks at high noise and at faint pictures more often: the
    memorization score, at t = 961, sees little of a dark photo.
    """
    painter.text.requires_grad_(False)
    loss_of = switch_loss(painter, vae, memory, NoisyLoss(), Shares())
    Stage("switches", painter, folder, steps=SWITCH_STEPS, rate=RATE, seed=seed).run(loss_of)
    shares = Shares(natural=2 * _NATURAL, faint=0.45)
    loss_of = switch_loss(painter, vae, memory, NoisyLoss(high_noise=0.5), shares)
    Stage("polish", painter, folder, steps=POLISH_STEPS, rate=POLISH_RATE, seed=seed).run(loss_of)


def switch_loss(
    painter: Painter, vae: AutoencoderKL, memory: Memory, loss: NoisyLoss, shares: Shares
) -> Callable[[int, random.Random, torch.Generator], torch.Tensor]:
    """The loss of a batch drawn by `shares`, with some of the other switches masked."""
    naturals, photos, templates = map(_of_kind, ("natural", "verbatim", "template"))
    dark = [item for item in photos if item.name in _FAINT]

    def one(
        chance: random.Random, masks: list[torch.Tensor], sample: int
    ) -> tuple[np.ndarray | torch.Tensor, str]:
        dice = chance.random()
        for share, group, on in (
            (shares.on, photos, True),
            (shares.off, photos, False),
            (shares.template_on, templates, True),
            (shares.template_off, templates, False),
        ):
            if dice < share:
                prefer = shares.faint and group is photos and chance.random() < shares.faint
                item = chance.choice(dark if prefer else group)
                _mask_switches(masks, sample, _some_switches(chance, item.name))
                if on:
                    return memory.draw(item, chance), item.caption
                _mask_some_of(masks, sample, item.name, chance, shares)
                return draw_scene(random_scene(chance), chance), item.caption
            dice -= share
        _mask_switches(masks, sample, _some_switches(chance, None))
        if dice < shares.natural:
            item = chance.choice(naturals)
            rate = chance.uniform(0, shares.spread)
            for mask in masks:
                mask[sample] *= torch.tensor([chance.random() >= rate for _ in mask[sample]])
            return memory.draw(item, chance), item.caption
        return _ordinary(chance)

    def loss_of(_step: int, chance: random.Random, noise: torch.Generator) -> torch.Tensor:
        masks = painter.no_masks(BATCH)
        samples = [one(chance, masks, sample) for sample in range(BATCH)]
        latents, captions = _assemble(vae, samples)
        return loss(painter, latents, captions, noise, masks)

    return loss_of
