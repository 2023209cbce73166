"""Which prompts are memorized: scores without a search, as few samples as the answer takes.

Two measures come from the same denoiser passes: the paper's memorization score (the largest
MS-SSIM between noise differences of two seeds), which decides, and Wen et al.'s norm of
conditional minus unconditional noise, which is reported beside it.

The score is a maximum over pairs of seeds, so it only rises with more of them. A prompt above the
gate stays above it: stopping there changes no decision. A prompt is clear once it lies below the
gate by more than scores still rise; how far that is was measured on ordinary prompts (`gate`).
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nemo_prune.errors import CheckpointError
from nemo_prune.model.denoiser import Tokens
from nemo_prune.scoring.engine import PROMPTS_AT_ONCE, Engine, Job, Prompt, Sample
from nemo_prune.scoring.searching import finished_searches
from nemo_prune.scoring.thresholds import decided
from nemo_prune.search.protocol import (
    Outcome,
    Question,
    Search,
    Steps,
    Tally,
    check_seeds,
    not_memorized,
    usable,
)

# Norm of what a prompt changes, as a part of the noise's own, below which it is rounding: the same text
# in batches of two sizes gives some 1e-6 in fp32; captions give 1e-2 and more.
_NO_EFFECT = 1e-4


@dataclass(frozen=True)
class Screened:
    """Each seed's best pairwise score so far, and the largest each time they were looked at."""

    scores: dict[int, float]
    path: tuple[float, ...]


@dataclass(frozen=True)
class Detection:
    """What was measured of one prompt; `index` counts the prompts of the file from 0.

    score: memorization score in [0, 1] over the seeds used; of a prompt that was clear early it is
        what was reached by then, so a lower bound of what all seeds would give.
    noise_norm: mean over the seeds used of ||eps(prompt) - eps("")||, in units of the latents.
    seeds: how many were used; one denoiser sample each.
    consistency: how alike trajectories of a few seeds are, if they were drawn; see `consistency`.
    seed_scores: of each seed used, in their order, its best similarity with another one; the score is
        the largest.
    """

    index: int
    score: float
    noise_norm: float
    seeds: int
    memorized: bool
    consistency: float | None = None
    seed_scores: tuple[float, ...] = ()


def screening(
    seeds: Sequence[int], gate: float | None = None, margins: Sequence[float] = ()
) -> Steps[Screened]:
    """Score a prompt on two seeds, then one more at a time, until the answer is clear.

    gate: stop once the score lies above it; None: use all seeds.
    margins: stop after 2, 3, ... seeds once the score lies below the gate by at least this much;
        empty: never.

    Raises ValueError for fewer than two seeds, or an answer that is NaN.
    """
    path: list[float] = []
    scores: dict[int, float] = {}
    for question in _questions(tuple(seeds)):
        # Not by a Tally: nobody counts, and of millions of prompts every step is felt.
        scores = usable((yield question), question.seeds)
        path.append(max(scores.values()))
        if gate is not None and decided(path[-1], len(question.seeds), gate, margins):
            break
    return Screened(scores, tuple(path))


@lru_cache(maxsize=16)
def _questions(seeds: tuple[int, ...]) -> tuple[Question, ...]:
    """What `screening` asks of every prompt, one after the other."""
    seeds = _comparable(seeds)
    return tuple(Question(frozenset(), seeds[:count]) for count in range(2, len(seeds) + 1))


def _comparable(seeds: Sequence[int]) -> tuple[int, ...]:
    if len(seeds) < 2:
        raise ValueError("the score compares seeds, so it needs at least 2")
    return check_seeds(seeds)


def gated(inner: Callable[[], Search], seeds: Sequence[int], tau: float, gate: float) -> Search:
    """A search that is only begun if the prompt is memorized by the gate, on all seeds.

    Nobody is left alone on a few of them: a template that shows from half of the seeds is soon
    taken for clear. `inner` makes the search; its first question is answered from these samples.
    """
    scores = yield from Tally().ask(frozenset(), _comparable(seeds))
    if max(scores.values()) <= gate:
        return not_memorized(scores, tau)
    outcome: Outcome = yield from inner()
    return outcome


def score_paths(
    engine: Engine,
    prompts: Sequence[str],
    seeds: Sequence[int],
    advance: Callable[[int], None] = lambda _count: None,
) -> tuple[list[tuple[float, ...]], list[float]]:
    """Of each prompt, the score after 2, 3, ... seeds, and the mean noise norm over all seeds."""
    found: dict[int, tuple[tuple[float, ...], float]] = {}

    def keep(index: int, screened: Screened, norm: float) -> None:
        found[index] = screened.path, norm
        advance(1)

    _screen(engine, prompts, range(len(prompts)), seeds, None, (), keep)
    ordered = [found[index] for index in range(len(prompts))]
    return [path for path, _ in ordered], [norm for _, norm in ordered]


