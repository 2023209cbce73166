"""Pictures of both models from the same seeds: drawn, measured, and made small for a report."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.localize.localize import FRESH_SEEDS
from nemo_prune.options import Options, Progress, TargetsMatch
from nemo_prune.report.likeness import (
    CONSENSUS_PART,
    Described,
    Likeness,
    Scores,
    judge_near,
    mean,
    nearest,
)
from nemo_prune.report.matching import Matched, match_alike
from nemo_prune.report.pictures import Picture, draw
from nemo_prune.report.targets import open_target
from nemo_prune.scoring.engine import noise_seed
from nemo_prune.scoring.opening import open_pipeline
from nemo_prune.scoring.sharing import Kept, Workers, give_up_engines, kept, share
from nemo_prune.scoring.workers import sent

Album = dict[str, dict[int, dict[str, Any]]]
"""Group ("prompts", "ordinary") -> number -> name -> data URI, or a list of them."""
Measures = dict[str, dict[int, dict[str, Any]]]
"""Group -> number -> what its pictures' comparisons came to, plain JSON."""
_INLINED_SIDE = 256  # pixels: a report is looked at, not printed in a magazine


@dataclass(frozen=True)
class PictureSettings:
    """How pictures are drawn.

    images: seeds per memorized prompt; 0 for no pictures at all.
    ordinary: so many ordinary prompts at most get pictures, `ordinary_images` seeds each; the
        diversity among seeds takes two.
    targets: prompt number -> training picture. targets_match, targets_left: as `Targets` has them.
    """

    images: int = 4
    steps: int = 50
    guidance: float = 7.0
    ordinary: int = 6
    ordinary_images: int = 2
    targets: Mapping[int, Path] = field(default_factory=dict)
    targets_match: TargetsMatch = "name"
    targets_left: Sequence[Path] = ()

    def passes(self, prompts: int, ordinary: int) -> int:
        """Denoiser samples that both models' pictures take."""
        if not self.images:
            return 0
        pictures = prompts * self.images + min(ordinary, self.ordinary) * self.ordinary_images
        return 2 * pictures * self.steps * (2 if self.guidance > 1 else 1)


def draw_and_measure(
    models: tuple[Checkpoint, Checkpoint],
    options: Options,
    settings: PictureSettings,
    prompts: Mapping[int, str],
    ordinary: Sequence[str],
    likeness: Likeness,
    progress: Progress,
    workers: Workers | None = None,
) -> tuple[Measures, Album]:
    """Draw the prompts' and the ordinary prompts' pictures with both models; compare them.

    The starting noises are ones that no search uses. `workers` draw, if there are any; comparing is done
    here.

    Returns:
        The measures and the pictures, by group and number; of the group "targets" every training
        picture, as `Matched` has it. Measures of every prompt: "before_after"
        (same seed, mean over seeds), "seeds_before" and "seeds_after" (pairs of seeds: lower is more
        diverse); with CLIP "clip_before" and "clip_after". Of the memorized prompts also
        "consensus_before" and "consensus_after", each picture's likeness to the nearest of the
        original's pictures of other seeds; with a target "target_before" and "target_after", each
        picture's in "each_before" and "each_after", and "target_unrelated" (the mean over ordinary
        prompts' pictures). Where the pictures can be judged, "near_before" and "near_after" count
        those that are near the target or the original's of other seeds, "near_after_which" numbers
        them by seed from 0, and "near_above" holds the levels by "target" and "consensus", whichever
        tell (see `judge_near`).

    Raises:
        CheckpointError: a model cannot draw.
        OptionError: a target cannot be read.
    """
    some = ordinary[: settings.ordinary] if settings.ordinary_images else ()
    progress.stage("drawing pictures", 2 * (len(prompts) + len(some)), "prompts")
    drawn = _drawn(models, options, settings, prompts, some, progress, workers)
    measures: dict[str, dict[int, dict[str, Any]]] = {"prompts": {}, "ordinary": {}}
    album: Album = {"prompts": {}, "ordinary": {}}
    unrelated = [likeness.describe(picture) for _, rows in drawn for row in rows for picture in row]
    before_pruning = dict(zip(prompts, drawn[0][0], strict=True))
    matched = _match(settings, before_pruning, unrelated, likeness, progress)
    targets = {one.prompt: one for one in matched if one.prompt is not None and one.doubt is None}
    progress.stage("comparing pictures", len(prompts) + len(some), "prompts")
    for group, part, texts in (("prompts", 0, prompts), ("ordinary", 1, dict(enumerate(some)))):
        pairs = zip(texts.items(), drawn[0][part], drawn[1][part], strict=True)
        for (number, text), before, after in pairs:
            target = None
            if group == "prompts" and number in targets:
                height, width = before[0].shape[:2]
                target = open_target(targets[number].file, width, height)
            measured, old, new = _measure(likeness, text, before, after)
            if group == "prompts":
                measured |= _judge(likeness, old, new, target, unrelated)
                if target is not None:
                    alike = nearest(measured["each_before"])
                    matched[matched.index(targets[number])] = replace(targets[number], likeness=alike)
            measures[group][number] = measured
            album[group][number] = {
                "before": [inlined(picture) for picture in before],
                "after": [inlined(picture) for picture in after],
            }
            if target is not None:
                album[group][number]["target"] = inlined(target)
            progress.advance()
    measures["targets"] = {place: one.as_json() for place, one in enumerate(matched)}
    return measures, album


