"""Which training picture is which prompt's, where no name says so: the one most like what is drawn.

A picture goes to the prompt whose pictures, drawn by the unpruned model, are most like it, if that
likeness stands out against the pictures of the other prompts and of ordinary ones: it must exceed the
largest of theirs by more than that exceeds their mean, as where a picture is judged to be near, and come
a third of the way from there to 1. What does not stand out is doubtful, and is not used.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nemo_prune.report.likeness import (
    SHARED,
    Described,
    Floats,
    Likeness,
    Scores,
    nearest,
)
from nemo_prune.report.pictures import Picture
from nemo_prune.report.targets import open_target

_PART = 1 / 3
_CLOSER = 8  # prompts, by their edges, of which a picture is compared with every measure
_KEPT = 4 * _CLOSER  # prompts whose described pictures stay in memory


@dataclass(frozen=True)
class Matched:
    """A training picture and its prompt.

    likeness: measure -> similarity to the nearest of the pictures that the unpruned model draws for the
        prompt; None where nothing was drawn for it.
    doubt: why the picture is not used; None if it is.
    """

    file: Path
    prompt: int | None
    likeness: Mapping[str, float] | None = None
    doubt: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, with the whole path as "file"."""
        return {
            "prompt": self.prompt,
            "file": str(self.file),
            "likeness": None if self.likeness is None else dict(self.likeness),
            "doubt": self.doubt,
        }


def match_alike(
    files: Sequence[Path],
    drawn: Mapping[int, Sequence[Picture]],
    unrelated: Sequence[Described],
    likeness: Likeness,
    advance: Callable[[], None] = lambda: None,
    claimed: Mapping[Path, int] | None = None,
) -> list[Matched]:
    """Find the prompt of each training picture, in the order of `files`.

    Args:
        files: the training pictures.
        drawn: prompt number -> the unpruned model's pictures, all of one size.
        unrelated: ordinary prompts' pictures.
        likeness: the measures; with SSCD that alone ranks, else the mean of the others but colour.
        advance: called after each picture.
        claimed: the prompts that the pictures are said to be of. Then each keeps its prompt, with a
            doubt if it is clearly like what another one draws and not like what its own does.

    Raises OptionError for a file that is no readable picture.
    """
    if not drawn and claimed is not None:
        return [Matched(file, claimed[file]) for file in files]
    if not drawn:
        return [Matched(file, None, doubt="no memorized prompt was drawn") for file in files]
    height, width = next(iter(drawn.values()))[0].shape[:2]
    edges = {
        index: _directions([likeness.describe(one).edges for one in row]) for index, row in drawn.items()
    }

    @lru_cache(_KEPT)
    def described(index: int) -> list[Described]:
        return [likeness.describe(picture) for picture in drawn[index]]

    found = []
    for file in files:
        wanted = likeness.describe(open_target(file, width, height))
        (direction,) = _directions([wanted.edges])
        near = {index: -float((edges[index] @ direction).max()) for index in edges}
        closer = sorted(near, key=near.__getitem__)[:_CLOSER]
        own = claimed[file] if claimed is not None else None
        if own in near and own not in closer:
            closer.append(own)
        scores = {
            index: [likeness.to_target(wanted, one) for one in described(index)] for index in closer
        }
        others = [likeness.to_target(wanted, one) for one in unrelated]
        if own is None:
            found.append(_best(file, scores, others))
        else:
            found.append(_claim(file, own, scores, others))
        advance()
    return found if claimed is not None else _one_each(found)


def _claim(
    file: Path, own: int, scores: Mapping[int, Sequence[Scores]], others: Sequence[Scores]
) -> Matched:
    """The prompt that a picture is said to be of, with a doubt if another one clearly draws it.

    Two prompts may have one training picture: so it is not enough that the other's are more like it.
    """
    if own not in scores:
        return Matched(file, own)
    alike = nearest(scores[own])
    best = max(scores, key=lambda index: max(map(_overall, scores[index])))
    rest = [one for index, row in scores.items() if index not in (own, best) for one in row]
    clear = {index: _stands_out(scores[index], [*rest, *others]) for index in (own, best)}
    if best != own and clear[best] and not clear[own]:
        return Matched(file, own, alike, f"is more like what prompt {best} draws")
    return Matched(file, own, alike)


def _best(file: Path, scores: Mapping[int, Sequence[Scores]], others: Sequence[Scores]) -> Matched:
    """The prompt that a picture is most like, with a doubt if that likeness could be chance."""
    ranked = sorted(scores, key=lambda index: -max(map(_overall, scores[index])))
    best = ranked[0]
    rest = [one for index in ranked[1:] for one in scores[index]]
    alike = nearest(scores[best])
    if _stands_out(scores[best], [*rest, *others]):
        return Matched(file, best, alike)
    doubt = f"is not clearly like what any prompt draws; most like prompt {best}"
    return Matched(file, None, alike, f"{doubt}, then {ranked[1]}" if len(ranked) > 1 else doubt)


def _stands_out(scores: Sequence[Scores], others: Sequence[Scores]) -> bool:
    """Whether the best of `scores` is no chance, seen from `others`; never without any."""
    if not others:
        return False
    alike, chances = max(map(_overall, scores)), [_overall(one) for one in others]
    chance = max(chances)
    return alike - chance > max(chance - sum(chances) / len(chances), _PART * (1 - chance))


def _one_each(found: Sequence[Matched]) -> list[Matched]:
    """Of several pictures for one prompt the most alike; the others are doubtful."""
    best: dict[int, Matched] = {}
    for one in found:
        if one.prompt is None or one.likeness is None:
            continue
        known = best.get(one.prompt)
        if known is None or _overall(one.likeness) > _overall(known.likeness or {}):
            best[one.prompt] = one

    def judged(one: Matched) -> Matched:
        if one.prompt is None or best[one.prompt] is one:
            return one
        doubt = f"another one is more like what prompt {one.prompt} draws"
        return replace(one, prompt=None, doubt=doubt)

    return [judged(one) for one in found]


def _overall(scores: Scores) -> float:
    if "sscd" in scores:
        return scores["sscd"]
    values = [value for name, value in scores.items() if name not in SHARED]
    return sum(values) / len(values)


def _directions(edges: Sequence[Floats]) -> Floats:
    """Each descriptor less its mean and of norm 1, `[n, d]`: their products are correlations."""
    stacked = np.stack(edges)
    around = stacked - stacked.mean(axis=1, keepdims=True)
    found: Floats = around / np.linalg.norm(around, axis=1, keepdims=True).clip(1e-12)
    return found
