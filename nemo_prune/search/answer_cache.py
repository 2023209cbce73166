"""Every answer a search received, and what follows from it.

Kept apart from the search that uses it, so that the two kinds of knowledge cannot be mixed up:
`AnswerCache.passes` is what was really answered, `AnswerCache.expects` adds what monotonicity implies
(with more neurons off no seed scores higher).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.search.protocol import Steps, Tally

_SELECTORS = bytes.maketrans(b"01", bytes([0, 1]))

Mask = int
"""A set of neurons: one bit for each of `AnswerCache.order`. Subset tests cost nothing."""


class AnswerCache:
    """Every answer so far, and what follows from it.

    Args:
        order: all neurons that may be asked about, in network order.
        threshold: a seed accepts a set if it scores at most this; may rise once, when a schedule ends.
        trajectory: ask about trajectories instead of scores.

    `trusted` says whether monotonicity may be assumed.
    """

    def __init__(self, order: Sequence[Neuron], threshold: float, *, trajectory: bool = False) -> None:
        self.order = tuple(order)
        self.threshold = threshold
        self.trajectory = trajectory
        self.trusted = True
        self.tally = Tally()
        self.bits = {neuron: bit for bit, neuron in enumerate(self.order)}
        self._scores: dict[int, dict[Mask, float]] = {}

    def bit(self, neuron: Neuron) -> int:
        """The neuron's place in `order`."""
        return self.bits[neuron]

    def mask(self, neurons: Iterable[Neuron]) -> Mask:
        """The bit mask of a set of neurons."""
        found, bits = bytearray(len(self.order) // 8 + 1), self.bits
        for neuron in neurons:
            bit = bits[neuron]
            found[bit >> 3] |= 1 << (bit & 7)
        return int.from_bytes(found, "little")

    def neurons(self, mask: Mask) -> tuple[Neuron, ...]:
        """The neurons in a bit mask, in network order."""
        return tuple(compress(self.order, bin(mask)[:1:-1].encode().translate(_SELECTORS)))

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
        """Like `passes`, or what monotonicity implies while it is trusted."""
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
            answer = yield from self.tally.ask(
                frozenset(self.neurons(off)), missing, trajectory=self.trajectory
            )
            for seed, score in answer.items():
                self._scores.setdefault(seed, {})[off] = score
        return {seed: self._scores[seed][off] for seed in seeds}

    def answers(self) -> Iterator[tuple[int, float]]:
        """(how many neurons were off, the largest score answered) for every set asked about."""
        worst: dict[Mask, float] = {}
        for scores in self._scores.values():
            for off, score in scores.items():
                worst[off] = max(score, worst.get(off, score))
        for off, score in worst.items():
            yield off.bit_count(), score