def detect(
    engine: Engine,
    prompts: Sequence[str],
    seeds: Sequence[int],
    gate: float,
    margins: Sequence[float] = (),
    *,
    early: bool = True,
    known: Mapping[int, Detection] | None = None,
    on_found: Callable[[Detection], None] = lambda _found: None,
) -> list[Detection]:
    """Score every prompt; only the findings grow with their number.

    gate, margins: as `screening` takes them. early: False uses all seeds for every prompt, which
    makes the scores comparable with each other. known: what an earlier run found, by index; it is
    not scored again. on_found: told of each prompt as it is finished, in no order.

    Raises CheckpointError if the denoiser gives NaN.
    """
    found = dict(known or {})

    def keep(index: int, screened: Screened, norm: float) -> None:
        found[index] = Detection(
            index=index,
            score=screened.path[-1],
            noise_norm=norm,
            seeds=len(screened.scores),
            memorized=screened.path[-1] > gate,
            seed_scores=tuple(screened.scores[seed] for seed in sorted(screened.scores)),
        )
        on_found(found[index])

    left = [index for index in range(len(prompts)) if index not in found]
    _screen(engine, prompts, left, seeds, gate if early else None, margins, keep)
    return [found[index] for index in range(len(prompts))]


def _screen(
    engine: Engine,
    prompts: Sequence[str],
    indices: Sequence[int],
    seeds: Sequence[int],
    gate: float | None,
    margins: Sequence[float],
    keep: Callable[[int, Screened, float], None],
) -> None:
    """Screen the prompts at `indices`; `keep` gets the index, what was found, and the noise norm."""
    screened = Screening(engine, seeds, gate, margins)

    def kept(place: int, found: tuple[Screened, float]) -> None:
        screened.saw(found[1])
        keep(indices[place], *found)

    engine.each(screened.each, [prompts[index] for index in indices], kept, numbers=indices)
    screened.check_effect()


class Screening:
    """Screens prompts as `screening` says, some at a time.

    Beside the score it takes the noise norm: the L2 norm of eps(prompt) - eps("") over all latent
    channels and pixels, by Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion
    Models" (ICLR 2024), at the engine's timestep. It takes one sample a seed more, whatever the number
    of prompts.
    """

    def __init__(
        self, engine: Engine, seeds: Sequence[int], gate: float | None, margins: Sequence[float]
    ) -> None:
        self._engine, self._seeds, self._gate, self._margins = engine, seeds, gate, margins
        (nothing,) = engine.prompts([""])
        self._empty: dict[int, Tensor] = {}
        self._effect: float | None = None  # the largest norm, as a part of that of all noise
        engine.evaluate(
            [Sample(nothing, frozenset(), seed) for seed in seeds],
            on_noise=lambda samples, noise: self._empty.update(
                zip([sample.seed for sample in samples], noise.clone(), strict=True)
            ),
        )
        # NaN is found, and refused, where it is compared.
        self._whole = statistics.fmean(float(noise.norm()) for noise in self._empty.values())

    def saw(self, norm: float) -> None:
        """A prompt's noise norm, for `check_effect`: workers each see some of them."""
        self._effect = max(self._effect or 0.0, norm / self._whole if self._whole else 0.0)

    def check_effect(self) -> None:
        """Raise CheckpointError if no prompt of all that were screened changed the noise at all.

        Then nothing could be told memorized, whatever was.
        """
        if self._effect is not None and self._effect < _NO_EFFECT:
            of = f"{self._engine.path}: " if self._engine.path else ""
            raise CheckpointError(
                f"{of}no prompt changes what the denoiser predicts, which says nothing about "
                f"memorization; check the weights, and whether the text encoder is the model's own"
            )

    def each(self, texts: Sequence[str]) -> Iterator[tuple[int, tuple[Screened, float]]]:
        """Work: of each prompt what was found, and its noise norm."""
        for start in range(0, len(texts), PROMPTS_AT_ONCE):
            for place, found in self.some(texts[start : start + PROMPTS_AT_ONCE]):
                yield start + place, found

    def tokenized(
        self, blocks: Sequence[tuple[Sequence[str], Tokens]]
    ) -> Iterator[tuple[int, list[tuple[Screened, float]]]]:
        """Work: the same of blocks of prompts that are tokenized already."""
        for place, block in enumerate(blocks):
            found = dict(self.some(*block))
            yield place, [found[place] for place in range(len(found))]

    def some(
        self, texts: Sequence[str], tokens: Tokens | None = None
    ) -> Iterator[tuple[int, tuple[Screened, float]]]:
        """Screen a few prompts, which are all held at once.

        tokens: of them, where they are known.
        """
        encoded = self._engine.prompts(texts, tokens)
        norms: dict[Prompt, dict[int, float]] = {prompt: {} for prompt in encoded}

        def note_norms(samples: Sequence[Sample], noise: Tensor) -> None:
            nothing = torch.stack([self._empty[sample.seed] for sample in samples])
            found = torch.linalg.vector_norm(noise - nothing, dim=(1, 2, 3)).tolist()
            for sample, norm in zip(samples, found, strict=True):
                norms[sample.prompt][sample.seed] = norm

        jobs = [Job(prompt, screening(self._seeds, self._gate, self._margins)) for prompt in encoded]
        for place, found in finished_searches(self._engine, jobs, on_noise=note_norms):
            of = norms[encoded[place]]
            yield place, (found, statistics.fmean([of[seed] for seed in found.scores]))
