"""Whether other words still trigger a picture: each variation scored on both models, some drawn.

The score is a screen at one early timestep. A variation is *alarming* if its own noise differences
agree above the gate. It brings the picture back if, besides, they are alike to those that the original
has for the caption (above tau), or if a short guided trajectory ends near the original's own for it.
The score misses pictures that come later, so the highest variations are drawn whatever they score.
The original's answers to the same words are the control: words that trigger nothing in the model that
memorized the picture prove nothing about the pruned one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nemo_prune.audit.strength import Effort
from nemo_prune.audit.words import Variation
from nemo_prune.checkpoint.statuses import GONE
from nemo_prune.scoring.criterion import best_pairs_of_each, scores_of_each
from nemo_prune.scoring.engine import Baseline, Engine, Prompt, Sample
from nemo_prune.scoring.trajectory import Reference, Schedule, reference_from

SCORE_SEED, DRAW_SEED, REFERENCE_SEED = 40_000, 50_000, 51_000
"""Where the seeds begin that scores and trajectories of an audit take: nothing else uses them."""
REFERENCES = 4
"""Trajectories of the original that say what the caption's picture is."""


@dataclass(frozen=True, eq=False)
class Judges:
    """What a variation is judged by.

    tau, gate: as the pruned model's run had them. unrelated: ends of ordinary prompts' trajectories.
    """

    tau: float
    gate: float
    schedule: Schedule
    unrelated: Sequence[Tensor]
    _known: dict[bytes, Reference] = field(default_factory=dict)

    def reference(
        self, original: Engine, prompt: Prompt, advance: Callable[[int], None] = lambda _count: None
    ) -> Reference:
        """The original's own trajectories of a caption, drawn once; `advance` is told of them each time,
        so that totals hold."""
        key = _key(prompt)
        if key in self._known:
            advance(REFERENCES * self.schedule.passes)
        else:
            seeds = range(REFERENCE_SEED, REFERENCE_SEED + REFERENCES)
            samples = [Sample(prompt, frozenset(), seed) for seed in seeds]
            ends = original.trajectories(samples, self.schedule, advance)
            by_seed = dict(zip(seeds, ends, strict=True))
            self._known[key] = reference_from(self.schedule, by_seed, self.unrelated)
        return self._known[key]

    def remember(self, prompt: Prompt, reference: Reference) -> None:
        """What another process has drawn of a caption need not be drawn here."""
        self._known.setdefault(_key(prompt), reference)


def _key(prompt: Prompt) -> bytes:
    return prompt.text.float().cpu().numpy().tobytes()


def samples_of(effort: Effort, variations: int, schedule: Schedule) -> int:
    """Denoiser samples that `try_words` takes of a prompt at most, alarms aside."""
    drawn = min(variations, effort.drawn + 1)
    scored = variations * effort.score_seeds
    return 2 * scored + schedule.passes * (REFERENCES + drawn * effort.draw_seeds)


def try_words(
    original: Engine,
    pruned: Engine,
    tried: Sequence[Variation],
    effort: Effort,
    judges: Judges,
    advance: Callable[[int], None] = lambda _count: None,
) -> dict[str, Any]:
    """What became of the variations of one caption, the caption itself first among them.

    Returns:
        Plain JSON: "score_original", the caption's score in the original; "agreement", how alike the
        original's trajectories of it are, and "unrelated", how alike ordinary prompts' are to them;
        "judged", whether that tells them apart; "memorized", whether the original has anything to
        bring back; and of each variation that the model reads as another text than those before it
        (CLIP knows no case) in "words" its "place" in `tried`, "score" (among its own seeds), "alike"
        (to the original's of the caption), the "original" model's own two scores for it, "remaining"
        (the largest part of the picture that trajectories brought back; None where none was drawn) and
        "back", by what it came back: "score", "trajectory".
    """
    texts = [one.text for one in tried]
    before, after = original.prompts(texts), pruned.prompts(texts)
    read = _different(after)
    before, after = [before[place] for place in read], [after[place] for place in read]
    seeds = range(SCORE_SEED, SCORE_SEED + effort.score_seeds)
    known = _differences(original, before, seeds, advance)
    scored = {
        "original": _scores(original, known, known[0]),
        "pruned": _scores(pruned, _differences(pruned, after, seeds, advance), known[0]),
    }
    reference = judges.reference(original, before[0], advance)
    memorized = scored["original"][0][0] > judges.gate or reference.judged
    remaining = (
        _drawn(pruned, after, scored["pruned"], effort, judges, reference, advance)
        if memorized and reference.judged
        else {}
    )
    words = []
    for place, one in enumerate(tried[number] for number in read):
        score, alike = scored["pruned"][place]
        own, own_alike = scored["original"][place]
        back = ["score"] if memorized and score > judges.gate and alike > judges.tau else []
        back += ["trajectory"] if remaining.get(place, 0) >= GONE else []
        words.append(
            {
                "place": read[place], "kind": one.kind, "how": one.how, "score": score, "alike": alike,
                "original": {
                    "score": own, "alike": own_alike,
                    "triggers": own > judges.gate and own_alike > judges.tau,
                },
                "remaining": remaining.get(place), "back": back,
            }
        )  # fmt: skip
    return {
        "score_original": scored["original"][0][0],
        "agreement": round(reference.unpruned, 5),
        "unrelated": round(reference.unrelated, 5),
        "judged": reference.judged,
        "memorized": memorized,
        "words": words,
    }


def _different(prompts: Sequence[Prompt]) -> list[int]:
    """The places of the prompts whose text embedding is none that came before."""
    found: list[int] = []
    for place, one in enumerate(prompts):
        if not any(torch.equal(one.text, prompts[other].text) for other in found):
            found.append(place)
    return found


def _differences(
    engine: Engine, prompts: Sequence[Prompt], seeds: Sequence[int], advance: Callable[[int], None]
) -> list[Baseline]:
    """Each prompt's noise differences by seed, all prompts in the same batches."""
    samples = [Sample(prompt, frozenset(), seed) for prompt in prompts for seed in seeds]
    found = iter(engine.evaluate(samples, advance))
    return [{seed: next(found) for seed in seeds} for _ in prompts]


def _scores(engine: Engine, found: Sequence[Baseline], caption: Baseline) -> list[tuple[float, float]]:
    """Of each prompt the best pairwise score among its own seeds, and the best with the caption's."""
    own = best_pairs_of_each(found, published=engine.published)
    alike = scores_of_each([(one, caption) for one in found], "cross-seed", published=engine.published)
    return [(max(a.values()), max(b.values())) for a, b in zip(own, alike, strict=True)]


def _drawn(
    engine: Engine, prompts: Sequence[Prompt], scored: Sequence[tuple[float, float]], effort: Effort,
    judges: Judges, reference: Reference, advance: Callable[[int], None],
) -> Mapping[int, float]:  # fmt: skip
    """Place -> the largest r over the seeds, of the caption, the alarming and the highest."""
    order = sorted(range(1, len(prompts)), key=lambda place: -scored[place][1])
    alarming = [place for place in order if scored[place][0] > judges.gate]
    places = sorted({0, *alarming, *order[: effort.drawn]})
    seeds = range(DRAW_SEED, DRAW_SEED + effort.draw_seeds)
    samples = [Sample(prompts[place], frozenset(), seed) for place in places for seed in seeds]
    ends = iter(engine.trajectories(samples, judges.schedule, advance))
    return {
        place: max(reference.remaining({seed: next(ends) for seed in seeds}).values())
        for place in places
    }
