"""What an audit says, as a line, a page, JSON and JUnit."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import pytest

from nemo_prune.audit import outcome
from nemo_prune.audit.junit import audit_suite
from nemo_prune.audit.render import write_audit
from nemo_prune.errors import OptionError


def word(how: str, kind: str = "prefix", back: tuple[str, ...] = ()) -> dict[str, Any]:
    original = {"score": 0.9, "alike": 0.9, "triggers": True}
    return {"kind": kind, "how": how, "score": 0.2, "alike": 0.1, "original": original,
            "remaining": None, "back": list(back)}  # fmt: skip


def entry(index: int, *words: dict[str, Any], memorized: bool = True) -> dict[str, Any]:
    return {"index": index, "memorized": memorized, "judged": memorized, "score_original": 0.9,
            "agreement": 0.9, "unrelated": 0.1, "words": list(words), "file": "m.txt",
            "line": index + 1, "pictures": None, "embeddings": None}  # fmt: skip


def data(*entries: dict[str, Any]) -> dict[str, Any]:
    files = {
        name: {"path": f"{name}.safetensors", "sha256": "0" * 64} for name in ("original", "pruned")
    }
    limits = list(outcome.LIMITS)
    return {"version": "1", "created": "2026-01-01", "seconds": 1.0, "neurons": 3, **files,
            "options": {"strength": "quick", "tau": 0.4, "gate": 0.5, "score_seeds": 4,
                        "draw_seeds": 4, "drawn": 4,
                        "chase": {"budgets": [0, 10, 25], "batch": 4, "rate": 0.1, "pictures": 2}},
            "prompts": list(entries), "no_pictures": None, "limits": limits,
            "controls": [], "overlaps": [], "hardened": [], "repaired": None,
            "cost": {"samples": 9, "embedding_samples": 0, "search_samples": 0,
                     "picture_samples": 0}}  # fmt: skip


QUIET = data(entry(0, word("a"), word("b")), entry(1, word("a"), memorized=False))
LOUD = data(
    entry(0, word("a"), word("b")),
    entry(1, word("a"), word('"a <b>" before it', back=("score",)), word("c", back=("trajectory",))),
)


def test_the_verdict_counts_what_was_tried_and_says_what_came_back() -> None:
    assert outcome.verdict(QUIET).startswith("No replication found in 2 attempts of these kinds: ")
    assert "1 further prompt had nothing to bring back" in outcome.verdict(QUIET)
    assert outcome.verdict(LOUD).startswith(
        "NOT ERASED: the picture of 1 of 2 prompts came back (prompt 1), from 2 of 5 attempts"
    )
    assert list(outcome.findings(QUIET)) == []
    assert list(outcome.findings(LOUD)) == [
        'm.txt:2: prompt 1 came back from 2 of 3 wordings: "a <b>" before it; c'
    ]


def test_the_page_holds_the_verdict_and_no_text_as_markup(tmp_path: Path) -> None:
    write_audit(LOUD, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "NOT ERASED: the picture of 1 of 2" in page
    assert 'class="verdict back"' in page
    assert "<b>" not in page
    assert page.lower().count("erased") == page.lower().count("not erased")
    write_audit(QUIET, tmp_path / "b.html")
    assert 'class="verdict"' in (tmp_path / "b.html").read_text()


def test_pictures_that_are_near_count_and_are_shown(tmp_path: Path) -> None:
    near = {"seed": 1, "by": ["region"], "picture": "data:image/webp;base64,AAAA"}
    styles = [{"drawn": "ddim, 20 steps, guidance 7", "count": 8, "near": [near]},
              {"drawn": "euler", "count": 2, "near": []}]  # fmt: skip
    quiet = {"consensus": [], "target": ["foreground", "region"]}
    one = {"judged": True, "levels": {}, "control": [4, 4], "reference": "data:image/webp;base64,BBBB",
           "silent": quiet, "styles": styles, "worded": {}}  # fmt: skip
    drawn = data({**entry(0, word("a")), "pictures": one})
    assert outcome.verdict(drawn).startswith(
        "NOT ERASED: the picture of 1 of 1 prompt came back (prompt 0), from 1 of 11 attempts"
    )
    assert list(outcome.findings(drawn)) == [
        "m.txt:1: prompt 0 came back in 1 of 10 pictures: ddim, 20 steps, guidance 7 (1 of 8)"
    ]
    assert "4 of 4 pictures by the original" in " ".join(outcome.notes(drawn))
    write_audit(drawn, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert near["picture"] in page
    told = "foreground, region (the training picture)"
    assert told in page
    assert f"prompt 0: {told}." in " ".join(outcome.notes(drawn))
    unjudged = data({**entry(0, word("a")), "pictures": one | {"judged": False}})
    assert outcome.verdict(unjudged).startswith("No replication found in 1 attempt ")
    assert "Pictures not judged" in " ".join(outcome.notes(unjudged))


def test_json_holds_the_data_and_other_names_are_refused(tmp_path: Path) -> None:
    write_audit(LOUD, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {**LOUD, "verdict": outcome.verdict(LOUD)}
    with pytest.raises(OptionError, match=r"written as .html or .json"):
        write_audit(LOUD, tmp_path / "a.pdf")


def test_junit_fails_for_what_came_back_and_skips_what_was_not_memorized() -> None:
    suite = audit_suite(LOUD, ["x", "y"])
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    (failure,) = suite.iter("failure")
    assert "came back from 2 of 3 wordings" in (failure.text or "")
    assert len(list(audit_suite(QUIET, ["x", "y"]).iter("skipped"))) == 1
    assert "NOT ERASED" in xml.tostring(suite, encoding="unicode")


def attack(model: str, back: int | None, start: str = "the caption's own embedding") -> dict[str, Any]:
    steps = [steps for steps in (0, 10, 25) if steps <= (25 if back is None else back)]
    curve = [{"steps": s, "remaining": 0.9 if s == back else 0.1, "mean": 0.1} for s in steps]
    return {"model": model, "start": start, "curve": curve, "back": back, "controls_back": None,
            "came_back": model == "pruned" and back is not None, "by": "pictures",
            "pictures": ["data:image/webp;base64,CCCC"], "pictures_after": steps[-1]}  # fmt: skip


def test_embeddings_are_told_with_their_curves_and_controls(tmp_path: Path) -> None:
    attacks = [attack("pruned", 10), attack("original", 0)]
    one = {**entry(0, word("a")), "embeddings": {"judged": True, "target": "training picture",
           "picture": None, "chance": 0.1, "replica": 0.9, "attacks": attacks}}  # fmt: skip
    controls = [{"kind": "unseen", "number": 0, "given": True, "picture": None,
                 "attacks": [attack("pruned", None)]}]  # fmt: skip
    overlap = {"index": 0, "word": None, "how": "an embedding <i>", "neurons": 7, "caption": 3,
               "shared": 2, "removed": 1, "by": "score", "rows": []}  # fmt: skip
    found = {**data(one), "controls": controls, "overlaps": [overlap]}
    assert outcome.verdict(found) == (
        "NOT ERASED: the picture of 1 of 1 prompt came back (prompt 0), from 1 of 2 attempts: 0 of 1 "
        "wording and 1 of 1 optimized embedding (25 steps at most), for 1 caption."
    )
    assert list(outcome.findings(found)) == [
        "m.txt:1: prompt 0 came back by 1 of 1 optimized embedding: the caption's own embedding, after "
        "10 steps (controls: never)"
    ]
    write_audit(found, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert page.count("<polyline") == 2 * 3, "of all prompts, and of this one"
    assert 'Prompt 0 <span class="soft">m.txt:1</span>: not found in 1 wording<' in page
    assert "control, pictures it never saw in the pruned model: 0 of 1 drawn" in page
    assert "2 of them also among the caption" in page
    assert "<i>" not in page
    assert page.count("base64,CCCC") == 3
    controls[0]["attacks"] = [attack("pruned", 10)]
    attacks[0] |= {"controls_back": 10, "came_back": False}
    assert outcome.verdict(found).startswith("No replication found in 2 attempts")
    assert any("no earlier than a control was drawn" in note for note in outcome.notes(found))


def test_what_trajectories_say_and_pictures_do_not_is_told_and_not_counted(tmp_path: Path) -> None:
    quiet, alone = attack("pruned", None), attack("pruned", 10, "random embedding 1")
    quiet["curve"][1] |= {"remaining": 0.91, "drawn": 2, "near": 0}
    alone["by"] = "trajectories"
    one = {**entry(0, word("a")), "embeddings": {"judged": True, "target": "training picture",
           "picture": None, "chance": 0.1, "replica": 0.9, "attacks": [quiet, alone]}}  # fmt: skip
    controls = [{"kind": "unseen", "number": 0, "given": True, "picture": None,
                 "attacks": [attack("pruned", None)]}]  # fmt: skip
    found = {**data(one), "controls": controls}
    assert list(outcome.findings(found)) == [
        "m.txt:1: prompt 0 came back by 1 of 2 optimized embeddings: random embedding 1, after 10 "
        "steps, by trajectories alone (controls: never)"
    ]
    how = "by trajectories at 10 steps, not in pictures"
    notes = " ".join(outcome.notes(found))
    assert f"prompt 0, the caption's own embedding, {how}." in notes
    assert "in the pruned model: 1 of 2 drawn, after 10 steps, 1 more by trajectories, not in" in notes
    write_audit(found, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert page.count(how) == 2, "among the notes and in the table"
    assert "10: 0.910 (0 of 2 pictures near)" in page
    one["embeddings"] |= {"attacks": [quiet]}
    assert outcome.verdict(found).startswith("No replication found in 2 attempts")
    write_audit(found, tmp_path / "b.html")
    assert f"not drawn by any embedding, but {how}<" in (tmp_path / "b.html").read_text()
