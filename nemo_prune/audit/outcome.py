"""What an audit comes to, in sentences that are the same in every form. Imports no torch.

`Data` is the plain data of an `Audit`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nemo_prune.audit.words import AS_IT_STANDS
from nemo_prune.report.junit import one_line

Data = Mapping[str, Any]
_KINDS = ("wording", "picture", "optimized embedding")

LIMITS = (
    "Not found is not the same as not there, and suppressed is not erased: other words, other noises, "
    "or an embedding optimized for longer may still bring it back (arXiv 2507.16880).",
    "Words were varied by rule. Nobody who knows the picture, and no language model, wrote any of them.",
    "The score is a screen at one early timestep. A variation that it calls harmless was drawn only if "
    "it was among the highest; of the others a picture that comes later would have been missed.",
    "Pictures were drawn in some styles, from some noises. Foreground and background were told apart by "
    "their colours alone, as what is least like the border of the picture.",
    "An embedding counts only if whole pictures show what it aimed at, before every control. A control "
    "that is there as early says that so many steps draw anything, not that the memory is gone.",
    "Fine-tuning, merging with an unpruned model, or a LoRA on the value layers was not tried.",
)


def came_back(entry: Data) -> bool:
    """Whether a prompt's picture did, by whatever attempt."""
    return _worked(entry) > 0


def _worked(entry: Data) -> int:
    """How many attempts brought a prompt's picture back."""
    return len(successes(entry)) + near_pictures(entry) + len(chased(entry, "came_back"))


def attacks_of(entry: Data) -> list[Data]:
    """The embeddings that were optimized towards a prompt's picture, in both models."""
    found: list[Data] = entry["embeddings"]["attacks"] if entry["embeddings"] else []
    return found


def attacks(entry: Data) -> list[Data]:
    """Those in the pruned model."""
    return [one for one in attacks_of(entry) if one["model"] == "pruned"]


def chased(entry: Data, key: str) -> list[Data]:
    """Those of them of which something holds, such as "came_back"."""
    return [one for one in attacks(entry) if one[key]]


def alarms(attack: Data) -> list[int]:
    """After how many steps trajectories said that the picture was there, and whole pictures did not."""
    return [row["steps"] for row in attack["curve"] if row.get("near") == 0]


def unconfirmed(attack: Data) -> str:
    """The same in words; empty where the picture was there, or trajectories never said so."""
    steps = alarms(attack) if attack["back"] is None else []
    return f"by trajectories at {', '.join(map(str, steps))} steps, not in pictures" if steps else ""


def successes(entry: Data) -> list[Data]:
    """The variations of a prompt that brought its picture back."""
    return [word for word in entry["words"] if word["back"]]


def near_pictures(entry: Data) -> int:
    """How many more pictures of a prompt are near what was memorized."""
    return sum(len(style["near"]) for style in _styles(entry))


def pictures(entry: Data) -> int:
    """How many more pictures of a prompt were drawn and judged."""
    return sum(style["count"] for style in _styles(entry))


def _styles(entry: Data) -> list[Data]:
    drawn = entry["pictures"]
    return drawn["styles"] if drawn and drawn["judged"] else []


def silent(entry: Data) -> str:
    """The parts of a prompt's pictures by which none can be called near, by reference."""
    drawn, names = entry["pictures"], {"consensus": "original's pictures", "target": "training picture"}
    rows = drawn["silent"].items() if drawn and drawn["judged"] else ()
    return ", ".join(f"{', '.join(parts)} (the {names[kind]})" for kind, parts in rows if parts)


def audited(data: Data) -> list[Data]:
    """The prompts that the original memorized: of the others there is nothing to bring back."""
    return [entry for entry in data["prompts"] if entry["memorized"]]


def attempts(data: Data) -> int:
    """How many attempts were made in all."""
    return sum(sum(_tried(entry)) for entry in audited(data))


def _tried(entry: Data) -> tuple[int, int, int]:
    """Wordings, pictures and embeddings that were tried of a prompt."""
    return len(entry["words"]), pictures(entry), len(attacks(entry))


def kinds(data: Data) -> list[dict[str, Any]]:
    """Of each kind of variation how many were tried, came back, and trigger the original itself."""
    tried, back, control = Counter[str](), Counter[str](), Counter[str]()
    for entry in audited(data):
        for word in entry["words"]:
            tried[word["kind"]] += 1
            back[word["kind"]] += bool(word["back"])
            control[word["kind"]] += word["original"]["triggers"]
    return [
        {"kind": kind, "tried": count, "back": back[kind], "original": control[kind]}
        for kind, count in tried.items()
    ]


