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

from nemo_prune.audit.codec import Codec
from nemo_prune.audit.nearness import near_to
from nemo_prune.audit.strength import Effort, Style
from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.model.hub import quiet
from nemo_prune.options import Options, Progress
from nemo_prune.report.gallery import Pipelines, inlined
from nemo_prune.report.likeness import CONSENSUS_PART, TARGET_PART, Described, Likeness
from nemo_prune.report.pictures import Picture, draw
from nemo_prune.report.targets import open_target
from nemo_prune.scoring.engine import Engine, Prompt, Sample, noise_seed
from nemo_prune.scoring.sharing import Kept, Workers, kept, share
from nemo_prune.scoring.trajectory import Schedule

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
    """How pictures of successful wordings are drawn, and by an engine those they are compared with."""
    return Style("ddim", effort.plain_steps, 7.0, 0)


def passes(wanted: Sequence[Wanted], effort: Effort) -> int:
    """Denoiser samples that the pruned model's pictures take."""
    of_styles = sum(style.seeds * style.steps for style in effort.styles)
    worded = sum(SHOWN * len(one.wordings) for one in wanted)
    return 2 * (effort.plain_steps * worded + len(wanted) * of_styles)


def passes_compared(prompts: int, schedule: Schedule) -> int:
    """Denoiser samples of the original's pictures of so many prompts, and of the unrelated ones."""
    return schedule.passes * (REFERENCES * prompts + 2 * UNRELATED)


def draw_whole(engine: Engine, codec: Codec, prompt: Prompt, schedule: Schedule) -> list[Picture]:
    """Pictures of a caption to compare others with."""
    seeds = range(REFERENCE_SEED, REFERENCE_SEED + REFERENCES)
    samples = [Sample(prompt, frozenset(), seed) for seed in seeds]
    return [codec.decode(one) for one in engine.drawn(samples, schedule)]


def draw_unrelated(
    engine: Engine, codec: Codec, ordinary: Sequence[str], schedule: Schedule
) -> list[Picture]:
    """A picture each of ordinary prompts."""
    prompts = engine.prompts(ordinary[:UNRELATED])
    samples = [Sample(one, frozenset(), UNRELATED_SEED + place) for place, one in enumerate(prompts)]
    return [codec.decode(one) for one in engine.drawn(samples, schedule)]


def draw_more(
    pruned: Checkpoint,
    options: Options,
    wanted: Mapping[int, Wanted],
    references: Mapping[int, Sequence[Picture]],
    unrelated: Sequence[Described],
    effort: Effort,
    likeness: Likeness,
    progress: Progress,
    finished: Callable[[int, dict[str, Any]], None],
    workers: Workers | None = None,
) -> None:
    """Draw and judge each caption; `finished` gets its number and what `judge_more` gives.

    references: the original's pictures of each. unrelated: of ordinary prompts, by both models.
    `workers` do it, if there are any.

    Raises:
        CheckpointError: the model cannot draw.
        OptionError: a target cannot be read.
    """
    style, pipelines = plain(effort), kept(workers, Pipelines([pruned], options))

    def seeds(first: int, count: int) -> list[int]:
        return [noise_seed(options.seed, first + number) for number in range(count)]

    ways = [
        (way, seeds(PICTURE_SEED + 100 * number, way.seeds)) for number, way in enumerate(effort.styles)
    ]
    judges = kept(workers, (likeness, unrelated))
    more = DrawingMore(pipelines, judges, ways, style, seeds(PICTURE_SEED, SHOWN))
    progress.stage("drawing more pictures", len(wanted), "prompts")
    numbers = [*wanted]

    def on_done(place: int, found: dict[str, Any]) -> None:
        finished(numbers[place], found)
        progress.advance()

    asked = []
    for index, one in wanted.items():
        row = references[index]
        height, width = row[0].shape[:2]
        asked.append((one, row, open_target(one.target, width, height) if one.target else None))
    share(workers, more, asked, on_done, numbers)


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
            pipeline = self.pipelines.get().of(0)
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
        by reference; "silent", by reference the parts that do not tell; "control", how many of the
        original's pictures are near; the "reference" as a data URI; of each style in "styles" how it
        was "drawn" (in words), "count" and "near": seed, the measures that it is near "by", "picture".
        In "worded", by place as text, data URIs.
    """
    old = [likeness.describe(picture) for picture in references]
    judges = {"consensus": near_to(likeness, old, old, unrelated, CONSENSUS_PART)}
    if target is not None:
        wanted = likeness.describe(target)
        judges["target"] = near_to(likeness, [wanted], old, unrelated, TARGET_PART)

    def near_by(picture: Described) -> list[str]:
        return list(dict.fromkeys(name for judge in judges.values() for name in judge.by(picture)))

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
        "judged": any(judge.levels for judge in judges.values()),
        "levels": {kind: judge.levels for kind, judge in judges.items()},
        "silent": {kind: judge.silent for kind, judge in judges.items()},
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
