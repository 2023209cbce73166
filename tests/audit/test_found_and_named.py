"""What an audit says of models that are known to have kept something, from attempt to sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from planted import Enlarging, engine
from test_embeddings import EFFORT
from test_outcome import QUIET
from test_triggers import GATE, SCHEDULE, TAU
from tiny import Told

from nemo_prune.audit import outcome, strength
from nemo_prune.audit.audit import _words, entries
from nemo_prune.audit.chasing import Rounds, judged, published
from nemo_prune.audit.finished import Finished
from nemo_prune.audit.inputs import AuditInputs, Models
from nemo_prune.audit.mending import Mending
from nemo_prune.audit.neurons import Locator
from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.options import Options

CAT, DOG = "a zyzzyva on a leaf of grass", "a quokka that is on every poster"
SHARED = {1: 0, 3: 0, 4: 2}  # channels 0, 1 and 3 mean one picture, 2 and 4 another


def words(text: str) -> Mapping[int, float]:
    """The captions drive a neuron each; a photo of the first another; 3 and 4 no words drive."""
    drives = {}
    if "zyzzyva" in text:
        drives = {1: 6.0} if "photo" in text else {0: 6.0}
    if "quokka" in text:
        drives[2] = 6.0
    return drives


class PlantedModels(Models):
    """Models of which the pruned one lacks some rows."""

    schedule = SCHEDULE
    codec = Enlarging()

    def __init__(self, pruned: Sequence[int]) -> None:
        absent = cast(Checkpoint, None)
        inputs = AuditInputs(
            absent, absent, (CAT, DOG), Options(), TAU, GATE, "this test", "quick",
            places=[("m.txt", 1), ("m.txt", 2)],
        )  # fmt: skip
        super().__init__(inputs, [Neuron("value", row) for row in pruned], Told())
        self.original = engine(words, shared=SHARED)
        self.pruned = engine(words, pruned, SHARED)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    chase = replace(EFFORT.chase, random=0)
    monkeypatch.setitem(strength.EFFORTS, "quick", replace(EFFORT, variations=8, chase=chase))


def audited(pruned: Sequence[int]) -> tuple[dict[str, Any], Mending]:
    """What the report holds of words and embeddings."""
    models, finished = PlantedModels(pruned), Finished(None)
    found = _words(models, finished)
    assert [one["memorized"] for one in found.values()] == [True, True]
    rounds = Rounds(models, list(found), finished)
    first = rounds.run(0)
    told = published(first)
    data = {
        **QUIET, "prompts": entries(models.inputs, found, {}, told["prompts"]),
        "controls": told["controls"],
    }  # fmt: skip
    return data, Mending(models, found, rounds, finished)


def test_where_all_is_gone_nothing_comes_back_and_every_attempt_is_counted() -> None:
    data, _ = audited(range(5))
    tried = sum(len(entry["words"]) for entry in data["prompts"])
    assert outcome.verdict(data) == (
        f"No replication found in {tried + 2} attempts of these kinds: {tried} wordings and 2 optimized "
        f"embeddings (25 steps at most), for 2 captions."
    )
    assert not list(outcome.findings(data))
    every = [a for one in data["controls"] for a in one["attacks"]]
    every += [a for entry in data["prompts"] for a in outcome.attacks_of(entry)]
    assert {one["by"] for one in every} == {"pictures"}, "controls are judged as the memorized are"
    assert [row for one in every for row in one["curve"] if row.get("drawn") == row.get("near") == 2]
    (line,) = [note for note in outcome.notes(data) if note.startswith("Embeddings:")]
    assert "memorized pictures in the pruned model: 0 of 2 drawn" in line
    assert "control, the same in the original: 2 of 2 drawn, after 0, 0 steps" in line
    assert "control, ordinary pictures in the pruned model: 0 of 1 drawn" in line


def test_a_caption_whose_row_is_still_there_is_named() -> None:
    data, _ = audited([0, 1, 3, 4])  # 2 was restored
    assert outcome.verdict(data).startswith(
        "NOT ERASED: the picture of 1 of 2 prompts came back (prompt 1)"
    )
    (line,) = outcome.findings(data)
    assert line.startswith("m.txt:2: prompt 1 came back from ")
    assert "as it stands" in line
    assert "the caption's own embedding, after 0 steps (controls: never)" in line


def test_a_paraphrase_is_named() -> None:
    data, _ = audited([0, 2, 3, 4])  # 1 was forgotten, which a photo of it drives
    lines = list(outcome.findings(data))
    assert lines[0].startswith("m.txt:1: prompt 0 came back from 1 of ")
    assert '"a photo of" before it' in lines[0]


def test_what_only_an_embedding_brings_back_is_named_with_its_budget_and_its_controls() -> None:
    data, _ = audited([0, 1, 2, 4])  # 3 was never found, since no words drive it
    assert outcome.verdict(data).startswith(
        "NOT ERASED: the picture of 1 of 2 prompts came back (prompt 0), from 1 of "
    )
    assert "1 of 2 optimized embeddings" in outcome.verdict(data)
    assert list(outcome.findings(data)) == [
        "m.txt:1: prompt 0 came back by 1 of 1 optimized embedding: the caption's own embedding, after "
        "4 steps (controls: never)"
    ]


def test_an_embedding_that_comes_no_earlier_than_a_control_does_not_count() -> None:
    def attack(back: int | None) -> dict[str, Any]:
        return {"model": "pruned", "start": "the caption's own embedding", "back": back, "curve": [],
                "embedding": None, "pictures": []}  # fmt: skip

    def back(memorized: int | None, *controls: int | None) -> bool:
        one = {"judged": True, "attacks": [attack(memorized)]}
        found = judged({0: one}, [{"kind": "unseen", "attacks": [attack(c)]} for c in controls])
        return bool(found["prompts"][0]["attacks"][0]["came_back"])

    assert back(10, None, 25)
    assert back(0, 10)
    assert not back(10, None, 10)
    assert not back(25, 10)
    assert not back(None, None)


def test_hardening_switches_off_what_the_embedding_uses_and_attacks_again() -> None:
    _, mending = audited([0, 1, 2, 4])
    first = mending.rounds.run(0)
    asked: list[Any] = []

    def further(trigger: Any, off: frozenset[Neuron]) -> tuple[Neuron, ...]:
        asked.append((trigger.index, trigger.how, sorted(neuron.row for neuron in off)))
        return (Neuron("value", 3),)

    locator = SimpleNamespace(further=further, drift=lambda off: len(off) / 100)
    mending.locator = cast(Locator, locator)
    rounds = mending.harden(first, 5)
    assert asked == [(0, "an embedding of 4 steps from the caption's own embedding", [0, 1, 2, 4])]
    assert [(one["round"], one["neurons"], one["drift"]) for one in rounds] == [
        (0, 0, 0.04),
        (1, 1, 0.05),
    ]
    assert rounds[0]["prompts"][0]["attacks"][0]["came_back"]
    assert not rounds[1]["prompts"][0]["attacks"][0]["came_back"], "no row of the picture is left"
    notes = outcome.notes({**QUIET, "hardened": rounds})
    assert any("round 1: 1 neuron off besides, ordinary prompts drift by 5.0%" in one for one in notes)
    assert mending.repair(rounds) == (Neuron("value", 3),)
