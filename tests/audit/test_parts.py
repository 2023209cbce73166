"""Foreground and background apart, by colours alone."""

import numpy as np
import pytest
from test_likeness import photo

from nemo_prune.audit.parts import foreground, parts
from nemo_prune.report.likeness import SIDE, open_likeness
from nemo_prune.report.pictures import Picture

LIKENESS = open_likeness()
MIDDLE = (slice(32, 96), slice(32, 96))


def on(background: Picture, name: str = "chelsea") -> Picture:
    """The middle of a photo in the middle of another picture, 128 pixels wide."""
    found = background.copy()
    found[MIDDLE] = photo(name)[MIDDLE]
    return found


def wall(seed: int) -> Picture:
    """A picture of one light colour, with a little noise."""
    noise = np.random.default_rng(seed).integers(-6, 7, (128, 128, 3))
    return np.clip(np.array([225, 230, 235]) + noise, 0, 255).astype(np.uint8)


def test_the_foreground_is_what_is_unlike_the_border() -> None:
    mask = foreground(LIKENESS.describe(on(wall(1))))
    assert mask is not None
    inside = mask[SIDE // 4 : 3 * SIDE // 4, SIDE // 4 : 3 * SIDE // 4]
    assert inside.mean() > 0.9
    assert mask.mean() < 0.35


def test_either_may_stay_where_the_other_is_new() -> None:
    reference = LIKENESS.describe(on(wall(1)))
    kept = parts(reference, LIKENESS.describe(on(photo("brick"))))
    new = parts(reference, LIKENESS.describe(on(wall(1), "coffee")))
    assert kept["foreground"] > 0.8 > 0.4 > kept["background"]
    assert new["background"] > 0.8 > 0.4 > new["foreground"]


def test_what_has_no_two_parts_is_not_judged_by_them() -> None:
    flat = LIKENESS.describe(np.full((128, 128, 3), 120, np.uint8))
    assert foreground(flat) is None
    assert parts(flat, flat) == {"foreground": 0.0, "background": 0.0}


@pytest.mark.parametrize("name", ["chelsea", "moon", "brick"])
def test_a_picture_is_wholly_like_itself(name: str) -> None:
    picture = LIKENESS.describe(photo(name))
    found = parts(picture, picture)
    assert set(found.values()) in ({1.0}, {0.0})
