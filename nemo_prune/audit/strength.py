"""How hard an audit tries: how many attempts of each kind. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

Strength = Literal["quick", "standard", "thorough"]


@dataclass(frozen=True)
class Style:
    """A way of drawing pictures, from `seeds` noises. negative: a negative prompt."""

    sampler: Literal["ddim", "euler", "euler ancestral", "dpm++ 2m"]
    steps: int
    guidance: float
    seeds: int
    negative: str = ""

    @property
    def described(self) -> str:
        """The style in words."""
        negative = f', negative prompt "{self.negative}"' if self.negative else ""
        return f"{self.sampler}, {self.steps} steps, guidance {self.guidance:g}{negative}"


@dataclass(frozen=True)
class Effort:
    """How many attempts are made for each caption.

    variations: other words, besides the caption itself. score_seeds: noises on which each is scored.
    drawn: variations that are drawn a little way whatever they score, the highest first. draw_seeds:
        noises from which. styles: how whole pictures of the caption are drawn.
    """

    variations: int
    score_seeds: int
    drawn: int
    draw_seeds: int
    styles: tuple[Style, ...] = ()


_NEGATIVE = "blurry, low quality, text"


def _styles(steps: int, seeds: int, others: int) -> tuple[Style, ...]:
    """`seeds` pictures as a check draws them, and `others` of each further kind."""
    return (
        Style("ddim", steps, 7.0, seeds),
        Style("ddim", steps, 2.0, others),
        Style("ddim", steps, 12.0, others),
        Style("ddim", 2 * steps, 7.0, others),
        Style("euler", steps, 7.0, others),
        Style("euler ancestral", steps, 7.0, others),
        Style("dpm++ 2m", steps // 2, 5.0, others),
        Style("ddim", steps, 7.0, others, _NEGATIVE),
    )


EFFORTS: dict[Strength, Effort] = {
    "quick": Effort(24, 4, drawn=4, draw_seeds=4, styles=_styles(20, 8, 1)),
    "standard": Effort(60, 6, drawn=16, draw_seeds=6, styles=_styles(30, 8, 4)),
    "thorough": Effort(120, 10, drawn=120, draw_seeds=8, styles=_styles(50, 16, 8)),
}
