"""What a report's figures come to, in sentences that are the same in every form. Imports no torch.

`Data` is the plain data of a `Report`. What counts as damage to ordinary prompts:

- drift of cross-attention outputs above 5 % *and* above 1.5 times that of as many random neurons
  (either alone is what any removal of that size, or of few neurons, does), or
- pictures that changed more than halfway to what another seed would draw: the MS-SSIM of the same seed
  before and after lies below the middle between that of two seeds before pruning and 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from nemo_prune.checkpoint.statuses import Status

Data = Mapping[str, Any]
ENOUGH_SEEDS = 8
"""Pictures a prompt that a verdict takes: what comes back from two of eight is not in fewer."""
ENOUGH_ORDINARY = 9
"""Ordinary pictures that a level of nearness takes: the largest of n likenesses is exceeded by a further
unrelated one, of as many alike, in 1 of n + 1 cases, so by fewer than one in ten from nine on. The level
lies above that largest one, so this is what can be said without knowing how likenesses are spread."""
_DRIFT, _RATIO = 0.05, 1.5
_TOLD_BY = {"name": "by name", "order": "by order", "alike": "by likeness"}
_NAMED = 10  # training pictures that a note names


def verdict(data: Data) -> str:
    """What a reader needs to know first, in one line."""
    memorized = memorized_prompts(data)
    if not memorized:
        parts = [f"None of {_count(len(data['prompts']), 'prompt')} is memorized"]
    else:
        gone, drawn = (
            sum(entry["status"] == status for entry in memorized)
            for status in (Status.SUPPRESSED, Status.REPLICATED)
        )
        parts = [f"{gone} of {_count(len(memorized), 'memorized prompt')} suppressed"]
        if drawn:
            parts.append(f"{drawn} still drawn though suppressed by the score (replicated)")
        for status in (Status.NOT_REMOVABLE, Status.STILL_MEMORIZED):
            if left := sum(entry["status"] == status for entry in memorized):
                parts.append(f"{left} {status}")
        unknown = len(not_judged(data)) * data["pictures"]["images"]
        if (near := pictures_near(data)) is not None:
            judged = f"{near[0]} of {_count(near[1], 'picture')} still near the memorized picture"
            parts.append(judged + (f", {unknown} not judged" if unknown else ""))
        else:
            parts.append("pictures not judged")
    drift = data["drift"]
    if drift is not None and data["neurons"]:
        parts.append(("damage: " if _drifts_far(drift) else "") + _drift_clause(drift))
    if changed := _changed_clause(data):
        parts.append(f"damage: {changed}")
    parts.append(f"{_count(data['neurons'], 'neuron')} removed")
    return "; ".join(parts) + "."


def summary(data: Data) -> str:
    """The plain sentence that a model's card opens with; prompts by number only."""
    memorized = memorized_prompts(data)
    if not memorized:
        return f"None of these {_count(len(data['prompts']), 'caption')} was memorized."
    unseen = not_judged(data)
    groups: dict[str, list[int]] = {"gone": [], "drawn": [], "above": [], "unseen": []}
    for entry in memorized:
        if entry["status"] == Status.REPLICATED or (entry.get("pictures") or {}).get("near_after"):
            group = "drawn"
        elif entry["status"] != Status.SUPPRESSED:
            group = "above"
        else:
            group = "unseen" if entry["index"] in unseen else "gone"
        groups[group].append(entry["index"])
    gone = groups["gone"]
    these = "this caption" if len(memorized) == 1 else f"these {len(memorized)} captions"
    if not gone:
        parts = [f"For {these} no memorized picture was shown to be gone"]
    else:
        some = "" if len(gone) == len(memorized) else f" for {len(gone)}"
        seeds = f"{_count(data['pictures']['images'], 'starting noise')} each"
        parts = [f"For {these} the memorized picture is no longer drawn{some} ({seeds})"]
    for group, what in (
        ("drawn", "still drawn"),
        ("above", "still memorized by the score"),
        ("unseen", "suppressed by the score, pictures not judged"),
    ):
        if groups[group]:
            parts.append(f"{what}: {_numbered('caption', groups[group])}")
    return "; ".join(parts) + "."


