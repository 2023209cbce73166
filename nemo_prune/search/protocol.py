"""The search for memorization neurons as pure logic: it asks, somebody else answers.

A search is a generator. It yields a `Question` ("with these neurons off, what is the score on each
of these seeds?") or an `Attribute` ("how much does each neuron do for the memory?"), receives the
answer, and returns an `Outcome`. It knows no model and no device, so it is tested with made-up
oracles, and an engine may keep many searches in flight at once.

**One criterion, everywhere.** A set of neurons meets it when, with them off, no memorized seed
scores above the threshold: ``max <= threshold``. The ladder is climbed while ``max > tau``, and a
neuron is dropped if the maximum stays ``<= threshold``; "at most" rather than "below" since, when
the ladder ends, the threshold is a score that was reached, which "below" could never meet again.
Switching off nothing never meets the criterion, by definition, and is not asked about: the first
question's answers for it are scores between pairs of seeds, which need not be comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from nemo_prune.checkpoint.neurons import Neuron

T = TypeVar("T")
POINTS = (0.5, 0.75, 0.25)
_GRADIENT = 3  # samples that a forward and a backward pass count as
SearchStatus = Literal["not memorized", "localized", "not removable"]
Answer = Mapping[int, float]
"""Seed index -> memorization score in [0, 1], or for trajectories what remains of the picture."""
Attribution = Mapping[Neuron, float]
"""Neuron -> how much switching it off lowers the score, to first order; may be negative."""


@dataclass(frozen=True)
class Question:
    """With the neurons `off`, what is the score on each of `seeds`?

    Every pair (off, seed) costs one denoiser sample. For an empty `off` the answer is each seed's
    best pairwise score, of the unpruned model; that is always a search's first question, and its
    only one with an empty `off`. `seeds` is never empty.

    trajectory: ask what remains of the prompt's picture at the end of a guided trajectory instead,
        which costs as many samples as that has passes.
    """

    off: frozenset[Neuron]
    seeds: tuple[int, ...]
    trajectory: bool = False


@dataclass(frozen=True)
class Attribute:
    """With the neurons `off`, how much does each other one do for the score on `seeds` together?

    Forward and backward passes at a few points for each seed; see `attribution` in the scoring room.

    among: ask of these neurons alone, and leave all others on. With 0 as the only point that is what
        each one's return would bring back while all of them are off.
    points: mask values at which the gradient is taken, on the straight line from all on to all off;
        ends alone mislead (one caption in eight came out with far more neurons than needed).
    """

    seeds: tuple[int, ...]
    off: frozenset[Neuron] = frozenset()
    trajectory: bool = False
    among: frozenset[Neuron] | None = None
    points: tuple[float, ...] = POINTS


Reply = Answer | Attribution


@dataclass(frozen=True)
class Outcome:
    """What a search found for one prompt.

    status: "not memorized" (no seed scored above tau: nothing was searched), "localized"
        (`neurons` meet the criterion), or "not removable" (the whole ladder off still scores
        above tau; the search went on with the score reached as the threshold, as the paper does).
    neurons: the neurons to switch off, in network order.
    scores_before: each seed's best pairwise score, nothing off.
    memorized_seeds: the seeds whose score before was above tau, in the order given.
    scores_after: each memorized seed's score with `neurons` off.
    threshold: tau, or the score reached where the ladder ended above it.
    theta: the |z| bound of the rung used, in standard deviations; None if none was.
    candidates: how many neurons were refined: those of the rung, or of the prefix by attribution.
    samples: how many pairs (off, seed) were asked for: denoiser samples.
    questions: in how many questions.
    order: what ordered the candidates: "ladder" or "attribution".
    attribution: of each neuron of `neurons` where an attribution was taken.
    tradeoff: (neurons off, the largest score answered) for the best sets of each size asked about:
        with fewer neurons off none of them scored lower.
    minimal: whether every neuron of `neurons` was shown to be needed; not where that was cut short.
    """

    status: SearchStatus
    neurons: tuple[Neuron, ...]
    scores_before: dict[int, float]
    memorized_seeds: tuple[int, ...]
    scores_after: dict[int, float]
    threshold: float
    theta: float | None
    candidates: int
    samples: int
    questions: int
    order: str = "ladder"
    attribution: tuple[float, ...] = ()
    tradeoff: tuple[tuple[int, float], ...] = ()
    minimal: bool = True


def outcome_from(kept: Mapping[str, Any]) -> Outcome:
    """The outcome that was kept as JSON of its fields, exactly."""
    scores = {
        name: {int(k): v for k, v in kept[name].items()} for name in ("scores_before", "scores_after")
    }
    neurons = tuple(Neuron(*neuron) for neuron in kept["neurons"])
    lists = {name: tuple(kept[name]) for name in ("memorized_seeds", "attribution")}
    tradeoff = tuple((count, score) for count, score in kept["tradeoff"])
    return Outcome(**{**kept, **scores, **lists, "neurons": neurons, "tradeoff": tradeoff})


Steps = Generator[Question | Attribute, Reply, T]
Search = Steps[Outcome]


class Tally:
    """Puts questions and counts what they cost."""

    def __init__(self) -> None:
        self.samples = 0
        self.questions = 0
        self.gradients = 0  # backward passes, each of one seed at one point

    @property
    def spent(self) -> int:
        """Samples in all: forward and backward count as three."""
        return self.samples + _GRADIENT * self.gradients

    def attribute(self, wanted: Attribute) -> Steps[Attribution]:
        """Ask for an attribution, and count its backward passes."""
        found: Attribution = yield wanted  # type: ignore[assignment]
        self.gradients += len(wanted.seeds) * len(wanted.points)
        return found

    def ask(
        self, off: frozenset[Neuron], seeds: tuple[int, ...], *, trajectory: bool = False
    ) -> Steps[dict[int, float]]:
        """Ask one question, even if it was asked before.

        Raises ValueError for an answer that lacks a seed or holds NaN, which would otherwise pass
        for a low score.
        """
        answer: Any = yield Question(off, seeds, trajectory)
        self.samples += len(seeds)
        self.questions += 1
        return usable(answer, seeds)


def usable(answer: Mapping[Any, float], seeds: tuple[int, ...]) -> dict[int, float]:
    """The answer's scores of the seeds. Raises ValueError if one lacks or is NaN."""
    scores = {seed: float(answer[seed]) for seed in seeds if seed in answer}
    # A sum is NaN if a part is; this is asked millions of times, so there is no loop.
    if len(scores) < len(seeds) or math.isnan(sum(scores.values())):
        raise ValueError(f"no usable score for some of the seeds {seeds}: {dict(answer)}")
    return scores


def check_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    """The seeds as a tuple. Raises ValueError if there are none, or one twice."""
    seeds = tuple(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"a search needs seeds, each of them once, not {seeds}")
    return seeds


def not_memorized(before: dict[int, float], tau: float) -> Outcome:
    """The outcome of a prompt whose first question found no seed above tau."""
    return Outcome("not memorized", (), before, (), {}, tau, None, 0, len(before), 1)


def run(
    search: Search,
    oracle: Callable[[frozenset[Neuron], int], float],
    attribution: Callable[[Attribute], Attribution] | None = None,
) -> Outcome:
    """Drive a search with a function (off, seed) -> score; for tests and benchmarks."""
    try:
        asked = next(search)
        while True:
            if isinstance(asked, Attribute):
                assert attribution is not None
                asked = search.send(attribution(asked))
            else:
                asked = search.send({seed: oracle(asked.off, seed) for seed in asked.seeds})
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome
