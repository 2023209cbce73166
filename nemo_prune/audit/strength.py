"""How hard an audit tries: how many attempts of each kind. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

Strength = Literal["quick", "standard", "thorough"]


@dataclass(frozen=True)
class Effort:
    """How many attempts are made for each caption.

    variations: other words, besides the caption itself. score_seeds: noises on which each is scored.
    drawn: variations that are drawn a little way whatever they score, the highest first. draw_seeds:
        noises from which.
    """

    variations: int
    score_seeds: int
    drawn: int
    draw_seeds: int


EFFORTS: dict[Strength, Effort] = {
    "quick": Effort(variations=24, score_seeds=4, drawn=4, draw_seeds=4),
    "standard": Effort(variations=60, score_seeds=6, drawn=16, draw_seeds=6),
    "thorough": Effort(variations=120, score_seeds=10, drawn=120, draw_seeds=8),
}
