"""Which pictures count as near a memorized one, by made-up scores and by photographs."""

from collections.abc import Sequence

import numpy as np
import pytest
from test_likeness import photo

from nemo_prune.report.likeness import (
    CONSENSUS_PART,
    Likeness,
    Scores,
    is_near,
    judge_near,
    near_levels,
    open_likeness,
)
from nemo_prune.report.pictures import Picture

UNRELATED = [
    {"ms_ssim": 0.1, "region": 0.5, "colour": 0.0},
    {"ms_ssim": 0.3, "region": 0.9, "colour": 0.1},
]


def test_the_level_lies_between_the_nearest_of_both() -> None:
    original = [
        {"ms_ssim": 0.2, "region": 0.97, "colour": 0.9},
        {"ms_ssim": 0.8, "region": 0.6, "colour": 1},
    ]
    levels = near_levels(original, UNRELATED)
    assert levels == pytest.approx({"ms_ssim": 0.55}), "sky is like any sky, and colours are shared"
    assert [is_near(scores, levels) for scores in original] == [False, True]
    assert not is_near({"ms_ssim": 0.5, "region": 1, "colour": 1}, levels)


def test_chance_must_not_reach_as_far_as_the_original() -> None:
    """The unrelated ones reach .2, .1 above their mean; .1 further on chance might be next."""
    unrelated = [{"edges": 0.0}, {"edges": 0.2}]
    assert near_levels([{"edges": 0.29}], unrelated) == {}
    assert near_levels([{"edges": 0.31}], unrelated) == {"edges": pytest.approx(0.255)}
    assert not is_near({"edges": 1.0}, {})


def test_nothing_is_known_without_pictures_to_compare_with() -> None:
    assert near_levels([{"edges": 0.9}], []) == {}
    assert near_levels([], UNRELATED) == {}


# ------------------------------------------------- the original's other seeds as the reference

CHANCE = [{"ms_ssim": 0.1 + 0.02 * i, "edges": 0.05 * i} for i in range(6)]  # up to .20 and .25
ALIKE, LAYOUT, OTHER = (
    {"ms_ssim": 0.9, "edges": 0.9}, {"ms_ssim": 0.2, "edges": 0.8}, {"ms_ssim": 0.15, "edges": 0.2},
)  # fmt: skip


def table(seeds: int, pairs: dict[tuple[int, int], Scores], elsewhere: Scores) -> list[list[Scores]]:
    """[picture j][original's picture i, i != j] from the pairs (j, i) that are given."""
    return [[pairs.get((j, i), elsewhere) for i in range(seeds) if i != j] for j in range(seeds)]


def among(some: Sequence[int], scores: Scores) -> dict[tuple[int, int], Scores]:
    return {(j, i): scores for j in some for i in some}


def test_a_picture_that_comes_back_from_two_of_eight_seeds_is_caught() -> None:
    before = table(8, {}, ALIKE)
    after = table(8, {(j, i): ALIKE for j in (2, 5) for i in range(8)}, OTHER)
    found = judge_near(before, after, CHANCE)
    assert found is not None
    assert found.before == (True,) * 8
    assert [j for j, near in enumerate(found.after) if near] == [2, 5], "the mean would hide them"


def test_what_two_of_eight_seeds_replicated_is_the_target_of_those_two() -> None:
    pairs = among((1, 6), ALIKE)
    found = judge_near(table(8, pairs, OTHER), table(8, pairs, OTHER), CHANCE)
    assert found is not None
    assert [j for j, near in enumerate(found.before) if near] == [1, 6]
    assert found.after == found.before
    gone = judge_near(table(8, pairs, OTHER), table(8, {}, OTHER), CHANCE)
    assert gone is not None
    assert not any(gone.after)


def test_a_template_is_recognized_by_its_layout_alone() -> None:
    found = judge_near(table(8, {}, LAYOUT), table(8, {(3, 0): LAYOUT}, OTHER), CHANCE)
    assert found is not None
    assert set(found.levels) == {"edges"}
    assert found.levels["edges"] == pytest.approx((0.8 + 0.25) / 2)
    assert found.after == tuple(j == 3 for j in range(8))


def test_what_is_near_by_other_seeds_comes_less_far_on_their_scale() -> None:
    """The original's pictures are all but one and the same; a replica that lost some detail is none."""
    same, blurred = {"ms_ssim": 0.99}, {"ms_ssim": 0.48}
    unrelated = [{"ms_ssim": 0.1}, {"ms_ssim": 0.17}]
    tables = (table(8, {}, same), table(8, {}, blurred))
    found = judge_near(*tables, unrelated, CONSENSUS_PART)
    assert found is not None
    assert found.levels["ms_ssim"] == pytest.approx(0.17 + (0.99 - 0.17) / 3, abs=1e-4)
    assert all(found.after)
    halfway = judge_near(*tables, unrelated)
    assert halfway is not None
    assert not any(halfway.after)


def test_pictures_that_do_not_agree_are_not_judged() -> None:
    assert judge_near(table(8, {}, OTHER), table(8, {}, ALIKE), CHANCE) is None
    assert judge_near(table(1, {}, ALIKE), table(1, {}, ALIKE), CHANCE) is None, "no other seed"
    assert judge_near(table(8, {}, ALIKE), table(8, {}, OTHER), []) is None, "no ordinary pictures"


def test_the_training_picture_is_a_reference_like_any() -> None:
    found = judge_near([[ALIKE], [OTHER]], [[OTHER], [ALIKE]], CHANCE)
    assert found is not None
    assert (found.before, found.after) == ((True, False), (False, True))


@pytest.fixture(scope="module")
def likeness() -> Likeness:
    return open_likeness()


def _noisy(picture: Picture, strength: float) -> Picture:
    noise = np.random.default_rng(0).normal(0, strength, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def test_a_part_of_the_training_picture_is_near_and_another_photograph_is_not(
    likeness: Likeness,
) -> None:
    names = ("chelsea", "coffee", "astronaut", "rocket", "camera", "coins")
    target, coffee, *others = (photo(name) for name in names)
    wanted = likeness.describe(target)

    def scores(picture: Picture) -> dict[str, float]:
        return likeness.to_target(wanted, likeness.describe(picture))

    levels = near_levels([scores(_noisy(target, 12))], [scores(other) for other in others])
    assert {"ms_ssim", "edges", "region"} == set(levels)
    part = coffee.copy()
    part[50:114, 3:67] = target[32:96, 32:96]
    assert is_near(scores(part), levels)
    assert is_near(scores(_noisy(target, 30)), levels)
    assert is_near(scores(np.ascontiguousarray(target[:, :, ::-1])), levels), "in other colours"
    assert not is_near(scores(coffee), levels)
    assert not is_near(scores(np.ascontiguousarray(target[::-1, ::-1])), levels), "its colours alone"
