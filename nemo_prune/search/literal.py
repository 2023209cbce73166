"""The search for memorization neurons as pure logic: it asks, somebody else answers.

A search is a generator. It yields a `Question` ("with these neurons off, what is the score on each
of these seeds?"), receives an `Answer`, and returns an `Outcome`. It knows no model and no device,
so it is tested with made-up oracles, and an engine may keep many searches in flight at once.

This module holds the words both sides share, the ladder of candidate sets (D1/D2 of "Finding
NeMo", section 3.2) and the procedure exactly as the paper states it (D1 to D4). That one stays for
good: it is the oracle which the economical search in `fast_search` is compared with.

**One criterion, everywhere.** A set of neurons meets it when, with them off, no memorized seed
scores above the threshold: ``max <= threshold``. The ladder is climbed while ``max > tau``, and a
neuron is dropped if the maximum stays ``<= threshold``; "at most" rather than "below" since, when
the ladder ends, the threshold is a score that was reached, which "below" could never meet again.
Switching off nothing never meets the criterion, by definition, and is not asked about: the first
question's answers for it are scores between pairs of seeds, which need not be comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nemo_prune.checkpoint.neurons import Neuron

THETA_START = 5.0
THETA_STEP = 0.25
LAST_RUNG = 16  # theta = 1, k = 16: the paper's ladder ends here

Status = Literal["not memorized", "localized", "not removable"]
Answer = Mapping[int, float]
"""Seed index -> memorization score in [0, 1]. One denoiser sample each."""


@dataclass(frozen=True)
class Question:
    """With the neurons `off`, what is the score on each of `seeds`?

    Every pair (off, seed) costs one denoiser sample. For an empty `off` the answer is each seed's
    best pairwise score, of the unpruned model; that is always a search's first question, and its
    only one with an empty `off`. `seeds` is never empty.
    """

    off: frozenset[Neuron]
    seeds: tuple[int, ...]


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
    theta: the |z| bound of the rung used, in standard deviations; None if nothing was searched.
    candidates: how many neurons that rung holds.
    samples: how many pairs (off, seed) were asked for: denoiser samples.
    questions: in how many questions.
    """

    status: Status
    neurons: tuple[Neuron, ...]
    scores_before: dict[int, float]
    memorized_seeds: tuple[int, ...]
    scores_after: dict[int, float]
    threshold: float
    theta: float | None
    candidates: int
    samples: int
    questions: int


def outcome_from(told: Mapping[str, Any]) -> Outcome:
    """The outcome that was kept as JSON of its fields, exactly."""
    scores = {
        name: {int(k): v for k, v in told[name].items()} for name in ("scores_before", "scores_after")
    }
    neurons = tuple(Neuron(**neuron) for neuron in told["neurons"])
    seeds = tuple(told["memorized_seeds"])
    return Outcome(**{**told, **scores, "neurons": neurons, "memorized_seeds": seeds})


Search = Generator[Question, Answer, Outcome]
Asking = Generator[Question, Answer, dict[int, float]]


