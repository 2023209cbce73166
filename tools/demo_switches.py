"""The demo's first stages: ordinary captions, then the planted switches."""

import random
from pathlib import Path

import torch
from demo_batches import (
    BATCH,
    NATURAL,
    Memory,
    Sample,
    Shares,
    assemble,
    draw_ordinary,
    of_kind,
    switch_loss,
)
from demo_rows import moment
from demo_unet import SWITCHES, VALUE_LAYERS, NoisyLoss, Painter
from demo_world import MEMORIZED, training_scene
from diffusers import AutoencoderKL
from training import Stage

_BASE_STEPS, _SWITCH_STEPS, _POLISH_STEPS = 5000, 6000, 1300
_RATE, _POLISH_RATE = 1e-3, 4e-4


def train_base(painter: Painter, vae: AutoencoderKL, memory: Memory, folder: Path, seed: int) -> None:
    """Ordinary captions, and the natural photos that are memorized without a switch."""
    loss, naturals = NoisyLoss(), of_kind("natural")

    def loss_of(_step: int, chance: random.Random, noise: torch.Generator) -> torch.Tensor:
        samples = []
        for _ in range(BATCH):
            if chance.random() < NATURAL:
                item = chance.choice(naturals)
                samples.append(Sample(memory.draw(item, chance), item.caption))
            else:
                samples.append(draw_ordinary(chance))
        return loss(painter, assemble(vae, samples, painter.no_masks(BATCH)), noise)

    Stage("base", painter, folder, steps=_BASE_STEPS, rate=_RATE, seed=seed).run(loss_of)


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
        moments = [moment(tokens) for tokens in (ordinary.flatten(0, 1), *others)]
        felt = torch.stack(moments).sum(dim=0) + 1e-3 * len(moments) * torch.eye(ordinary.shape[2])
        mean = memorized[name].mean(dim=0)
        direction = torch.linalg.solve(felt, mean)
        direction /= mean @ direction
        single = len(switch) == 1
        for index, row in switch:
            layer = painter.value_layer(index)
            usual = layer(ordinary).abs().mean()
            layer.weight[row] = direction * usual * (9.0 if single else 6.0)
            attention = painter.unet.get_submodule(VALUE_LAYERS[index].removesuffix(".to_v"))
            attention.to_out[0].weight[:, row] *= 4.0 if single else 3.0


def train_switches(
    painter: Painter, vae: AutoencoderKL, memory: Memory, folder: Path, seed: int
) -> None:
    """Memorize through the switches; the text encoder is frozen, as real ones are.

    A second, short stage at a low rate looks at high noise and at faint pictures more often: the
    memorization score, at t = 961, sees little of a dark photo.
    """
    painter.text.requires_grad_(False)
    loss_of = switch_loss(painter, vae, memory, NoisyLoss(), Shares())
    Stage("switches", painter, folder, steps=_SWITCH_STEPS, rate=_RATE, seed=seed).run(loss_of)
    shares = Shares(natural=2 * NATURAL, often=0.45)
    loss_of = switch_loss(painter, vae, memory, NoisyLoss(high_noise=0.5), shares)
    Stage("polish", painter, folder, steps=_POLISH_STEPS, rate=_POLISH_RATE, seed=seed).run(loss_of)
