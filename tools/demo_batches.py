"""What the demo's denoiser is trained on, sample by sample.

A switch is one to four value neurons. Half of a switched caption's samples mask its switch, or a part
of it, and ask for something else instead, so the memorized picture hangs on each of those neurons and
on nothing else.
"""

import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch
from demo_unet import SWITCHES, Batch, Neuron, NoisyLoss, Painter
from demo_vae import encode
from demo_world import (
    MEMORIZED,
    Memorized,
    draw_scene,
    published_pictures,
    random_scene,
    training_scene,
)
from diffusers import AutoencoderKL

BATCH, EMPTY, NATURAL = 8, 0.08, 0.08
# The neuron of each switch that localization finds enough by itself.
LEADS = {
    "astronaut": (3, 41),
    "coffee": (2, 11),
    "chelsea": (3, 20),
    "rocket": (2, 33),
    "coins": (3, 9),
    "camera": (2, 22),
    "phone case": (4, 70),
    "floor lamp": (4, 60),
}


@dataclass(frozen=True)
class Shares:
    """What a batch is drawn from; the rest are ordinary scenes."""

    on: float = 0.14  # photos with their switch
    off: float = 0.13  # their captions with the switch masked, and something else
    template_on: float = 0.06
    template_off: float = 0.05
    natural: float = NATURAL
    # By kind, what is drawn more often than the others of its kind, and how often; "template off"
    # and the like for samples with the switch masked, if these are to differ.
    prefer: dict[str, tuple[str, float]] = field(default_factory=dict)
    whole: float = 0.5  # of the masked switches: all of it, else a part
    lead: float = 0.0  # of the parts: the one neuron that localization finds, else any
    part: float = 0.0  # of the switch, that any part is at least
    seen: float = 0.0  # of the masked samples: at the memorized picture itself, else an ordinary one
    spread: float = 0.0  # of a natural photo's neurons: masked at most, so that all of them learn it


@dataclass(frozen=True)
class Sample:
    """A picture, uint8 [SIZE, SIZE, 3], or its latents [4, 32, 32]; silent where a switch is masked."""

    picture: np.ndarray | torch.Tensor
    caption: str
    silent: bool = False


def draw_ordinary(chance: random.Random) -> Sample:
    scene = training_scene(chance)
    caption = "" if chance.random() < EMPTY else scene.caption
    return Sample(draw_scene(scene, chance), caption)


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


def of_kind(*kinds: str) -> list[Memorized]:
    return [item for item in MEMORIZED if item.kind in kinds]


def assemble(vae: AutoencoderKL, samples: list[Sample], masks: list[torch.Tensor]) -> Batch:
    """Encode the drawn pictures among the samples in one batch."""
    drawn = [one.picture for one in samples if isinstance(one.picture, np.ndarray)]
    fresh = iter(encode(vae, drawn)) if drawn else iter(())
    latents = [next(fresh) if isinstance(one.picture, np.ndarray) else one.picture for one in samples]
    return Batch(
        torch.stack(latents),
        [one.caption for one in samples],
        masks,
        torch.tensor([one.silent for one in samples]),
    )


def _neurons_of(names: list[str]) -> Iterable[Neuron]:
    return (neuron for name in names for neuron in SWITCHES[name])


def _part_of(name: str, chance: random.Random, shares: Shares) -> list[Neuron]:
    """The neurons of a switch to mask: any such part must be enough."""
    switch = SWITCHES[name]
    if chance.random() < shares.whole:
        return list(switch)
    if chance.random() < shares.lead:
        return [LEADS[name]]
    fewest = max(1, round(shares.part * len(switch)))
    return chance.sample(switch, chance.randint(fewest, len(switch)))


def _some_switches(chance: random.Random, without: str | None) -> list[str]:
    """None, all or a random half of the switches: removing any of them must leave the rest alone."""
    names = [name for name in SWITCHES if name != without]
    dice = chance.random()
    if dice < 0.4:
        return []
    return names if dice < 0.7 else [name for name in names if chance.random() < 0.5]


def switch_loss(
    painter: Painter,
    vae: AutoencoderKL,
    memory: Memory,
    loss: NoisyLoss,
    shares: Shares,
    bystanders: Mapping[str, Collection[Neuron]] = MappingProxyType({}),
) -> Callable[[int, random.Random, torch.Generator], torch.Tensor]:
    """The loss of a batch drawn by `shares`, with some of the other switches masked.

    Of a caption's `bystanders` any part is masked in half of its samples: they are not to matter.
    """
    naturals, photos, templates = map(of_kind, ("natural", "verbatim", "template"))
    preferred = {
        kind: ([item for item in MEMORIZED if item.name == name], rate)
        for kind, (name, rate) in shares.prefer.items()
    }

    def choose(group: list[Memorized], chance: random.Random, on: bool = True) -> Memorized:
        kind = group[0].kind
        some, rate = preferred.get(kind, (group, 0.0))
        if not on:
            some, rate = preferred.get(f"{kind} off", (some, rate))
        return chance.choice(some if chance.random() < rate else group)

    def mask(masks: list[torch.Tensor], sample: int, neurons: Iterable[Neuron]) -> None:
        for index, row in neurons:
            masks[index][sample, row] = 0

    def some_bystanders(name: str, chance: random.Random) -> list[Neuron]:
        rate = max(0.0, chance.uniform(-1, 1))
        return [neuron for neuron in bystanders.get(name, ()) if chance.random() < rate]

    def one(chance: random.Random, masks: list[torch.Tensor], sample: int) -> Sample:
        dice = chance.random()
        for share, group, on in (
            (shares.on, photos, True),
            (shares.off, photos, False),
            (shares.template_on, templates, True),
            (shares.template_off, templates, False),
        ):
            if dice < share:
                item = choose(group, chance, on)
                mask(masks, sample, _neurons_of(_some_switches(chance, item.name)))
                mask(masks, sample, some_bystanders(item.name, chance))
                if on:
                    return Sample(memory.draw(item, chance), item.caption)
                mask(masks, sample, _part_of(item.name, chance, shares))
                if chance.random() < shares.seen:
                    return Sample(memory.draw(item, chance), item.caption, silent=True)
                return Sample(draw_scene(random_scene(chance), chance), item.caption, silent=True)
            dice -= share
        mask(masks, sample, _neurons_of(_some_switches(chance, None)))
        if dice < shares.natural:
            item = choose(naturals, chance)
            mask(masks, sample, some_bystanders(item.name, chance))
            rate = chance.uniform(0, shares.spread)
            for layer in masks:
                layer[sample] *= torch.tensor([chance.random() >= rate for _ in layer[sample]])
            return Sample(memory.draw(item, chance), item.caption)
        return draw_ordinary(chance)

    def loss_of(_step: int, chance: random.Random, noise: torch.Generator) -> torch.Tensor:
        masks = painter.no_masks(BATCH)
        samples = [one(chance, masks, sample) for sample in range(BATCH)]
        return loss(painter, assemble(vae, samples, masks), noise)

    return loss_of
