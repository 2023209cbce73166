"""Many prompts' comparisons as one figure, in two ways that stand side by side. Imports no torch.

The paper's: the median over the pictures of a prompt, then median and median absolute deviation over
the prompts (its published script also prints the largest of a prompt). And the mean over the prompts for
each starting noise, then mean and standard deviation over the noises.
"""

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

COLUMNS = ("original", "generated", "diversity", "alignment")
MEANINGS = {
    "original": "to the training picture",
    "generated": "to the unpruned model's picture of the same noise",
    "diversity": "among the pictures of a prompt; lower is more diverse",
    "alignment": "to the caption, by CLIP",
}
PAPERS = (
    "median over the pictures of a prompt (diversity: over all pairs), then median and median absolute "
    "deviation over prompts, which the paper's Table 1 most likely shows; “largest” takes the largest "
    "of each prompt instead, which its published script prints too"
)
OURS = "mean over prompts for each starting noise, then mean and standard deviation over the noises"


def measures_of(found: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    """The measures that a column has, the most telling first; of "alignment" the one there is."""
    rows: Sequence[Any] = next((one[column] for one in found if one.get(column)), ())
    if column == "alignment":
        return ["clip"] if rows else []
    names = list(rows[0]) if rows else []
    return sorted(names, key=lambda name: name != "sscd")


def summarize(found: Sequence[Mapping[str, Any]], column: str, measure: str) -> dict[str, Any] | None:
    """One column by one measure, over prompts; None where no prompt has it.

    Returns:
        The paper's way: "median" and "mad" over prompts of each one's median, "largest": the median of
        each one's largest. Ours: "mean", and "sd" over seeds (None for one). "prompts": how many.
    """
    rows = [_values(one[column], measure) for one in found if one.get(column)]
    if not rows:
        return None
    middle = [statistics.median(row) for row in rows]
    median = statistics.median(middle)
    by_seed = [_by_seed(row, column) for row in rows]
    seeds = [statistics.fmean(column) for column in zip(*by_seed, strict=True)]
    return {
        "median": round(median, 4),
        "mad": round(statistics.median(abs(value - median) for value in middle), 4),
        "largest": round(statistics.median(map(max, rows)), 4),
        "mean": round(statistics.fmean(seeds), 4),
        "sd": round(statistics.stdev(seeds), 4) if len(seeds) > 1 else None,
        "prompts": len(rows),
    }


def _values(row: Sequence[Any], measure: str) -> list[float]:
    return [float(one[measure]) if isinstance(one, Mapping) else float(one) for one in row]


def _by_seed(values: Sequence[float], column: str) -> list[float]:
    """A value for each seed; of pairs the mean over those that a seed is in."""
    if column != "diversity":
        return list(values)
    seeds = next(n for n in range(2, len(values) + 2) if n * (n - 1) // 2 == len(values))
    pairs = list(combinations(range(seeds), 2))
    return [
        statistics.fmean(value for pair, value in zip(pairs, values, strict=True) if seed in pair)
        for seed in range(seeds)
    ]
