"""Whether a memorized picture is still drawn: short guided trajectories, on the prompt's own scale.

A score at one early timestep without guidance does not see what later steps restore and guidance
multiplies. Here a few guided DDIM steps are taken from fresh noise, and where they end is compared
with where the unpruned model's end for *other* seeds: a memorized caption's own consensus is the
target, so no training picture is needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_prune.scoring.criterion import largest_by
from nemo_prune.scoring.similarity import ms_ssim_pairs, noise_difference

STEPS, GUIDANCE = 5, 7.0
LEAST_SCALE = 0.1  # of unpruned over unrelated similarity, below which nothing can be told


@dataclass(frozen=True)
class Schedule:
    """DDIM timesteps, falling, and the guidance scale."""

    timesteps: tuple[int, ...]
    guidance: float = GUIDANCE

    @property
    def passes(self) -> int:
        """Denoiser samples that a trajectory takes: with and without the prompt at every step."""
        return 2 * len(self.timesteps)


Ends = dict[tuple[Schedule, tuple[str, ...]], list[Tensor]]
"""Schedule and prompts -> where their trajectories end, latents `[c, h, w]` in [0, 1] each."""


def schedule_from(first: int, steps: int = STEPS, guidance: float = GUIDANCE) -> Schedule:
    """`steps` timesteps, evenly spaced from `first` (981 for SD1's 50 steps) towards 0."""
    return Schedule(tuple(round(first - i * first / steps) for i in range(steps)), guidance)


Predict = Callable[[Tensor, int], Tensor]


def denoise(latents: Tensor, schedule: Schedule, alphas_cumprod: Tensor, predict: Predict) -> Tensor:
    """`clean_latents`, scaled to [0, 1] as differences are."""
    return scaled(clean_latents(latents, schedule, alphas_cumprod, predict))


def scaled(clean: Tensor) -> Tensor:
    """Clean latents `[n, c, h, w]` scaled to [0, 1] as differences are, so that they can be compared."""
    return noise_difference(clean, torch.zeros_like(clean))


def clean_latents(
    latents: Tensor, schedule: Schedule, alphas_cumprod: Tensor, predict: Predict
) -> Tensor:
    """DDIM from `latents` `[n, c, h, w]`: the last predicted x0.

    Args:
        predict: latents, timestep -> noise `[2n, c, h, w]`: without the prompt, then with it.
    """
    x = latents
    clean = x
    for place, timestep in enumerate(schedule.timesteps):
        without, with_prompt = predict(x, timestep).float().chunk(2)
        noise = without + schedule.guidance * (with_prompt - without)
        alpha = alphas_cumprod[timestep]
        clean = (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        if place + 1 < len(schedule.timesteps):
            following = alphas_cumprod[schedule.timesteps[place + 1]]
            x = following.sqrt() * clean + (1 - following).sqrt() * noise
    return clean


@dataclass(frozen=True, eq=False)
class Reference:
    """What a prompt's trajectories are compared with, and its own scale.

    latents: ends of the unpruned model's trajectories, `[c, h, w]` in [0, 1], by seed.
    unpruned: how alike they are to each other. unrelated: how alike ordinary prompts' are to them.
    """

    schedule: Schedule
    by_seed: Mapping[int, Tensor]
    unpruned: float
    unrelated: float

    @property
    def latents(self) -> tuple[Tensor, ...]:
        return tuple(self.by_seed.values())

    @property
    def judged(self) -> bool:
        """Whether the unpruned model's own trajectories agree clearly more than unrelated ones do."""
        return self.unpruned - self.unrelated >= LEAST_SCALE

    def remaining(self, ends: Mapping[int, Tensor]) -> dict[int, float]:
        """Seed -> r: 1 as alike to the consensus as the unpruned model's, 0 as an unrelated picture."""
        seeds, others = list(ends), list(self.by_seed)
        pairs = [(i, j) for i, a in enumerate(seeds) for j, b in enumerate(others) if a != b]
        left, right = (torch.tensor(column, dtype=torch.long) for column in zip(*pairs, strict=True))
        found = ms_ssim_pairs(
            torch.stack([ends[seed] for seed in seeds]), torch.stack(self.latents), left, right
        )
        scale = max(self.unpruned - self.unrelated, 1e-6)
        return {
            seed: round((s - self.unrelated) / scale, 5)
            for seed, s in largest_by(seeds, left, found).items()
        }


def reference_from(
    schedule: Schedule, ends: Mapping[int, Tensor], unrelated: Sequence[Tensor]
) -> Reference:
    """The reference of a prompt from its unpruned trajectories and those of ordinary prompts.

    ends: of at least two seeds. unrelated: one `[c, h, w]` for each of some ordinary prompts.
    """
    stacked = torch.stack(list(ends.values()))
    first, second = torch.triu_indices(len(ends), len(ends), offset=1)
    own = ms_ssim_pairs(stacked, stacked, first, second)
    others = torch.stack(list(unrelated))
    left = torch.arange(len(others), dtype=torch.long).repeat_interleave(len(stacked))
    right = torch.arange(len(stacked), dtype=torch.long).repeat(len(others))
    to_others = ms_ssim_pairs(others, stacked, left, right).reshape(len(others), len(stacked))
    return Reference(schedule, dict(ends), float(own.max()), float(to_others.amax(dim=1).mean()))
