"""Which pictures are near a memorized one: as a whole, by a region, by its foreground or background.

The rule is that of `report.likeness`, and so are its levels. Parts are asked besides, and where a part
of the reference has little structure, little is needed to be as alike to it as the original's own
pictures are. So a part judges only where it tells *most* of them from unrelated pictures, and where
they are more like the reference than like chance: what the original does not draw there cannot stay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from nemo_prune.audit.parts import NAMES, parts
from nemo_prune.report.likeness import Described, Likeness, Scores, near_levels, nearest
from nemo_prune.report.pictures import Picture

PARTS = ("region", *NAMES)


def alike(likeness: Likeness, reference: Described, picture: Described) -> dict[str, float]:
    """Every measure of a picture against a reference, parts included."""
    return likeness.to_target(reference, picture) | parts(reference, picture)


def levels_of(original: Sequence[Scores], unrelated: Sequence[Scores], part: float) -> dict[str, float]:
    """`near_levels`, without the parts that do not tell.

    A part tells if most of the original's own pictures (their median) exceed the nearest unrelated one
    by more than that exceeds the unrelated ones' mean, and by more than they lack of 1, which is the
    reference itself.
    """
    return {
        name: level
        for name, level in near_levels(original, unrelated, part).items()
        if name not in PARTS or _tells([s[name] for s in original], [s[name] for s in unrelated])
    }


def _tells(original: Sequence[float], unrelated: Sequence[float]) -> bool:
    usual, chance = median(original), max(unrelated)
    return usual - chance > max(chance - mean(unrelated), 1 - usual)


@dataclass(frozen=True, eq=False)
class Near:
    """Says of a picture by which measures it is near one of the references.

    levels: measure -> similarity above which it is; empty: nothing can be told. replica: measure ->
    how near the original's own pictures come.
    """

    likeness: Likeness
    references: Sequence[Described]
    levels: Mapping[str, float]
    replica: Mapping[str, float]

    @property
    def silent(self) -> list[str]:
        """The parts that do not tell here."""
        return [name for name in PARTS if name not in self.levels]

    def seen(self, picture: Picture) -> list[str]:
        """`by` of a picture that is described nowhere else."""
        return self.by(self.likeness.describe(picture))

    def by(self, picture: Described) -> list[str]:
        """The measures that say so; a reference is not compared with itself."""
        compared = [alike(self.likeness, one, picture) for one in self.references if one is not picture]
        return [n for n, level in self.levels.items() if any(scores[n] > level for scores in compared)]


def near_to(
    likeness: Likeness,
    references: Sequence[Described],
    original: Sequence[Described],
    unrelated: Sequence[Described],
    part: float,
) -> Near:
    """How near is told by the original's own pictures, and by unrelated ones."""
    own = [alike(likeness, a, b) for a in references for b in original if a is not b]
    chance = [alike(likeness, a, b) for a in references for b in unrelated]
    return Near(likeness, references, levels_of(own, chance, part), nearest(own))


def near_control(
    likeness: Likeness,
    reference: Described,
    memorized: Sequence[Mapping[str, Mapping[str, float]]],
    unrelated: Sequence[Described],
    part: float,
) -> Near:
    """The same for a picture that nobody memorized: no model's own pictures replicate it.

    memorized: "levels" and "replica" of memorized pictures, whose median takes the place, measure by
    measure, where most of them are told by it.
    """
    known = [one for one in memorized if one["levels"]]
    replica = {
        name: median(values)
        for name in (known[0]["replica"] if known else ())
        if 2 * len(values := [one["replica"][name] for one in known if name in one["levels"]])
        > len(known)
    }
    chance = [alike(likeness, reference, other) for other in unrelated]
    return Near(likeness, [reference], levels_of([replica], chance, part), replica)
