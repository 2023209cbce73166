"""Whether a caption draws the same picture from every seed, asked of one model alone.

Without the original there is no consensus to compare with. But a caption whose picture comes whatever
the seed is memorized, whatever a score at one early timestep says: short guided trajectories of a few
seeds are compared with each other, and with how alike those of an ordinary caption are to each other.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from nemo_prune.scoring.engine import Engine, Sample
from nemo_prune.scoring.similarity import ms_ssim_pairs
from nemo_prune.scoring.thresholds import gate_from
from nemo_prune.scoring.trajectory import Schedule

SEEDS = range(20_000, 20_004)
ORDINARY = 30
"""Ordinary captions that say how alike a caption's trajectories usually are."""


def consistencies(
    engine: Engine,
    prompts: Sequence[str],
    schedule: Schedule,
    advance: Callable[[int], None] = lambda _count: None,
) -> list[float]:
    """Of each prompt the median similarity of its seeds' trajectories, pair by pair, at most 1.

    Takes as many denoiser samples a prompt as four trajectories have passes.
    """
    found: list[float] = engine.each(
        Consistencies(engine, schedule), prompts, lambda _place, _value: advance(1)
    )
    return found


@dataclass(frozen=True)
class Consistencies:
    """Work: the consistency of each prompt."""

    engine: Engine
    schedule: Schedule

    def __call__(self, prompts: Sequence[str]) -> Iterator[tuple[int, float]]:
        first, second = torch.triu_indices(len(SEEDS), len(SEEDS), offset=1)
        for place, text in enumerate(prompts):
            (prompt,) = self.engine.prompts([text])
            samples = [Sample(prompt, frozenset(), seed) for seed in SEEDS]
            ends = torch.stack(self.engine.trajectories(samples, self.schedule))
            yield place, statistics.median(ms_ssim_pairs(ends, ends, first, second).tolist())


def consistency_gate(ordinary: Sequence[float], fpr: float) -> float:
    """What ordinary prompts' consistencies exceed at the rate `fpr`."""
    return gate_from(ordinary, fpr, 0.0).value
