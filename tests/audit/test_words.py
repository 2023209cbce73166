"""Other words for a caption: made the same way every time, of every kind, none twice."""

import pytest

from nemo_prune.audit.words import AS_IT_STANDS, Variation, variations

CAPTION = "Golden Daisy Macro on Black Background, Canvas Print"
OTHERS = ["Water Drop Splash", CAPTION, "Wooden Rowing Boats on the Lake Shore"]
KINDS = {
    "first words", "case", "prefix", "dropped word", "punctuation", "shuffled", "mixed in",
    "doubled word", "weights", "suffix", "padding", "random number",
}  # fmt: skip


def test_the_caption_comes_first_then_some_of_every_kind() -> None:
    found = variations(CAPTION, OTHERS, 24, 0)
    assert found[0] == Variation(AS_IT_STANDS, AS_IT_STANDS, CAPTION)
    assert len(found) == 25
    assert {one.kind for one in found[1:]} == KINDS


def test_no_text_comes_twice_and_the_same_call_gives_the_same() -> None:
    found = variations(CAPTION, OTHERS, 500, 3)
    assert len({one.text for one in found}) == len(found) > 60
    assert found == variations(CAPTION, OTHERS, 500, 3)
    assert found != variations(CAPTION, OTHERS, 500, 4)


def test_texts_are_what_their_names_say() -> None:
    texts = {one.how: one.text for one in variations(CAPTION, OTHERS, 500, 0)}
    assert texts["its first 4 words"] == "Golden Daisy Macro on"
    assert texts["without word 2"] == "Golden Macro on Black Background, Canvas Print"
    assert texts["word 2 twice"].startswith("Golden Daisy Daisy Macro")
    assert texts["without any"] == "Golden Daisy Macro on Black Background Canvas Print"
    assert texts["prompt 0 of the list behind it"] == f"{CAPTION}, Water Drop Splash"
    assert texts["prompt 2 of the list before it"] == f"{OTHERS[2]}, {CAPTION}"
    assert not [how for how in texts if "prompt 1 " in how], "that is itself"
    assert texts["written as (...:1.3)"] == f"({CAPTION}:1.3)"
    assert sorted(texts["words in random order 1"].split()) == sorted(CAPTION.split())


@pytest.mark.parametrize("caption", ["cat", "!", "ein Bild", " spaced  out ", "猫の写真"])
def test_any_caption_will_do(caption: str) -> None:
    found = variations(caption, [], 40, 0)
    assert found[0].text == caption
    assert all(one.text.strip() for one in found)


def test_how_a_variation_was_made_says_nothing_of_the_caption() -> None:
    words = {word.strip(",").lower() for word in CAPTION.split()} - {"on", "black"}
    for one in variations(CAPTION, OTHERS, 500, 0):
        assert not words & set(one.how.lower().split()), one.how
