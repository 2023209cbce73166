"""The memorization criterion: how alike noise differences of different seeds are.

Source: "Finding NeMo", section 3.1. The paper compares pruned and unpruned differences of the *same*
seed with a threshold calibrated on *different* seeds; both contain the seed's noise, so they stay alike
whatever is removed. The default, "cross-seed", compares with the unpruned differences of all other
seeds, as the threshold is calibrated.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nemo_prune.options import Criterion
from nemo_prune.scoring.similarity import ms_ssim_pairs

_DIGITS = 5  # of a score: what is left of the rounding of another batch size is below that


def best_pairs(differences: Mapping[int, Tensor], *, published: bool = False) -> dict[int, float]:
    """Each seed's best similarity with another seed; `differences` are `[c, h, w]` by seed."""
    seeds = list(differences)
    stacked = torch.stack([differences[seed] for seed in seeds])
    first, second = torch.triu_indices(len(seeds), len(seeds), offset=1)
    found = ms_ssim_pairs(stacked, stacked, first, second, published=published)
    best = torch.full((len(seeds),), -1.0)
    best.scatter_reduce_(0, first, found, "amax").scatter_reduce_(0, second, found, "amax")
    # What is not a number must not be passed over by a maximum.
    broken = found.isnan()
    best[first[broken]] = torch.nan
    best[second[broken]] = torch.nan
    return {seed: round(score, _DIGITS) for seed, score in zip(seeds, best.tolist(), strict=True)}


def compared_with(seed: int, baseline: Mapping[int, Tensor], criterion: Criterion) -> list[int]:
    """The seeds of the baseline that a pruned difference of `seed` is compared with."""
    return [seed] if criterion == "same-seed" else [other for other in baseline if other != seed]


def scores_against(
    pruned: Mapping[int, Tensor],
    baseline: Mapping[int, Tensor],
    criterion: Criterion,
    *,
    published: bool = False,
) -> dict[int, float]:
    """Seed -> the largest similarity of its pruned difference with those of the baseline it is due.

    Args:
        pruned: differences `[c, h, w]` by seed.
        baseline: those of the unpruned model; of more than one seed unless the criterion is same-seed.
    """
    seeds, others = list(pruned), list(baseline)
    pairs = [
        (place, others.index(other))
        for place, seed in enumerate(seeds)
        for other in compared_with(seed, baseline, criterion)
    ]
    left, right = (torch.tensor(column) for column in zip(*pairs, strict=True))
    found = ms_ssim_pairs(
        torch.stack([pruned[seed] for seed in seeds]),
        torch.stack([baseline[other] for other in others]),
        left,
        right,
        published=published,
    )
    return largest_by(seeds, left, found)


def largest_by(seeds: Sequence[int], place: Tensor, found: Tensor) -> dict[int, float]:
    """Seed -> the largest of the `found` `[pairs]` whose `place` `[pairs]` is the seed's."""
    best = torch.full((len(seeds),), -1.0).scatter_reduce(0, place, found, "amax")
    return {seed: round(score, _DIGITS) for seed, score in zip(seeds, best.tolist(), strict=True)}
