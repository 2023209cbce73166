"""What an audit comes to, in sentences that are the same in every form. Imports no torch.

`Data` is the plain data of an `Audit`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from nemo_prune.audit.words import AS_IT_STANDS
from nemo_prune.report.junit import one_line

Data = Mapping[str, Any]

LIMITS = (
    "Not found is not the same as not there, and suppressed is not erased: other words, other noises, "
    "or a text embedding optimized towards the picture may still bring it back (arXiv 2507.16880).",
    "Words were varied by rule. Nobody who knows the picture, and no language model, wrote any of them.",
    "The score is a screen at one early timestep. A variation that it calls harmless was drawn only if "
    "it was among the highest; of the others a picture that comes later would have been missed.",
    "Pictures were drawn in some styles, from some noises. One is near by the whole or by any region a "
    "quarter of its size; foreground and background were not told apart.",
    "Fine-tuning, merging with an unpruned model, or a LoRA on the value layers was not tried.",
)


def came_back(entry: Data) -> bool:
    """Whether a prompt's picture did, by whatever attempt."""
    return bool(successes(entry)) or near_pictures(entry) > 0


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


def audited(data: Data) -> list[Data]:
    """The prompts that the original memorized: of the others there is nothing to bring back."""
    return [entry for entry in data["prompts"] if entry["memorized"]]


def attempts(data: Data) -> int:
    """How many attempts were made in all."""
    return sum(len(entry["words"]) + pictures(entry) for entry in audited(data))


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
    worked = sum(len(successes(entry)) + near_pictures(entry) for entry in back)
    named = ", ".join(str(entry["index"]) for entry in back)
    return (
        f"NOT ERASED: the picture of {len(back)} of {_count(len(known), 'prompt')} came back "
        f"(prompt{'s' * (len(back) > 1)} {named}), from {worked} of {_count(count, 'attempt')}: "
        f"{_kinds(data)}.{aside}"
    )


def _kinds(data: Data) -> str:
    known = audited(data)
    texts, drawn = sum(len(entry["words"]) for entry in known), sum(map(pictures, known))
    more = f" and {_count(drawn, 'picture')}" if drawn else ""
    return f"{_count(texts, 'wording')}{more} of {_count(len(known), 'caption')}"


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
        yield one_line(f"{place}prompt {entry['index']} came back {'; '.join(parts)}")


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
    aside = [str(entry["index"]) for entry in data["prompts"] if not entry["memorized"]]
    if aside:
        found.append(
            f"Not memorized by the original, so left aside: prompt{'s' * (len(aside) > 1)} "
            f"{', '.join(aside)}."
        )
    return found


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
