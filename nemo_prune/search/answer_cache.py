"""What a search was told, and what follows from it.

Kept apart from the search that uses it (`fast_search`), so that the two kinds of knowledge cannot
be mixed up: `Evidence.passes` is what was really answered, `Evidence.expects` adds what monotony
implies (with more neurons off no seed scores higher).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.search.literal import Answer, Ladder, Question, Tally

T = TypeVar("T")
Steps = Generator[Question, Answer, T]

Mask = int
"""A set of candidates: one bit for each neuron of `Ladder.order`. Subset tests cost nothing."""


class Evidence:
    """Every answer so far, and what follows from it.

    `trusted` says whether monotony may be assumed; `threshold` may rise once, when the ladder ends.
    """

    def __init__(self, ladder: Ladder, threshold: float) -> None:
        self.ladder = ladder
        self.threshold = threshold
        self.trusted = True
        self.tally = Tally()
        self._scores: dict[int, dict[Mask, float]] = {}

    def mask(self, neurons: frozenset[Neuron]) -> Mask:
        """The bit mask of a set of candidates."""
        return sum(1 << bit for bit, neuron in enumerate(self.ladder.order) if neuron in neurons)

    def neurons(self, mask: Mask) -> tuple[Neuron, ...]:
        """The candidates in a bit mask, in network order."""
        return tuple(neuron for bit, neuron in enumerate(self.ladder.order) if mask >> bit & 1)

    def score(self, off: Mask, seed: int) -> float | None:
        """The score really answered, if it was asked."""
        return self._scores.get(seed, {}).get(off)

    def passes(self, off: Mask, seed: int) -> bool | None:
        """Whether the seed accepts the set, as answered; None if that was not asked.

        Switching off nothing is never accepted, by definition.
        """
        if not off:
            return False
        score = self.score(off, seed)
        return None if score is None else score <= self.threshold

    def expects(self, off: Mask, seed: int) -> bool | None:
        """Like `passes`, or what monotony implies while it is trusted."""
        known = self.passes(off, seed)
        if known is not None or not self.trusted:
            return known
        for asked, score in self._scores.get(seed, {}).items():
            if score <= self.threshold:
                if asked & off == asked:
                    return True
            elif asked & off == off:
                return False
        return None

    def ask(self, off: Mask, seeds: Sequence[int]) -> Steps[dict[int, float]]:
        """The scores of the set on the seeds; only those not yet answered are asked for."""
        missing = tuple(seed for seed in seeds if self.score(off, seed) is None)
        if missing:
            answer = yield from self.tally.ask(frozenset(self.neurons(off)), missing)
            for seed, score in answer.items():
                self._scores.setdefault(seed, {})[off] = score
        return {seed: self._scores[seed][off] for seed in seeds}
