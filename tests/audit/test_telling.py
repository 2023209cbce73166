"""Which measures may call a picture near: parts only where they tell most of the original's own."""

import numpy as np
import pytest
from test_likeness import photo
from test_verify import noisy

from nemo_prune.audit.nearness import PARTS, Near, alike, levels_of, near_control, near_to
from nemo_prune.audit.parts import foreground
from nemo_prune.report.likeness import TARGET_PART, near_levels, open_likeness
from nemo_prune.report.pictures import Picture

LIKENESS = open_likeness()
DESCRIBE = LIKENESS.describe
CAMERA = photo("camera")
MASK = foreground(DESCRIBE(CAMERA))
OTHERS = [
    DESCRIBE(noisy(photo(name), 1)) for name in ("moon", "brick", "page", "clock", "coffee", "rocket")
]


def man(seed: int, left: float, before: str = "camera") -> Picture:
    """The man's place before a photo: so much of him is left, the rest is grass."""
    assert MASK is not None
    mixed = left * CAMERA + (1 - left) * noisy(photo("grass"), seed)
    return np.where(MASK[..., None], mixed.astype(np.uint8), noisy(photo(before), seed, 12))


def near(left: float) -> Near:
    """To the cameraman, of whom the original draws so much."""
    own = [DESCRIBE(man(seed, left)) for seed in range(4)]
    return near_to(LIKENESS, [DESCRIBE(CAMERA)], own, OTHERS, TARGET_PART)


def test_what_the_original_hardly_draws_itself_is_no_memory_of_it() -> None:
    """A landscape without the man is as alike to a dark coat as what the original draws there is."""
    faint, clear = near(0.4), near(1.0)
    assert "foreground" in faint.silent
    assert "ms_ssim" in faint.levels
    landscape, camera = DESCRIBE(man(9, 0.5, before="moon")), DESCRIBE(CAMERA)
    own = [alike(LIKENESS, camera, DESCRIBE(man(seed, 0.4))) for seed in range(4)]
    level = near_levels(own, [alike(LIKENESS, camera, one) for one in OTHERS])["foreground"]
    assert alike(LIKENESS, camera, landscape)["foreground"] > level, "a whole picture's level"
    assert faint.by(landscape) == []
    assert clear.silent == ["region"]
    assert clear.by(landscape) == []
    assert "foreground" in clear.by(DESCRIBE(man(9, 1.0, before="moon")))
    assert "ms_ssim" in faint.by(camera)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("original", "unrelated", "tells"),
    [
        ([0.192, 0.192, 0.194, 0.197], [0.148, 0.1, 0.12], False),  # of 1 hardly anything
        ([0.9, 0.95, 0.955, 0.96, 1.0], [0.755, 0.3], False),  # only the nearest exceeds chance
        ([0.1, 0.1, 0.95], [0.05, 0.02], False),  # one of three
        ([0.67, 0.68, 0.68], [0.2, 0.17], True),
        ([0.97, 0.97, 0.98], [0.7, 0.6], True),
    ],
)
def test_a_part_tells_most_of_the_originals_own_pictures_or_nothing(
    part: str, original: list[float], unrelated: list[float], tells: bool
) -> None:
    own, others = ([{part: one, "ms_ssim": one} for one in row] for row in (original, unrelated))
    found = levels_of(own, others, TARGET_PART)
    assert "ms_ssim" in found, "of whole pictures the nearest decides, as everywhere"
    assert (part in found) == tells


def test_a_control_is_judged_by_the_measures_and_the_median_of_what_was_memorized() -> None:
    known = [
        {"levels": {"ms_ssim": 0.5, "edges": 0.4}, "replica": {"ms_ssim": 0.9, "edges": 0.8}},
        {"levels": {"ms_ssim": 0.5}, "replica": {"ms_ssim": 0.8, "edges": 0.7}},
        {"levels": {"ms_ssim": 0.5}, "replica": {"ms_ssim": 0.5, "edges": 0.6}},
        {"levels": {}, "replica": {}},
    ]
    cat = DESCRIBE(photo("chelsea"))
    control = near_control(LIKENESS, cat, known, OTHERS, TARGET_PART)
    assert control.replica == {"ms_ssim": 0.8}
    assert control.by(DESCRIBE(noisy(photo("chelsea"), 3))) == ["ms_ssim"]
    assert control.by(DESCRIBE(photo("coffee"))) == []
    assert near_control(LIKENESS, cat, [], OTHERS, TARGET_PART).levels == {}
