"""Which pictures count as near a training picture, by made-up scores and by photographs."""

import numpy as np
import pytest
from test_likeness import photo

from nemo_prune.report.likeness import Likeness, open_likeness
from nemo_prune.report.nearness import is_near, near_levels
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
