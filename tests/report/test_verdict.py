"""What a report's figures come to: sentences, from made-up figures."""

from typing import Any

import pytest
from test_report import make_data

from nemo_prune.report.render import to_html, to_markdown, write_card
from nemo_prune.report.verdict import damage, near_text, not_judged, notes, outlook, summary, verdict


def with_prompts(*prompts: tuple[str, int | None], images: int = 2) -> dict[str, Any]:
    """Data of prompts by (status, pictures near after pruning; None: not judged)."""
    data = make_data()
    first = data["prompts"][0]
    data["prompts"] = []
    for index, (status, near) in enumerate(prompts):
        pictures: dict[str, Any] = {"seeds_before": {"ms_ssim": 0.2}}
        if near is not None:
            levels = {"consensus": {"edges": 0.4}}
            pictures |= {"near_before": images, "near_after": near, "near_above": levels}
        data["prompts"].append(first | {"index": index, "status": status, "pictures": pictures})
    data["pictures"]["images"] = images
    return data


def test_pictures_that_were_not_judged_are_counted_and_named() -> None:
    data = with_prompts(*[("suppressed", 0)] * 5, ("replicated", 3), ("suppressed", None), images=4)
    text = verdict(data)
    assert text.startswith("6 of 7 memorized prompts suppressed; 1 still drawn though")
    assert "3 of 24 pictures still near the memorized picture, 4 not judged;" in text
    assert not_judged(data) == [6]
    assert "Pictures of prompt 6 could not be judged" in " ".join(notes(data))
    assert [near_text(entry, data) for entry in data["prompts"][4:]] == [
        "0 of 4", "3 of 4", "not judged"
    ]  # fmt: skip
    assert outlook(with_prompts(("suppressed", 0), ("suppressed", None))) == "open"
    for page in (to_html(data, {"prompts": {}, "ordinary": {}}), to_markdown(data, {})):
        assert "not judged" in page
        assert "3 of 4" in page
        assert "replicated" in page


def test_what_was_not_suppressed_is_counted_in_the_verdict() -> None:
    rows = [("suppressed", 0), *[("not removable", 2)] * 3, ("still memorized", 2)]
    text = verdict(with_prompts(*rows))
    assert text.startswith("1 of 5 memorized prompts suppressed; 3 not removable; 1 still memorized; ")


def test_no_pictures_at_all_is_said() -> None:
    data = with_prompts(("suppressed", None), images=0) | {"ordinary": []}
    assert "; pictures not judged;" in verdict(data)
    assert notes(data) == [], "nobody asked for any"


@pytest.mark.parametrize(
    ("drift", "ratio", "damaged"),
    [(0.32, 2.3, True), (0.32, 1.4, False), (0.04, 9.0, False), (0.32, None, True)],
)
def test_drift_is_damage_if_it_is_large_and_well_above_the_control(
    drift: float, ratio: float | None, damaged: bool
) -> None:
    data = with_prompts(("suppressed", 0))
    data["drift"] |= {"pruned": drift, "ratio": ratio}
    assert bool(damage(data)) == damaged
    assert ("damage: ordinary prompts drift 32.00 %" in verdict(data)) == damaged
    assert (outlook(data) == "unsettled") == damaged
    assert any(note.startswith("Damage: ordinary prompts drift 32.00 %") for note in notes(data)) == (
        damaged
    )


@pytest.mark.parametrize(("same", "damaged"), [(0.5, True), (0.74, True), (0.76, False), (1, False)])
def test_ordinary_pictures_that_change_as_another_seed_would_change_them_are_damage(
    same: float, damaged: bool
) -> None:
    data = with_prompts(("suppressed", 0))
    pictures = data["ordinary"][0]["pictures"]
    pictures["before_after"] = {"ms_ssim": same}
    pictures["seeds_before"] = {"ms_ssim": 0.5}
    assert bool(damage(data)) == damaged
    assert (f"another seed's ({same:.2f} alike before" in verdict(data)) == damaged
    pictures["seeds_before"] = {}
    assert not damage(data), "one seed a prompt says nothing"