def verdict(data: Data) -> str:
    """What a reader needs to know first, in one line that begins with the answer."""
    known = audited(data)
    back = [entry for entry in known if came_back(entry)]
    count = attempts(data)
    rest = len(data["prompts"]) - len(known)
    aside = f" {_count(rest, 'further prompt')} had nothing to bring back." if rest else ""
    if not back:
        return (
            f"No replication found in {_count(count, 'attempt')} of these kinds: {_kinds(data)}.{aside}"
        )
    worked = sum(map(_worked, back))
    named = ", ".join(str(entry["index"]) for entry in back)
    return (
        f"NOT ERASED: the picture of {len(back)} of {_count(len(known), 'prompt')} came back "
        f"(prompt{'s' * (len(back) > 1)} {named}), from {worked} of {_count(count, 'attempt')}: "
        f"{_kinds(data, back)}.{aside}"
    )


def _kinds(data: Data, back: Sequence[Data] = ()) -> str:
    """What was tried, by kind; of each how many worked, where any did."""
    known = audited(data)
    tried = [sum(column) for column in zip(*map(_tried, known), strict=True)]
    worked = [
        sum(len(successes(entry)) for entry in back),
        sum(map(near_pictures, back)),
        sum(len(chased(entry, "came_back")) for entry in back),
    ]
    parts = [
        (f"{good} of " if back else "") + _count(count, name)
        for count, good, name in zip(tried, worked, _KINDS, strict=True)
        if count
    ]
    steps = f" ({steps_tried(data)} steps at most)" if tried[2] else ""
    listed = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"{listed}{steps}, for {_count(len(known), 'caption')}"


def steps_tried(data: Data) -> int:
    """After how many steps the embeddings were looked at for the last time."""
    return int(max(data["options"]["chase"]["budgets"]))


def findings(data: Data) -> Iterator[str]:
    """A line for each prompt whose picture came back: from what."""
    for entry in audited(data):
        if not came_back(entry):
            continue
        place = f"{entry['file']}:{entry['line']}: " if "file" in entry else ""
        parts = []
        if found := successes(entry):
            named = [
                word["how"]
                + (f" ({word['text']})" if "text" in word and word["how"] != AS_IT_STANDS else "")
                for word in found
            ]
            count = _count(len(entry["words"]), "wording")
            parts.append(f"from {len(found)} of {count}: {'; '.join(named)}")
        if near := near_pictures(entry):
            named = [
                f"{style['drawn']} ({len(style['near'])} of {style['count']})"
                for style in _styles(entry)
                if style["near"]
            ]
            count = _count(pictures(entry), "picture")
            parts.append(f"in {near} of {count}: {'; '.join(named)}")
        if found := chased(entry, "came_back"):
            named = [f"{one['start']}, {_there(one)}" for one in found]
            count = _count(len(attacks(entry)), "optimized embedding")
            parts.append(f"by {len(found)} of {count}: {'; '.join(named)}")
        yield one_line(f"{place}prompt {entry['index']} came back {'; '.join(parts)}")


def _there(attack: Data) -> str:
    """When a picture was there, and when the controls were."""
    controls = attack["controls_back"]
    others = "never" if controls is None else f"after {controls}"
    alone = ", by trajectories alone" if attack["by"] == "trajectories" else ""
    return f"after {_count(attack['back'], 'step')}{alone} (controls: {others})"


def _embedding_notes(data: Data) -> Iterator[str]:
    known = audited(data)
    if aside := [str(e["index"]) for e in known if e["embeddings"] and not e["embeddings"]["judged"]]:
        yield (
            f"No embedding was optimized where the original's own pictures are no more like what was to "
            f"be drawn than unrelated ones: prompts {', '.join(aside)}."
        )
    late = [e for e in known for one in attacks(e) if one["back"] is not None and not one["came_back"]]
    if late:
        named = ", ".join(dict.fromkeys(str(entry["index"]) for entry in late))
        yield (
            f"{_count(len(late), 'optimized embedding')} drew the picture, no earlier than a control "
            f"was drawn, which is not counted: prompts {named}."
        )
    if doubted := [
        f"prompt {e['index']}, {a['start']}, {how}"
        for e in known for a in attacks(e) if (how := unconfirmed(a))
    ]:  # fmt: skip
        yield f"Not counted, since whole pictures do not show it: {'; '.join(doubted)}."
    if data["controls"]:
        yield f"Embeddings: {'; '.join(control_lines(data))}."


