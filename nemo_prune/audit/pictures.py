"""More pictures than a check draws: further noises, samplers, step counts, guidance scales.

Each is compared, as a whole and by its best-matching region, with the original model's own pictures of
the caption and with the training picture where there is one. How near is near is told by unrelated
pictures, as everywhere (`report.likeness`).
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_prune.audit.parts import parts
from nemo_prune.audit.strength import Effort, Style
from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.model.hub import quiet
from nemo_prune.options import Options, Progress
from nemo_prune.report.gallery import Pipelines, inlined
from nemo_prune.report.likeness import CONSENSUS_PART, Described, Likeness, near_levels
from nemo_prune.report.pictures import Picture, draw
from nemo_prune.report.targets import open_target
from nemo_prune.scoring.engine import noise_seed
from nemo_prune.scoring.sharing import Kept, Workers, kept, share

PICTURE_SEED, REFERENCE_SEED, UNRELATED_SEED = 60_000, 61_000, 62_000
"""Where the seeds begin that an audit's pictures take: nothing else uses them."""
REFERENCES, UNRELATED, SHOWN = 4, 8, 2
"""Pictures of a caption by the original; ordinary prompts, a picture each and model; pictures of a
wording that brought a picture back."""
_SAMPLERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler ancestral": "EulerAncestralDiscreteScheduler",
    "dpm++ 2m": "DPMSolverMultistepScheduler",
}


@dataclass(frozen=True)
class Wanted:
    """What is to be drawn of one caption: itself, in every style, and wordings that brought it back.

    target: the training picture, if it is at hand.
    """

    caption: str
    wordings: Mapping[int, str]
    target: Path | None = None


def plain(effort: Effort) -> Style:
    """How references, ordinary pictures and those of successful wordings are drawn."""
    return Style("ddim", effort.plain_steps, 7.0, 0)


def passes(wanted: Sequence[Wanted], effort: Effort) -> int:
    """Denoiser samples that the pictures take in both models."""
    of_styles = sum(style.seeds * style.steps for style in effort.styles)
    count = 2 * UNRELATED + sum(REFERENCES + SHOWN * len(one.wordings) for one in wanted)
    return 2 * (effort.plain_steps * count + len(wanted) * of_styles)


def draw_more(
    models: tuple[Checkpoint, Checkpoint],
    options: Options,
    wanted: Mapping[int, Wanted],
    ordinary: Sequence[str],
    effort: Effort,
    likeness: Likeness,
    progress: Progress,
    finished: Callable[[int, dict[str, Any]], None],
    workers: Workers | None = None,
) -> None:
    """Draw and judge each caption; `finished` gets its number and what `judge_more` gives.

    `workers` do it, if there are any.

    Raises:
        CheckpointError: a model cannot draw.
        OptionError: a target cannot be read.
    """
    style, pipelines = plain(effort), kept(workers, Pipelines(models, options))

    def seeds(first: int, count: int) -> list[int]:
        return [noise_seed(options.seed, first + number) for number in range(count)]

    unrelated = [
        (text, seeds(UNRELATED_SEED + place, 1)) for place, text in enumerate(ordinary[:UNRELATED])
    ]
    references = [(one.caption, seeds(REFERENCE_SEED, REFERENCES)) for one in wanted.values()]
    items = [(0, *one) for one in (*unrelated, *references)] + [(1, *one) for one in unrelated]
    others = [f"{place} of the ordinary ones" for place in range(len(unrelated))]
    progress.stage("drawing pictures to compare with", len(items), "prompts")
    rows: list[list[Picture]] = share(
        workers, Comparing(pipelines, style), items, lambda _place, _row: progress.advance(),
        [*others, *wanted, *others],
    )  # fmt: skip
    count = len(unrelated)
    drawn, ends = rows[count : count + len(wanted)], (*rows[:count], *rows[count + len(wanted) :])
    described = [likeness.describe(picture) for row in ends for picture in row]
    ways = [
        (way, seeds(PICTURE_SEED + 100 * number, way.seeds)) for number, way in enumerate(effort.styles)
    ]
    more = DrawingMore(
        pipelines, kept(workers, (likeness, described)), ways, style, seeds(PICTURE_SEED, SHOWN)
    )
    progress.stage("drawing more pictures", len(wanted), "prompts")
    numbers = [*wanted]

    def on_done(place: int, found: dict[str, Any]) -> None:
        finished(numbers[place], found)
        progress.advance()

    asked = []
    for one, row in zip(wanted.values(), drawn, strict=True):
        height, width = row[0].shape[:2]
        asked.append((one, row, open_target(one.target, width, height) if one.target else None))
    share(workers, more, asked, on_done, numbers)


