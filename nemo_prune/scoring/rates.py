"""How well a score tells labelled prompts apart: ROC, AUROC, rates at a threshold. No torch."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Separation:
    """How well a score tells memorized prompts (positive) from ordinary ones (negative).

    auroc: the probability that a memorized prompt scores above an ordinary one, ties count half.
    tpr_at_fpr_1: the largest share of memorized prompts found by a threshold which at most 1 % of
        the ordinary ones exceed.
    roc: points (false positive rate, true positive rate, threshold: found if the score is at
        least that), from nothing found to all found; the first has threshold None.
    """

    auroc: float
    tpr_at_fpr_1: float
    roc: tuple[tuple[float, float, float | None], ...]


def separation(scores: Sequence[float], labels: Sequence[bool]) -> Separation:
    """Raises ValueError unless both memorized and ordinary prompts are there."""
    positive = sorted(score for score, label in zip(scores, labels, strict=True) if label)
    negative = sorted(score for score, label in zip(scores, labels, strict=True) if not label)
    if not positive or not negative:
        raise ValueError("a separation needs both memorized and ordinary prompts")
    above = sum(bisect_left(negative, p) + bisect_right(negative, p) for p in positive) / 2
    points: list[tuple[float, float, float | None]] = [(0.0, 0.0, None)]
    found = false = 0
    ranked = sorted(zip(scores, labels, strict=True), reverse=True)
    for threshold, group in groupby(ranked, key=lambda pair: pair[0]):
        for _, label in group:
            found, false = found + label, false + (not label)
        points.append((false / len(negative), found / len(positive), threshold))
    return Separation(
        auroc=above / (len(positive) * len(negative)),
        tpr_at_fpr_1=max(tpr for fpr, tpr, _ in points if fpr <= 0.01),
        roc=tuple(points),
    )


def accuracy(scores: Sequence[float], labels: Sequence[bool], threshold: float) -> float:
    """The share of prompts that "score above threshold" labels rightly."""
    return sum((s > threshold) == label for s, label in zip(scores, labels, strict=True)) / len(scores)
