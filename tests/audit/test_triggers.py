"""Pictures that come back by other words, on models that are known to draw them."""

from collections.abc import Mapping
from typing import Any

from planted import TIMESTEP, engine
from tiny import Told

from nemo_prune.audit.strength import EFFORTS
from nemo_prune.audit.triggers import Judges, samples_of, try_words
from nemo_prune.audit.words import variations
from nemo_prune.localize.confirm import unrelated_ends
from nemo_prune.scoring.engine import Engine
from nemo_prune.scoring.trajectory import schedule_from

TAU, GATE = 0.6, 0.7
SCHEDULE = schedule_from(TIMESTEP, 5)
QUICK = EFFORTS["quick"]
CAT, DOG = "a very well known grey cat", "a dog that is on every poster"


def words(text: str) -> Mapping[int, float]:
    """The captions drive a neuron each; a photo of a cat drives another, of the same picture."""
    text = text.lower()
    drives = {}
    if "cat" in text:
        drives = {1: 6.0} if "photo" in text else {0: 6.0}
    if "dog" in text:
        drives[2] = 6.0
    return drives


def tried(pruned: Engine, caption: str) -> dict[str, Any]:
    original = engine(words, shared={1: 0})
    unrelated = unrelated_ends(original, ["sea"] * 16, SCHEDULE, Told())
    found = try_words(
        original, pruned, variations(caption, [], QUICK.variations, 0), QUICK,
        Judges(TAU, GATE, SCHEDULE, unrelated),
    )  # fmt: skip
    assert found["memorized"]
    assert found["judged"]
    assert found["words"][0]["original"]["triggers"], "the model that memorized it is the control"
    return found


def back(found: dict[str, Any]) -> dict[str, list[str]]:
    return {word["how"]: word["back"] for word in found["words"] if word["back"]}


def test_nothing_comes_back_where_all_is_pruned() -> None:
    pruned = engine(words, pruned=[0, 1, 2], shared={1: 0})
    assert back(tried(pruned, CAT)) == {}
    assert back(tried(pruned, DOG)) == {}


def test_a_caption_that_is_secretly_unpruned_is_found_and_the_other_is_not() -> None:
    pruned = engine(words, pruned=[0, 1], shared={1: 0})
    assert back(tried(pruned, CAT)) == {}
    found = back(tried(pruned, DOG))
    assert found["as it stands"] == ["score", "trajectory"]


def test_a_picture_that_comes_back_under_a_paraphrase_alone_is_found_and_named() -> None:
    pruned = engine(words, pruned=[0, 2], shared={1: 0})
    found = tried(pruned, CAT)
    assert back(found) == {
        '"a photo of" before it': ["score", "trajectory"],
    }
    assert "trajectory" not in back(tried(pruned, DOG))


def test_what_the_original_does_not_memorize_cannot_come_back() -> None:
    plain = engine(words)
    unrelated = unrelated_ends(plain, ["sea"] * 16, SCHEDULE, Told())
    found = try_words(
        plain, plain, variations("the sea", [], 4, 0), QUICK, Judges(TAU, GATE, SCHEDULE, unrelated)
    )
    assert not found["memorized"]
    assert back(found) == {}


def test_the_budget_is_what_is_spent() -> None:
    original, pruned = engine(words), engine(words, pruned=[0, 1, 2])
    ends = unrelated_ends(original, ["sea"] * 16, SCHEDULE, Told())
    before, told = original.cost.samples, []
    list_ = variations(CAT, [], QUICK.variations, 0)
    found = try_words(original, pruned, list_, QUICK, Judges(TAU, GATE, SCHEDULE, ends), told.append)
    spent = original.cost.samples - before + pruned.cost.samples
    assert sum(told) == spent == samples_of(QUICK, len(found["words"]), SCHEDULE)


def test_words_that_the_model_reads_as_the_same_text_are_one_attempt() -> None:
    pruned = engine(words, pruned=[0, 1], shared={1: 0})
    found = tried(pruned, CAT)["words"]
    assert found[0]["place"] == 0
    assert len(found) == 3, "a cat, a photo of one, and neither"