def control_lines(data: Data) -> Iterator[str]:
    """When each kind of picture was there, by optimized embeddings: figures side by side."""
    rows: list[tuple[str, list[Data]]] = [
        ("memorized pictures in the pruned model", _of_model(data, "pruned")),
        ("control, the same in the original", _of_model(data, "original")),
    ]
    for kind, name in (("ordinary", "ordinary pictures"), ("unseen", "pictures it never saw")):
        found = [a for one in data["controls"] if one["kind"] == kind for a in one["attacks"]]
        rows.append((f"control, {name} in the pruned model", found))
    for name, row in rows:
        if row:
            there = sorted(one["back"] for one in row if one["back"] is not None)
            when = f", after {', '.join(map(str, there))} steps" if there else ""
            doubted = sum(bool(unconfirmed(one)) for one in row)
            more = f", {doubted} more by trajectories, not in pictures" if doubted else ""
            yield f"{name}: {len(there)} of {len(row)} drawn{when}{more}"


def _of_model(data: Data, model: str) -> list[Data]:
    return [one for entry in audited(data) for one in attacks_of(entry) if one["model"] == model]


def _overlap_notes(data: Data) -> Iterator[str]:
    for one in data["overlaps"]:
        what = one["how"] if one["word"] is None else f"the wording {one['how']}"
        if one["by"] is None:
            yield one_line(
                f"Where: prompt {one['index']}, {what}: not seen by the score in the original, so its "
                f"neurons were not searched; a greater strength does so by trajectories."
            )
            continue
        yield one_line(
            f"Where: prompt {one['index']}, {what}: {_count(one['neurons'], 'neuron')} of its own in "
            f"the original, {one['shared']} of them also among the caption's own {one['caption']}, "
            f"{one['removed']} already removed."
        )


def _mending_notes(data: Data) -> Iterator[str]:
    for row in data["hardened"]:
        back = [i for i, one in row["prompts"].items() if any(a["came_back"] for a in one["attacks"])]
        when = "Before hardening" if not row["round"] else f"Hardening, round {row['round']}"
        yield (
            f"{when}: {_count(row['neurons'], 'neuron')} off besides, ordinary prompts drift by "
            f"{row['drift']:.1%}, embeddings bring back {len(back)} of {len(row['prompts'])} pictures."
        )
    if one := data["repaired"]:
        if one["path"] is None:
            yield "Repair: nothing could be pruned besides, so nothing was written."
        else:
            left = f", still for prompts {', '.join(map(str, one['prompts']))}" if one["prompts"] else ""
            yield (
                f"Repair: {one['path']} lacks {_count(one['neurons'], 'further neuron')}; of the "
                f"wordings, {one['after']} bring a picture back ({one['before']} before){left}. Audit "
                f"that file too."
            )


def notes(data: Data) -> list[str]:
    """What a reader should know before relying on the verdict."""
    found = []
    unjudged = [str(entry["index"]) for entry in audited(data) if not entry["judged"]]
    if unjudged:
        found.append(
            f"Judged by their scores alone, since the original's own trajectories do not agree: prompts "
            f"{', '.join(unjudged)}."
        )
    rows = kinds(data)
    triggers, texts = sum(row["original"] for row in rows), sum(row["tried"] for row in rows)
    found.append(
        f"Control: {triggers} of the {texts} wordings trigger the original itself by the "
        f"score; one that does not says little about the pruned model."
    )
    if data["no_pictures"]:
        found.append(f"No more pictures were drawn: {data['no_pictures']}")
    drawn = [entry for entry in audited(data) if entry["pictures"]]
    if unseen := [str(entry["index"]) for entry in drawn if not entry["pictures"]["judged"]]:
        found.append(
            f"Pictures not judged, since the original's own are no more alike than unrelated ones: "
            f"prompts {', '.join(unseen)}."
        )
    if controls := [entry["pictures"]["control"] for entry in drawn if entry["pictures"]["judged"]]:
        near, count = (sum(column) for column in zip(*controls, strict=True))
        found.append(f"Control: {near} of {count} pictures by the original are near by the same rule.")
    if named := [f"prompt {entry['index']}: {parts}" for entry in drawn if (parts := silent(entry))]:
        found.append(
            f"Parts of pictures that judge nothing, since they do not clearly tell most of the "
            f"original's own from unrelated ones: {'; '.join(named)}."
        )
    found += [*_embedding_notes(data), *_overlap_notes(data), *_mending_notes(data)]
    aside = [str(entry["index"]) for entry in data["prompts"] if not entry["memorized"]]
    if aside:
        found.append(
            f"Not memorized by the original, so left aside: prompt{'s' * (len(aside) > 1)} "
            f"{', '.join(aside)}."
        )
    return found


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
