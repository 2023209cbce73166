"""From ordinary prompts' scores to thresholds: tau, the gate, and when a prompt is clear early.

Two thresholds, since they answer two questions. **tau** (mean + one standard deviation, the
paper's) says which seeds count and when a prompt is suppressed; about one ordinary prompt in six
lies above it. The **gate** says whether a prompt is memorized at all: the score that ordinary
prompts exceed at a rate that the user chooses. Pure arithmetic, no torch.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

FEWEST_PROMPTS = 30
HIGHEST_GATE = 0.999
"""Of a gate this high or higher nobody could say that anything failed it: scores end at 1."""
FEWEST_SEEDS = 4
"""A prompt is not clear on fewer. Some are memorized from a part of all seeds only, and two or three may
miss it; the margins are from ordinary prompts and do not know that."""
_UNEXPECTED_GROWTH = 0.1  # the share of ordinary prompts that rise by more than the margin
_TAIL = 0.025  # on each side of the 95 % interval


@dataclass(frozen=True)
class Gate:
    """A prompt whose score lies above `value` is memorized.

    fpr: the rate at which ordinary prompts lie above; None for a gate that was given or published.
    low, high: 95 % confidence interval of the score that ordinary prompts exceed at that rate,
        whatever their distribution. None where so few prompts do not bound it on that side.
    prompts: how many ordinary prompts it is from.
    extrapolated: too few prompts to see that rate; assumed to be distributed normally.
    raised: ordinary prompts alone would have put it below tau.
    """

    value: float
    fpr: float | None = None
    low: float | None = None
    high: float | None = None
    prompts: int = 0
    extrapolated: bool = False
    raised: bool = False


@dataclass(frozen=True)
class Thresholds:
    """The two thresholds, where they come from, and when a prompt is clear early.

    tau_source: "given", "published", or what ordinary prompts the scores are of: "calibrated" (the
        user's), "calibration file" or "bundled captions". gate_source: the same, or "tau".
    margins: of `screening`; empty where no ordinary scores are known.
    scores_from: "file", "cache", "this run", or None where none were needed.
    """

    tau: float
    tau_source: str
    gate: Gate
    gate_source: str
    margins: tuple[float, ...] = ()
    scores_from: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Both thresholds and their sources as plain JSON."""
        return {
            "tau": self.tau,
            "tau_source": self.tau_source,
            "gate": asdict(self.gate),
            "gate_source": self.gate_source,
        }


def tau_from(scores: Sequence[float]) -> float:
    """tau: mean + one standard deviation of ordinary prompts' scores ("Finding NeMo", 3.1)."""
    return round(statistics.mean(scores) + statistics.stdev(scores), 4)


def gate_from(scores: Sequence[float], fpr: float, tau: float, most: float | None = 1.0) -> Gate:
    """The gate from ordinary prompts' scores: at least tau, at `most` what a score can be.

    Of n scores the one of rank ceil((n + 1) (1 - fpr)): a new ordinary prompt lies above it with a
    probability of at most `fpr`, whatever the distribution (split conformal prediction). Fewer
    prompts than 1 / fpr - 1 have no such rank: then the largest, or where a normal distribution
    puts that rate if that is higher.
    """
    ordered = sorted(scores)
    count = len(ordered)
    rank = _rank(count, fpr)
    extrapolated = rank > count
    if extrapolated:
        normal = statistics.NormalDist(statistics.mean(ordered), statistics.stdev(ordered) or 1e-9)
        value = max(ordered[-1], normal.inv_cdf(1 - fpr))
    else:
        value = ordered[rank - 1]
    low, high = _interval(ordered, 1 - fpr)
    return Gate(
        value=round(max(value, tau) if most is None else min(most, max(value, tau)), 5),
        fpr=fpr,
        low=low,
        high=high,
        prompts=count,
        extrapolated=extrapolated,
        raised=value < tau,
    )


def standing_apart(scores: Sequence[float]) -> list[float]:
    """The scores that lie far above all others, as those of memorized prompts among ordinary ones do.

    More than four standard deviations above the median, the deviation being that of the median absolute
    one, which a few of them do not move.
    """
    middle = statistics.median(scores)
    spread = 1.4826 * statistics.median(abs(score - middle) for score in scores)
    return [score for score in sorted(scores) if score > middle + 4 * spread > middle]


def prompts_for(fpr: float) -> int:
    """How many ordinary prompts show the rate `fpr`, so that `gate_from` extrapolates nothing."""
    return max(FEWEST_PROMPTS, math.ceil(round(1 / fpr - 1, 9)))


def margins_from(paths: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """How far a score may still rise after 2, 3, ... seeds: one margin for each count but the last.

    paths: for each ordinary prompt its score after 2, 3, ... seeds. 90 % of ordinary prompts rise
    by no more than the margin, so one that lies below the gate by more than it is clear. Of the
    others only those are judged otherwise than on all seeds that end above the gate, a part of
    the rate that it is for.
    """
    rank = min(_rank(len(paths), _UNEXPECTED_GROWTH), len(paths))
    last = len(paths[0]) - 1
    return tuple(sorted(path[last] - path[i] for path in paths)[rank - 1] for i in range(last))


def decided(score: float, seeds: int, gate: float, margins: Sequence[float]) -> bool:
    """Whether more seeds than these, at least 2, would change nothing about a prompt's decision.

    Certain above the gate, since scores only rise; below it as sure as the margins, and on
    `FEWEST_SEEDS` at least.
    """
    if score > gate:
        return True
    place = seeds - 2
    return seeds >= FEWEST_SEEDS and place < len(margins) and score + margins[place] <= gate


def _rank(count: int, rate: float) -> int:
    # What binary fractions add to a whole number must not cost a rank.
    return max(1, math.ceil(round((count + 1) * (1 - rate), 9)))


def _interval(ordered: Sequence[float], share: float) -> tuple[float | None, float | None]:
    """Order statistics that enclose the quantile `share` with a probability of at least 95 %."""
    count = len(ordered)
    low = high = None
    below = 0.0  # the probability that fewer than `rank` scores lie below the quantile
    for rank in range(1, count + 1):
        below += _binomial(rank - 1, count, share)
        if below <= _TAIL:
            low = ordered[rank - 1]
        elif below >= 1 - _TAIL:
            high = ordered[rank - 1]
            break
    return low, high


def _binomial(hits: int, count: int, share: float) -> float:
    ways = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
    return math.exp(ways + hits * math.log(share) + (count - hits) * math.log1p(-share))
