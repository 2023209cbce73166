"""How hard an audit tries: how many attempts of each kind. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

Strength = Literal["quick", "standard", "thorough"]
THERE = 0.5
"""r from which on an optimized embedding may have drawn its picture, and whole pictures decide: more
than is left of a picture that is gone, since an ordinary one, nobody's memory, may come as near."""


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
class Chase:
    """How text embeddings are optimized towards each picture (arXiv 2507.16880).

    budgets: after how many steps they are looked at, rising. batch: noises and timesteps of a step.
    rate: Adam's learning rate. random: starts from random embeddings, besides the caption's own.
    pictures: whole ones that are drawn where short trajectories say that the picture is there.
    controls: ordinary model-made pictures, and as many that the model never saw. traced: of how many
        triggers of a caption the neurons are searched. deep: by trajectories too, where the score does
        not see a trigger, which costs ten times as much.
    """

    budgets: tuple[int, ...] = (0, 10, 25, 50)
    batch: int = 8
    rate: float = 0.1
    random: int = 1
    pictures: int = 4
    controls: int = 2
    traced: int = 3
    deep: bool = True


@dataclass(frozen=True)
class Effort:
    """How many attempts are made for each caption.

    variations: other words, besides the caption itself. score_seeds: noises on which each is scored.
    drawn: variations that are drawn a little way whatever they score, the highest first. draw_seeds:
        noises from which. styles: how whole pictures of the caption are drawn. plain_steps: DDIM steps
        of all other pictures. chase: how embeddings are optimized.
    """

    variations: int
    score_seeds: int
    drawn: int
    draw_seeds: int
    styles: tuple[Style, ...] = ()
    plain_steps: int = 20
    chase: Chase = field(default_factory=Chase)


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


# Quick is what ten captions of a small model take in 3 minutes on two cores: about 1,000 samples each.
EFFORTS: dict[Strength, Effort] = {
    "quick": Effort(
        12, 3, drawn=2, draw_seeds=3, styles=_styles(10, 8, 1), plain_steps=10,
        chase=Chase((0, 10, 25), batch=4, random=0, pictures=2, controls=1, traced=1, deep=False),
    ),
    "standard": Effort(60, 6, drawn=16, draw_seeds=6, styles=_styles(30, 8, 4)),
    "thorough": Effort(
        120, 10, drawn=120, draw_seeds=8, styles=_styles(50, 16, 8), plain_steps=30,
        chase=Chase((0, 10, 25, 50, 100, 150), random=3, pictures=8, controls=4, traced=8),
    ),
}  # fmt: skip
