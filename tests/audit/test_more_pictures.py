"""Which of a pruned model's further pictures are near what was memorized."""

import numpy as np
import pytest
from test_likeness import photo
from test_verify import noisy

from nemo_prune.audit.pictures import Wanted, judge_more, passes
from nemo_prune.audit.strength import EFFORTS, Style
from nemo_prune.report.likeness import open_likeness
from nemo_prune.report.pictures import Picture

STYLES = (Style("ddim", 20, 7.0, 2), Style("euler", 20, 7.0, 1))
LIKENESS = open_likeness()
OTHERS = [
    LIKENESS.describe(noisy(photo(name), 1)) for name in ("moon", "grass", "brick", "page", "clock")
]


def cat(seed: int) -> Picture:
    return noisy(photo("chelsea"), seed)


def pasted() -> Picture:
    """Coffee with the cat's middle in a corner: the foreground stayed, the rest is new."""
    found = photo("coffee").copy()
    height, width = found.shape[:2]
    part = cat(9)[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
    found[: part.shape[0], : part.shape[1]] = part
    return found


def test_a_picture_that_comes_back_whole_or_in_part_is_near() -> None:
    drawn = [[photo("coffee"), cat(7)], [pasted()]]
    found = judge_more(LIKENESS, STYLES, [cat(s) for s in range(4)], drawn, {3: [cat(8)]}, OTHERS)
    assert found["judged"]
    assert found["control"] == [4, 4]
    first, second = found["styles"]
    assert [one["seed"] for one in first["near"]] == [1]
    assert "ms_ssim" in first["near"][0]["by"]
    assert [one["by"] for one in second["near"]] == [["region"]]
    assert (first["count"], second["count"]) == (2, 1)
    assert list(found["worded"]) == ["3"]


def test_a_training_picture_is_a_reference_of_its_own() -> None:
    drawn = [[photo("coffee"), photo("rocket")], [cat(7)]]
    found = judge_more(LIKENESS, STYLES, [cat(s) for s in range(4)], drawn, {}, OTHERS, cat(50))
    assert set(found["levels"]) == set(found["silent"]) == {"consensus", "target"}
    assert [len(style["near"]) for style in found["styles"]] == [0, 1]


def test_what_the_original_draws_differently_each_time_is_not_judged() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, photo("moon").shape, dtype=np.uint8) for _ in range(4)]
    found = judge_more(LIKENESS, STYLES, noise, [[cat(1), cat(2)], [cat(3)]], {}, OTHERS)
    assert not found["judged"]
    assert not [one for style in found["styles"] for one in style["near"]]


@pytest.mark.parametrize("strength", EFFORTS)
def test_every_strength_tries_at_least_eight_noises_and_several_ways(strength: str) -> None:
    effort = EFFORTS[strength]  # type: ignore[index]
    styles = effort.styles
    assert styles[0].seeds >= 8
    assert len({style.sampler for style in styles}) >= 3
    assert len({style.guidance for style in styles}) >= 3
    assert len({style.steps for style in styles}) >= 3
    drawn = 2 * sum(style.seeds * style.steps for style in styles)
    assert passes([Wanted("a", {})], effort) == drawn
    assert passes([Wanted("a", {5: "b"})], effort) > drawn
    assert 2 <= effort.chase.pictures <= effort.draw_seeds