def test_damage_stands_in_every_form(tmp_path: Any) -> None:
    data = with_prompts(("suppressed", 0))
    data["drift"] |= {"pruned": 0.32, "ratio": 2.3}
    write_card(data, tmp_path / "card.md")
    for text in (to_html(data, {"prompts": {}, "ordinary": {}}), to_markdown(data, {}),
                 (tmp_path / "card.md").read_text()):  # fmt: skip
        assert "Damage: ordinary prompts drift 32.00 %, 2.30 times what random neurons do." in text


def test_ordinary_prompts_above_the_gate_are_named() -> None:
    data = make_data()
    one = data["ordinary"][0] | {"score_before": 0.3}
    data["ordinary"] = [one | {"index": i} for i in range(4)]
    assert not [note for note in notes(data) if "Above the gate" in note]
    data["ordinary"][1]["score_before"] = data["ordinary"][3]["score_before"] = 0.61
    assert (
        "Above the gate (0.500) in the original: ordinary prompts 1, 3 of 4; the calibration may not "
        "fit this model."
    ) in notes(data)


@pytest.mark.parametrize(("pictures", "said"), [(2, True), (8, True), (9, False), (12, False)])
def test_a_level_set_by_few_ordinary_pictures_is_called_unreliable(pictures: int, said: bool) -> None:
    data = with_prompts(("replicated", 1))
    data["pictures"]["level_from"] = {"prompts": 3, "pictures": pictures}
    found = [note for note in notes(data) if note.startswith("What is near was told by")]
    assert bool(found) == said
    if said:
        assert f"{pictures} pictures of 3 ordinary prompts" in found[0]
        assert f"in 1 of {pictures + 1} cases" in found[0]
    data["prompts"][0]["pictures"].pop("near_after")
    data["prompts"][0]["pictures"].pop("near_before")
    assert not [note for note in notes(data) if note.startswith("What is near")], "nothing was judged"


@pytest.mark.parametrize(
    ("prompts", "wanted"),
    [
        ([("suppressed", 0)] * 3,
         "For these 3 captions the memorized picture is no longer drawn (2 starting noises each)."),
        ([("suppressed", 0), ("not memorized", None)],
         "For this caption the memorized picture is no longer drawn (2 starting noises each)."),
        ([("suppressed", 0), ("replicated", 1), ("still memorized", 2), ("not removable", 0),
          ("suppressed", None)],
         "For these 5 captions the memorized picture is no longer drawn for 1 (2 starting noises each); "
         "still drawn: captions 1, 2; still memorized by the score: caption 3; suppressed by the score, "
         "pictures not judged: caption 4."),
        ([("replicated", 2)],
         "For this caption no memorized picture was shown to be gone; still drawn: caption 0."),
        ([("not memorized", None)] * 2, "None of these 2 captions was memorized."),
    ],
)  # fmt: skip
def test_a_card_opens_with_one_plain_sentence(
    prompts: list[tuple[str, int | None]], wanted: str, tmp_path: Any
) -> None:
    data = with_prompts(*prompts)
    assert summary(data) == wanted
    write_card(data, tmp_path / "card.md")
    heading, _, sentence, *_ = (tmp_path / "card.md").read_text().splitlines()
    assert heading.startswith("## ")
    assert sentence.startswith(wanted)
    assert "erased" not in sentence


def test_a_trajectory_gets_a_column_where_any_prompt_has_one() -> None:
    data = with_prompts(("suppressed", 0), ("suppressed", 0))
    album: dict[str, Any] = {"prompts": {}, "ordinary": {}}
    for page in (to_html(data, album), to_markdown(data, {})):
        assert "trajectory r" not in page
    data["prompts"][1]["trajectory"] = 0.123
    text = to_markdown(data, {})
    assert "trajectory r" in to_html(data, album)
    assert to_html(data, album).count("0.123") == 1 + 1, "and the edges of ordinary pictures"
    rows = [line for line in text.splitlines() if line.startswith(("| 0 |", "| 1 |"))]
    assert [row.split("|")[6].strip() for row in rows] == ["", "0.123"]
