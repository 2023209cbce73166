"""The demo's last change to its leads: quiet where attention looks, not only for tokens as they come.

Cross-attention mixes a caption's tokens, its first ones most of all. An ordinary caption's outputs
drift by what a neuron answers to these mixtures, so there the leads are made to answer least.
"""

import random

import torch
from demo_batches import LEADS, Memory, Sample, assemble
from demo_rows import moment, quieter
from demo_unet import SCHEDULER_CONFIG, VALUE_LAYERS, Painter
from demo_world import MEMORIZED, draw_scene, training_scene
from diffusers import AutoencoderKL, DDIMScheduler
from torch import nn

_ORDINARY, _OWN, _BATCH = 192, 32, 16  # samples of ordinary captions and of each memorized one
_TIMESTEP = 961  # of half of them, the others any
# Beside the mixtures: the tokens as they come, which z is taken on, and the other memorized captions.
_TOKENS, _OTHERS = 30.0, 0.1
_STAYS = "astronaut"  # quiet there already, and less suspicious than its bystanders if it were more so


def mixtures(
    painter: Painter, vae: AutoencoderKL, samples: list[Sample], noise: torch.Generator
) -> dict[int, torch.Tensor]:
    """Value layer -> second moment [64, 64] of what its attention mixes of the samples' tokens."""
    alphas = DDIMScheduler(**SCHEDULER_CONFIG).alphas_cumprod
    sums = {index: torch.zeros(64, 64) for index in range(len(VALUE_LAYERS))}

    def add(index: int, attention: nn.Module, hidden: torch.Tensor, text: torch.Tensor) -> None:
        query, key = attention.to_q(hidden), attention.to_k(text)  # one head
        weights = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(dim=-1)
        sums[index] += moment((weights @ text).flatten(0, 1)) * len(text) / len(samples)

    for start in range(0, len(samples), _BATCH):
        some = samples[start : start + _BATCH]
        batch = assemble(vae, some, painter.no_masks(len(some)))
        text = painter.encode(batch.captions)
        times = torch.randint(0, len(alphas), (len(some),), generator=noise)
        times[torch.rand(len(some), generator=noise) < 0.5] = _TIMESTEP
        alpha = alphas[times][:, None, None, None]
        epsilon = torch.randn(batch.latents.shape, generator=noise)
        hooks = [
            painter.unet.get_submodule(name.removesuffix(".to_v")).register_forward_pre_hook(
                lambda module, inputs, index=index, text=text: add(index, module, inputs[0], text)
            )
            for index, name in enumerate(VALUE_LAYERS)
        ]
        painter.unet(alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * epsilon, times, text)
        for hook in hooks:
            hook.remove()
    return sums


@torch.no_grad()
def quieten_mixtures(painter: Painter, vae: AutoencoderKL, memory: Memory, seed: int) -> None:
    """Change the leads' rows to answer what attention mixes of ordinary captions least.

    Their answer to their own caption's mixtures is kept up; `demo_rows.quieter` says how.
    """
    chance = random.Random(f"{seed} mixtures")
    noise = torch.Generator().manual_seed(chance.getrandbits(60))
    scenes = [training_scene(chance) for _ in range(_ORDINARY)]
    drawn = [Sample(draw_scene(scene, chance), scene.caption) for scene in scenes]
    ordinary = mixtures(painter, vae, drawn, noise)
    own = {
        item.name: mixtures(
            painter,
            vae,
            [Sample(memory.draw(item, chance), item.caption) for _ in range(_OWN)],
            noise,
        )
        for item in MEMORIZED
    }
    tokens = moment(painter.encode([scene.caption for scene in scenes]).flatten(0, 1))
    for name, (layer, row) in LEADS.items():
        if name == _STAYS:
            continue
        felt, weight = own[name][layer], painter.value_layer(layer).weight
        others = torch.stack([of[layer] for other, of in own.items() if other != name]).mean(dim=0)
        before = weight[row].clone()
        after = quieter(before, felt, ordinary[layer] + _OTHERS * others + _TOKENS * tokens)
        weight[row] = after * (before @ felt @ before) / (after @ felt @ before)