def _drawn(
    models: Sequence[Checkpoint], options: Options, settings: PictureSettings,
    prompts: Mapping[int, str], ordinary: Sequence[str], progress: Progress, workers: Workers | None,
) -> list[tuple[list[list[Picture]], list[list[Picture]]]]:  # fmt: skip
    """Of each model the rows of the prompts and those of the ordinary ones."""
    texts = [*((0, text) for text in prompts.values()), *((1, text) for text in ordinary)]
    items = [(model, *one) for model in range(len(models)) for one in texts]
    names: list[int | str] = [*prompts]
    names += [f"{place} of the ordinary ones" for place in range(len(ordinary))]
    drawing = Drawing(kept(workers, Pipelines(models, options)), settings, options.seed)
    if workers:
        rows = share(workers, drawing, items, lambda *_: progress.advance(), names * len(models))
    else:
        rows = share(None, replace(drawing, together=True, advance=progress.advance), items)
    count = len(texts)
    by_model = [rows[place * count : (place + 1) * count] for place in range(len(models))]
    return [(of_one[: len(prompts)], of_one[len(prompts) :]) for of_one in by_model]


class Pipelines:
    """Pipelines of some models, one at a time: two do not fit where one does.

    A process that works for another gives up what it has loaded to score.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], options: Options) -> None:
        self._checkpoints, self._options = checkpoints, options
        self._open: tuple[int, Any] | None = None

    def __reduce__(self) -> tuple[type["Pipelines"], tuple[Sequence[Checkpoint], Options]]:
        return Pipelines, (self._checkpoints, sent(self._options))

    def of(self, model: int) -> Any:
        """The pipeline of one of them, by its place."""
        if self._open is None or self._open[0] != model:
            self._open = None
            give_up_engines()
            self._open = model, open_pipeline(self._checkpoints[model], self._options)
        return self._open[1]


@dataclass(frozen=True)
class Drawing:
    """Work: rows of pictures, each of a model (by its place), a kind (1: ordinary) and a text.

    seed: the base of the noises. together: one drawing of all texts of a kind, so that what the device's
    memory does not hold is tried once; else each row is given as soon as it is drawn. advance: is told
    of each row.
    """

    pipelines: Kept[Pipelines]
    settings: PictureSettings
    seed: int
    together: bool = False
    advance: Callable[[int], None] = lambda _count: None

    def __call__(self, items: Sequence[tuple[int, int, str]]) -> Iterator[tuple[int, list[Picture]]]:
        place, settings = 0, self.settings

        def kinds(numbered: tuple[int, tuple[int, int, str]]) -> tuple[int, int, int]:
            number, (model, kind, _) = numbered
            return model, kind, 0 if self.together else number

        for (model, kind, _), some in groupby(enumerate(items), kinds):
            count = settings.ordinary_images if kind else settings.images
            seeds = [noise_seed(self.seed, FRESH_SEEDS + number) for number in range(count)]
            rows = draw(
                self.pipelines.get().of(model), [text for _, (*_, text) in some], seeds,
                steps=settings.steps, guidance=settings.guidance, advance=self.advance,
            )  # fmt: skip
            for row in rows:
                yield place, row
                place += 1


def _match(
    settings: PictureSettings,
    drawn: Mapping[int, Sequence[Picture]],
    unrelated: Sequence[Described],
    likeness: Likeness,
    progress: Progress,
) -> list[Matched]:
    """Every training picture with its prompt, and doubts about those that are not used."""
    if settings.targets_match == "name":
        return told_targets(settings)
    of_order = {path: index for index, path in settings.targets.items()}
    claimed = of_order if settings.targets_match == "order" else None
    files = list(settings.targets_left if claimed is None else claimed)
    progress.stage("matching training pictures", len(files), "pictures")
    return match_alike(files, drawn, unrelated, likeness, progress.advance, claimed)


def told_targets(settings: PictureSettings) -> list[Matched]:
    """Every training picture with its prompt, as far as that is known without any drawn ones."""
    why = "no pictures to compare it with were drawn"
    if settings.targets_match == "name":
        why = "is named by no prompt's number or text"
    named = [Matched(path, index) for index, path in sorted(settings.targets.items())]
    return [*named, *(Matched(path, None, doubt=why) for path in settings.targets_left)]


def _measure(
    likeness: Likeness, text: str, before: Sequence[Picture], after: Sequence[Picture]
) -> tuple[dict[str, Any], list[Described], list[Described]]:
    """What is measured of any prompt, and the descriptions of its pictures."""
    old, new = ([likeness.describe(picture) for picture in row] for row in (before, after))
    found: dict[str, Any] = {
        "before_after": mean([likeness.compare(a, b) for a, b in zip(old, new, strict=True)]),
        "seeds_before": mean([likeness.compare(a, b) for a, b in combinations(old, 2)]),
        "seeds_after": mean([likeness.compare(a, b) for a, b in combinations(new, 2)]),
    }
    if likeness.alignment is not None:
        for name, row in (("clip_before", before), ("clip_after", after)):
            scores = [likeness.alignment(picture, text) for picture in row]
            found[name] = round(sum(scores) / len(scores), 4)
    return found, old, new


def _judge(
    likeness: Likeness,
    old: Sequence[Described],
    new: Sequence[Described],
    target: Picture | None,
    unrelated: Sequence[Described],
) -> dict[str, Any]:
    """What is measured of a memorized prompt: how near its pictures are to what was memorized."""

    def against_others(pictures: Sequence[Described]) -> list[list[Scores]]:
        return [
            [likeness.to_target(other, picture) for i, other in enumerate(old) if i != j]
            for j, picture in enumerate(pictures)
        ]

    between, across = against_others(old), against_others(new)
    chance = [likeness.to_target(picture, other) for picture in old for other in unrelated]
    judged = {"consensus": judge_near(between, across, chance, CONSENSUS_PART)}
    found: dict[str, Any] = {
        "consensus_before": [nearest(row) for row in between],
        "consensus_after": [nearest(row) for row in across],
    }
    if target is not None:
        wanted = likeness.describe(target)
        to_old, to_new, to_others = (
            [likeness.to_target(wanted, picture) for picture in row] for row in (old, new, unrelated)
        )
        found |= {
            "target_before": mean(to_old),
            "target_after": mean(to_new),
            "each_before": to_old,
            "each_after": to_new,
        }
        if unrelated:
            found["target_unrelated"] = mean(to_others)
        judged["target"] = judge_near([[s] for s in to_old], [[s] for s in to_new], to_others)
    if telling := {name: nearness for name, nearness in judged.items() if nearness}:
        near = [
            [number for number, each in enumerate(zip(*columns, strict=True)) if any(each)]
            for columns in zip(*((n.before, n.after) for n in telling.values()), strict=True)
        ]
        found |= {
            "near_above": {name: nearness.levels for name, nearness in telling.items()},
            "near_before": len(near[0]),
            "near_after": len(near[1]),
            "near_after_which": near[1],
        }
    return found


def inlined(picture: Picture) -> str:
    """A picture as a data URI, at most 256 pixels wide or high (WebP, quality 88)."""
    image = Image.fromarray(picture)
    image.thumbnail((_INLINED_SIDE, _INLINED_SIDE), Image.Resampling.LANCZOS)
    return _data_uri(image, "WEBP", quality=88, method=4)


def inlined_difference(difference: Tensor) -> str:
    """A noise difference `[c, h, w]` in [0, 1] as a data URI: its first channels as red, green, blue."""
    channels = difference[:3].mul(255).round().byte().cpu().numpy()
    if len(channels) < 3:
        channels = np.repeat(channels[:1], 3, axis=0)
    return _data_uri(
        Image.fromarray(np.ascontiguousarray(channels.transpose(1, 2, 0))), "PNG", optimize=True
    )


def _data_uri(image: Image.Image, kind: str, **how: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
