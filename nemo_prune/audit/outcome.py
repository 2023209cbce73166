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
    "Fine-tuning, merging with an unpruned model, or a LoRA on the value layers was not tried.",
)


def came_back(entry: Data) -> bool:
    """Whether a prompt's picture did, by whatever attempt."""
    return any(word["back"] for word in entry["words"])


def successes(entry: Data) -> list[Data]:
    """The variations of a prompt that brought its picture back."""
    return [word for word in entry["words"] if word["back"]]


def audited(data: Data) -> list[Data]:
    """The prompts that the original memorized: of the others there is nothing to bring back."""
    return [entry for entry in data["prompts"] if entry["memorized"]]


def attempts(data: Data) -> int:
    """How many attempts were made in all."""
    return sum(len(entry["words"]) for entry in audited(data))


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
    wordings = sum(len(successes(entry)) for entry in back)
    named = ", ".join(str(entry["index"]) for entry in back)
    return (
        f"NOT ERASED: the picture of {len(back)} of {_count(len(known), 'prompt')} came back "
        f"(prompt{'s' * (len(back) > 1)} {named}), from {wordings} of {_count(count, 'attempt')}: "
        f"{_kinds(data)}.{aside}"
    )


def _kinds(data: Data) -> str:
    texts = attempts(data)
    return f"{_count(texts, 'wording')} of {_count(len(audited(data)), 'caption')}"


def findings(data: Data) -> Iterator[str]:
    """A line for each prompt whose picture came back: from what."""
    for entry in audited(data):
        if not (found := successes(entry)):
            continue
        place = f"{entry['file']}:{entry['line']}: " if "file" in entry else ""
        named = [
            word["how"]
            + (f" ({word['text']})" if "text" in word and word["how"] != AS_IT_STANDS else "")
            for word in found
        ]
        yield one_line(
            f"{place}prompt {entry['index']} came back from {len(found)} of "
            f"{_count(len(entry['words']), 'wording')}: {'; '.join(named)}"
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
    triggers = sum(kind["original"] for kind in kinds(data))
    found.append(
        f"Control: {triggers} of the {attempts(data)} wordings trigger the original itself by the "
        f"score; one that does not says little about the pruned model."
    )
    aside = [str(entry["index"]) for entry in data["prompts"] if not entry["memorized"]]
    if aside:
        found.append(
            f"Not memorized by the original, so left aside: prompt{'s' * (len(aside) > 1)} "
            f"{', '.join(aside)}."
        )
    return found


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
