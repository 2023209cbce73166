"""Whether pictures are near a training picture, judged by pictures that have nothing to do with it.

How like a training picture an unrelated one is depends on both: to a tile of clear sky any sky is
alike. So nothing here is an absolute threshold; ordinary prompts' pictures of the same run say
what each measure is worth, and the original's own pictures how near a replica comes.
"""

from collections.abc import Mapping, Sequence

_SHARED = {"colour"}  # a palette is no copy: unrelated pictures of one kind have it in common

Scores = Mapping[str, float]  # measure -> similarity to the training picture


def near_levels(original: Sequence[Scores], unrelated: Sequence[Scores]) -> dict[str, float]:
    """Measure -> the similarity above which a picture is near; only measures that tell.

    A picture is near if it is more like the original's nearest one than like the nearest unrelated
    one: the level lies halfway between the two. The nearest of the original's, since even a model
    that replicates from one seed of ten replicates; the nearest of the unrelated ones, since their
    mean says nothing about how far chance goes. A measure tells if the original's nearest exceeds
    the nearest unrelated one by more than that exceeds their mean: else chance could go as far.
    """
    found = {}
    for name in original[0] if original and unrelated else ():
        if name in _SHARED:
            continue
        others = [scores[name] for scores in unrelated]
        replica, chance = max(scores[name] for scores in original), max(others)
        spread = chance - sum(others) / len(others)
        if replica - chance > spread:
            found[name] = round((replica + chance) / 2, 4)
    return found


def is_near(picture: Scores, levels: Mapping[str, float]) -> bool:
    """Whether any measure exceeds its level: each of them sees replication of another kind."""
    return any(picture[name] > level for name, level in levels.items())