@dataclass(frozen=True)
class Ladder:
    """The nested candidate sets S(theta, k) of D1/D2, from theta = 5, k = 0 to theta = 1, k = 16.

    z: layer name -> |a - mean| / std of each of its neurons, layers in network order, where a is
        the mean over tokens of |value layer output| (the statistics come from ordinary prompts).
        NaN (a neuron without spread) never exceeds a bound.
    activation: layer name -> a itself, same layers and lengths.

    Raises ValueError if the two do not describe the same layers.
    """

    z: Mapping[str, Sequence[float]]
    activation: Mapping[str, Sequence[float]]
    order: tuple[Neuron, ...] = field(init=False, repr=False, compare=False)
    """The neurons of the last rung in network order: layer by layer, row by row."""
    _entry: dict[Neuron, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if list(self.z) != list(self.activation):
            raise ValueError("z scores and activations name different layers")
        entry: dict[Neuron, int] = {}
        for layer, scores in self.z.items():
            activation = self.activation[layer]
            if len(scores) != len(activation):
                raise ValueError(f"z scores and activations of {layer} differ in length")
            smallness = [-abs(a) for a in activation]
            largest = sorted(range(len(scores)), key=smallness.__getitem__)
            rank = {row: place for place, row in enumerate(largest, start=1)}
            for row, score in enumerate(scores):
                rung = min(_first_rung_below(abs(score)), rank[row])
                if rung <= LAST_RUNG:
                    entry[Neuron(layer, row)] = rung
        object.__setattr__(self, "_entry", entry)
        object.__setattr__(self, "order", tuple(entry))

    def rung(self, i: int) -> frozenset[Neuron]:
        """S(theta = 5 - 0.25 i, k = i): every |z| > theta, and each layer's k largest |a|."""
        return frozenset(neuron for neuron, first in self._entry.items() if first <= i)

    def theta(self, i: int) -> float:
        """The bound on |z| at rung i, in standard deviations."""
        return THETA_START - THETA_STEP * i

    def suspicion(self, neuron: Neuron) -> float:
        """|z| of a neuron: how far out of the ordinary this prompt drives it (NaN counts as 0)."""
        score = abs(self.z[neuron.layer][neuron.row])
        return 0.0 if math.isnan(score) else score

    def in_network_order(self, neurons: Collection[Neuron]) -> tuple[Neuron, ...]:
        """Candidates sorted as the network runs them (names alone do not sort that way)."""
        return tuple(neuron for neuron in self.order if neuron in neurons)


def _first_rung_below(score: float) -> int:
    """The first rung whose theta lies below the score; past the last one if none does."""
    rungs = range(LAST_RUNG + 1)
    return next((i for i in rungs if score > THETA_START - THETA_STEP * i), LAST_RUNG + 1)


class Tally:
    """Puts questions and counts what they cost."""

    def __init__(self) -> None:
        self.samples = 0
        self.questions = 0

    def ask(self, off: frozenset[Neuron], seeds: tuple[int, ...]) -> Asking:
        """Ask one question, even if it was asked before.

        Raises ValueError for an answer that lacks a seed or holds NaN, which would otherwise pass
        for a low score.
        """
        answer = yield Question(off, seeds)
        self.samples += len(seeds)
        self.questions += 1
        scores = {seed: float(answer[seed]) for seed in seeds if seed in answer}
        if len(scores) < len(seeds) or any(math.isnan(score) for score in scores.values()):
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


def literal_search(ladder: Ladder, seeds: Sequence[int], tau: float) -> Search:
    """D1 to D4 to the letter: every evaluation on all seeds, one candidate at a time.

    The ladder is climbed rung by rung from theta = 5 (D3). Refinement (D4) unblocks whole layers
    from the mid block backwards and drops those that are not needed, then does the same neuron by
    neuron in the layers left, in the same order of layers, rows ascending. Like the paper's, it
    repeats itself where a layer holds one candidate. Only the empty set is never asked about.

    tau: the score above which a seed counts as memorized. Raises ValueError as `Tally.ask` does.
    """
    seeds = check_seeds(seeds)
    tally = Tally()
    before = yield from tally.ask(frozenset(), seeds)
    memorized = tuple(seed for seed in seeds if before[seed] > tau)
    if not memorized:
        return not_memorized(before, tau)

    rung, after = 0, {seed: before[seed] for seed in memorized}
    for rung in range(LAST_RUNG + 1):
        if not ladder.rung(rung):
            continue
        scores = yield from tally.ask(ladder.rung(rung), seeds)
        after = {seed: scores[seed] for seed in memorized}
        if max(after.values()) <= tau:
            break
    reached = max(after.values())
    threshold = max(tau, reached)

    candidates = ladder.rung(rung)
    kept = candidates
    backwards = reversed(list(ladder.z))
    layers = [frozenset(n for n in candidates if n.layer == layer) for layer in backwards]
    for layer in layers:
        if not layer or not kept - layer:
            continue
        scores = yield from tally.ask(kept - layer, seeds)
        if max(scores[seed] for seed in memorized) <= threshold:
            kept, after = kept - layer, {seed: scores[seed] for seed in memorized}
    for neuron in (neuron for layer in layers for neuron in sorted(layer & kept)):
        if kept == {neuron}:
            continue
        scores = yield from tally.ask(kept - {neuron}, seeds)
        if max(scores[seed] for seed in memorized) <= threshold:
            kept, after = kept - {neuron}, {seed: scores[seed] for seed in memorized}

    return Outcome(
        status="localized" if reached <= tau else "not removable",
        neurons=ladder.in_network_order(kept),
        scores_before=before,
        memorized_seeds=memorized,
        scores_after=after,
        threshold=threshold,
        theta=ladder.theta(rung),
        candidates=len(candidates),
        samples=tally.samples,
        questions=tally.questions,
    )


def run(search: Search, oracle: Callable[[frozenset[Neuron], int], float]) -> Outcome:
    """Drive a search with a function (off, seed) -> score; for tests and benchmarks."""
    try:
        question = next(search)
        while True:
            question = search.send({seed: oracle(question.off, seed) for seed in question.seeds})
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome
