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
    return best_pairs_of_each([differences], published=published)[0]


def best_pairs_of_each(
    prompts: Sequence[Mapping[int, Tensor]], *, published: bool = False
) -> list[dict[int, float]]:
    """`best_pairs` of many prompts at once: on a GPU that takes little longer than of one."""
    pairs: list[tuple[int, int]] = []
    groups: list[int] = []
    places: list[dict[int, int]] = []
    start = 0
    for group, differences in enumerate(prompts):
        seeds = list(differences)
        places.append({seed: start + i for i, seed in enumerate(seeds)})
        for i in range(len(seeds)):
            pairs += [(start + i, start + j) for j in range(i + 1, len(seeds))]
        groups += [group] * (len(pairs) - len(groups))
        start += len(seeds)
    stacked = torch.stack([one for differences in prompts for one in differences.values()])
    found = _similarities(stacked, stacked, pairs, groups, published)
    best = _largest([(place, score) for pair, score in zip(pairs, found, strict=True) for place in pair])
    return [{seed: best.get(place, -1.0) for seed, place in one.items()} for one in places]


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
    return scores_of_each([(pruned, baseline)], criterion, published=published)[0]


def scores_of_each(
    asked: Sequence[tuple[Mapping[int, Tensor], Mapping[int, Tensor]]],
    criterion: Criterion,
    *,
    published: bool = False,
) -> list[dict[int, float]]:
    """`scores_against` of many (pruned, baseline) at once; see `best_pairs_of_each`."""
    pairs: list[tuple[int, int]] = []
    groups: list[int] = []
    places: list[dict[int, int]] = []
    start = behind = 0
    for group, (pruned, baseline) in enumerate(asked):
        known = {other: behind + i for i, other in enumerate(baseline)}
        places.append({seed: start + i for i, seed in enumerate(pruned)})
        for seed, place in places[-1].items():
            pairs += [(place, known[other]) for other in compared_with(seed, baseline, criterion)]
        groups += [group] * (len(pairs) - len(groups))
        start, behind = start + len(pruned), behind + len(baseline)
    found = _similarities(
        torch.stack([one for pruned, _ in asked for one in pruned.values()]),
        torch.stack([one for _, baseline in asked for one in baseline.values()]),
        pairs, groups, published,
    )  # fmt: skip
    best = _largest([(place, score) for (place, _), score in zip(pairs, found, strict=True)])
    return [{seed: best.get(place, -1.0) for seed, place in one.items()} for one in places]


def _similarities(
    a: Tensor, b: Tensor, pairs: Sequence[tuple[int, int]], groups: Sequence[int], published: bool
) -> list[float]:
    left, right = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    found: list[float] = ms_ssim_pairs(
        a, b, left, right, published=published, groups=torch.tensor(groups, dtype=torch.long)
    ).tolist()
    return found


def _largest(scores: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Place -> the largest of its scores, rounded; NaN if one is: a maximum must not pass it over."""
    best: dict[int, float] = {}
    for place, score in scores:
        if place not in best or score > best[place] or score != score:
            best[place] = score
    return {place: round(score, _DIGITS) for place, score in best.items()}


def largest_by(seeds: Sequence[int], place: Tensor, found: Tensor) -> dict[int, float]:
    """Seed -> the largest of the `found` `[pairs]` whose `place` `[pairs]` is the seed's."""
    best = torch.full((len(seeds),), -1.0, dtype=torch.float32)
    best = best.scatter_reduce(0, place, found, "amax")
    return {seed: round(score, _DIGITS) for seed, score in zip(seeds, best.tolist(), strict=True)}