def notes(data: Data) -> list[str]:
    """Sentences on what must not be overlooked: damage, thresholds that may not fit, no judgement."""
    found = [f"Damage: {clause}." for clause in damage(data)]
    gate = data["options"]["gate"]
    above = [entry["index"] for entry in data["ordinary"] if entry["score_before"] > gate]
    if above:
        found.append(
            f"Above the gate ({gate:.3f}) in the original: ordinary {_numbered('prompt', above)} of "
            f"{len(data['ordinary'])}; the calibration may not fit this model."
        )
    told = data.get("targets") or {"pictures": ()}
    if doubtful := [one["file"] for one in told["pictures"] if one["doubt"] is not None]:
        found.append(
            f"Training pictures that were not used, as it is doubtful whose they are: "
            f"{', '.join(doubtful[:_NAMED])}"
            + (f" and {len(doubtful) - _NAMED} more." if len(doubtful) > _NAMED else ".")
        )
    told_from = data["pictures"].get("level_from", {}).get("pictures", 0)
    if pictures_near(data) is not None and 0 < told_from < ENOUGH_ORDINARY:
        found.append(
            f"What is near was told by {_count(told_from, 'picture')} of "
            f"{_count(data['pictures']['level_from']['prompts'], 'ordinary prompt')}: an unrelated "
            f"picture may exceed the nearest of so few in 1 of {told_from + 1} cases, so some called "
            f"near may not be; {ENOUGH_ORDINARY} or more make it less than 1 in 10."
        )
    if data["pictures"]["images"] and "skipped" not in data["pictures"] and (unseen := not_judged(data)):
        found.append(
            f"Pictures of {_numbered('prompt', unseen)} could not be judged: the original's pictures of "
            f"different seeds are no more alike than ordinary prompts' pictures are by chance."
        )
    return found


def target_lines(data: Data) -> list[str]:
    """What was matched with what, a line each, and what was not used."""
    told = data.get("targets") or {"pictures": ()}
    lines = []
    for one in told["pictures"]:
        alike = one["likeness"]
        how = "nothing was drawn for it"
        if alike is not None:
            how = ", ".join(f"{name} {value:.3f}" for name, value in alike.items())
            how += " to the unpruned model's nearest picture"
        if one["doubt"] is not None:
            whose = f"prompt {one['prompt']}, " if one["prompt"] is not None else ""
            lines.append(f"training picture {one['file']}: not used; {whose}{one['doubt']} ({how})")
        else:
            whose = f"prompt {one['prompt']}, {_TOLD_BY[told['match']]}"
            lines.append(f"training picture {one['file']}: {whose} ({how})")
    return lines


def damage(data: Data) -> list[str]:
    """What pruning did to ordinary prompts that deserves the name (see the module), with figures."""
    drift = data["drift"]
    far = [_drift_clause(drift)] if drift is not None and _drifts_far(drift) else []
    changed = _changed_clause(data)
    return [*far, *([changed] if changed else [])]


def memorized_prompts(data: Data) -> list[Data]:
    """The entries of prompts that are memorized in the original."""
    return [entry for entry in data["prompts"] if entry["status"] != Status.NOT_MEMORIZED]


def pictures_near(data: Data, when: str = "near_after") -> tuple[int, int] | None:
    """(pictures near what was memorized, pictures judged); None if none could be judged.

    when: "near_before" or "near_after" pruning.
    """
    judged = [
        entry["pictures"][when] for entry in data["prompts"] if when in (entry.get("pictures") or {})
    ]
    return (sum(judged), len(judged) * data["pictures"]["images"]) if judged else None


def not_judged(data: Data) -> list[int]:
    """The memorized prompts whose pictures were not, or could not be, judged."""
    return [
        entry["index"]
        for entry in memorized_prompts(data)
        if "near_after" not in (entry.get("pictures") or {})
    ]


def near_text(entry: Data, data: Data) -> str:
    """How many of a prompt's pictures are near after pruning, in a table's cell."""
    if entry["status"] == Status.NOT_MEMORIZED:
        return "–"
    pictures = entry.get("pictures") or {}
    if "near_after" not in pictures:
        return "not judged"
    return f"{pictures['near_after']} of {data['pictures']['images']}"


def outlook(data: Data) -> Literal["settled", "open", "unsettled"]:
    """ "unsettled": something must be acted on; "open": nothing known, but not all was judged."""
    near = pictures_near(data)
    statuses = {entry["status"] for entry in data["prompts"]}
    if not statuses <= {Status.SUPPRESSED, Status.NOT_MEMORIZED} or (near and near[0]) or damage(data):
        return "unsettled"
    return "open" if not_judged(data) else "settled"


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _drift_clause(drift: Data) -> str:
    ratio = f", {drift['ratio']:.2f} times what random neurons do" if drift["ratio"] is not None else ""
    return f"ordinary prompts drift {percent(drift['pruned'])}{ratio}"


def _drifts_far(drift: Data) -> bool:
    return drift["pruned"] > _DRIFT and (drift["ratio"] is None or drift["ratio"] > _RATIO)


def _changed_clause(data: Data) -> str | None:
    pictures = [entry["pictures"] for entry in data["ordinary"] if entry.get("pictures")]
    pairs = [
        (one["before_after"]["ms_ssim"], one["seeds_before"]["ms_ssim"])
        for one in pictures
        if one.get("before_after") and one.get("seeds_before")
    ]
    if not pairs:
        return None
    same, between = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    if same >= (between + 1) / 2:
        return None
    return (
        f"ordinary pictures changed more than halfway to another seed's ({same:.2f} alike before and "
        f"after, two seeds {between:.2f}; MS-SSIM)"
    )


def _numbered(what: str, numbers: Sequence[int]) -> str:
    return f"{what}{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