@dataclass(frozen=True)
class Comparing:
    """Work: rows of pictures in one style, each of a model (by its place), a text and seeds."""

    pipelines: Kept[Pipelines]
    style: Style

    def __call__(
        self, items: Sequence[tuple[int, str, Sequence[int]]]
    ) -> Iterator[tuple[int, list[Picture]]]:
        for place, (model, text, seeds) in enumerate(items):
            yield place, _drawn(self.pipelines.get().of(model), text, seeds, self.style)


@dataclass(frozen=True)
class DrawingMore:
    """Work: captions in every way, and their wordings, by the pruned model; judged.

    ways: styles and their seeds. style, seeds: of wordings. judges: measures, and unrelated pictures.
    """

    pipelines: Kept[Pipelines]
    judges: Kept[tuple[Likeness, Sequence[Described]]]
    ways: Sequence[tuple[Style, Sequence[int]]]
    style: Style
    seeds: Sequence[int]

    def __call__(
        self, items: Sequence[tuple[Wanted, Sequence[Picture], Picture | None]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        likeness, others = self.judges.get()
        for place, (one, references, target) in enumerate(items):
            pipeline = self.pipelines.get().of(1)
            drawn = [_drawn(pipeline, one.caption, seeds, way) for way, seeds in self.ways]
            worded = {
                number: _drawn(pipeline, text, self.seeds, self.style)
                for number, text in one.wordings.items()
            }
            styles = [way for way, _ in self.ways]
            yield place, judge_more(likeness, styles, references, drawn, worded, others, target)


def judge_more(
    likeness: Likeness,
    styles: Sequence[Style],
    references: Sequence[Picture],
    drawn: Sequence[Sequence[Picture]],
    worded: Mapping[int, Sequence[Picture]],
    unrelated: Sequence[Described],
    target: Picture | None = None,
) -> dict[str, Any]:
    """Which pictures of the pruned model are near what was memorized.

    Args:
        references: the original's pictures of the caption. target: the training picture.
        drawn: the pruned model's, style by style. worded: by a wording's place.
        unrelated: ordinary prompts' pictures, of both models.

    Returns:
        Plain JSON: "judged", whether any measure tells the original's pictures from chance; "levels"
        by reference; "control", how many of the original's pictures are near; the "reference" as a
        data URI; of each style in "styles" how it was "drawn" (in words), "count" and "near": seed,
        the measures that it is near "by", "picture". In "worded", by place as text, data URIs.
    """
    old = [likeness.describe(picture) for picture in references]

    def alike(reference: Described, picture: Described) -> dict[str, float]:
        return likeness.to_target(reference, picture) | parts(reference, picture)

    between = [alike(b, a) for a in old for b in old if a is not b]
    chance = [alike(a, other) for a in old for other in unrelated]
    levels = {"consensus": near_levels(between, chance, CONSENSUS_PART)}
    wanted = None if target is None else likeness.describe(target)
    if wanted is not None:
        levels["target"] = near_levels(
            [alike(wanted, a) for a in old],
            [alike(wanted, other) for other in unrelated],
        )

    def near_by(picture: Described) -> list[str]:
        compared = [("consensus", alike(a, picture)) for a in old if a is not picture]
        if wanted is not None:
            compared.append(("target", alike(wanted, picture)))
        found = (
            name
            for kind, scores in compared
            for name, level in levels[kind].items()
            if scores[name] > level
        )
        return list(dict.fromkeys(found))

    rows = []
    for style, row in zip(styles, drawn, strict=True):
        by_seed = [near_by(likeness.describe(picture)) for picture in row]
        near = [
            {"seed": seed, "by": by, "picture": inlined(row[seed])}
            for seed, by in enumerate(by_seed)
            if by
        ]
        rows.append({"drawn": style.described, "count": len(row), "near": near})
    return {
        "judged": any(levels.values()),
        "levels": levels,
        "control": [sum(bool(near_by(picture)) for picture in old), len(old)],
        "reference": inlined(references[0] if target is None else target),
        "styles": rows,
        "worded": {str(place): [inlined(one) for one in row] for place, row in worded.items()},
    }


@quiet()
def _drawn(pipeline: Any, text: str, seeds: Sequence[int], style: Style) -> list[Picture]:
    """Pictures of one text; the pipeline's sampler is the style's from then on."""
    import diffusers

    sampler = getattr(diffusers, _SAMPLERS[style.sampler])
    with warnings.catch_warnings():
        # diffusers' own, where its samplers hand tensors to numpy.
        warnings.simplefilter("ignore", DeprecationWarning)
        pipeline.scheduler = sampler.from_config(pipeline.scheduler.config)
        (row,) = draw(
            pipeline, [text], seeds, steps=style.steps, guidance=style.guidance, negative=style.negative
        )
    return row
