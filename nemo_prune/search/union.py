"""Which neurons of a union no prompt needs any more, as pure logic: it asks, the engine answers.

Each prompt's own neurons were found alone, where every one of them is needed. In the union other
prompts' neurons may do the same work, and what only does damage should stay in the model. One
group-tested pass over the union asks about all prompts at once: with these neurons off, does every
prompt stay suppressed? Not in the paper, which never removes a union ("Finding NeMo", table 1).

As in `fast_search`, counterexamples choose what is asked: a test asks the prompts that wanted the
neurons to be dropped, on the most stubborn seed of each; everybody is asked about the result, and
who objects is asked about every test of another pass. More neurons off are taken to suppress no
less only in that a neuron once needed is not tried again; the result itself is always confirmed on
every pair of prompt and seed.
"""

from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass

from nemo_prune.checkpoint.neurons import Neuron, union
from nemo_prune.search.group_testing import group_size

Pair = tuple[int, int]
"""Prompt, seed. One denoiser sample each."""


@dataclass(frozen=True)
class UnionQuestion:
    """With the neurons `off`, never none, what does each pair of prompt and seed score?"""

    off: frozenset[Neuron]
    pairs: tuple[Pair, ...]


UnionSearch = Generator[UnionQuestion, Mapping[Pair, float], tuple[Neuron, ...]]
_Asking = Generator[UnionQuestion, Mapping[Pair, float], bool]


def reduce_union(
    own: Mapping[int, Collection[Neuron]], known: Mapping[Pair, float], tau: float
) -> UnionSearch:
    """The neurons of the union that are still needed, in network order.

    own: prompt -> the neurons it asked for.
    known: the score of every pair with the whole union off. A pair may not come to exceed tau, or
        where it does so already, that score.
    """
    reduction = _Reduction(own, known, tau)
    neurons = union(*own.values())
    # What one prompt alone asked for hurts fewest if it proves superfluous.
    order = sorted(neurons, key=lambda neuron: len(reduction.owners[neuron]))
    while True:
        kept = yield from reduction.refine(order)
        if len(kept) == len(order) or (yield from reduction.confirmed(kept)):
            return tuple(neuron for neuron in neurons if neuron in kept)


class _Reduction:
    def __init__(
        self, own: Mapping[int, Collection[Neuron]], known: Mapping[Pair, float], tau: float
    ) -> None:
        self.owners: dict[Neuron, list[int]] = {}
        for prompt, neurons in own.items():
            for neuron in neurons:
                self.owners.setdefault(neuron, []).append(prompt)
        self.limit = {pair: max(tau, score) for pair, score in known.items()}
        self.stubborn = _most_stubborn(known)
        self.objectors: list[Pair] = []
        self.answers: dict[tuple[frozenset[Neuron], Pair], float] = {}

    def refine(
        self, order: list[Neuron]
    ) -> Generator[UnionQuestion, Mapping[Pair, float], frozenset[Neuron]]:
        """One pass: drop groups that nobody concerned misses, halve those that somebody does."""
        kept: set[Neuron] = set()
        needed, tested = 1.0, 2.0  # most neurons of a union are needed: begin with single ones
        start, end = 0, len(order)
        while start < end:
            low, high = start, start + group_size(needed / tested, end - start)
            if (yield from self.accepted(kept.union(order[high:]), order[start:high])):
                tested += high - start
                start = high
                continue
            while high - low > 1:
                middle = (low + high) // 2
                if (yield from self.accepted(kept.union(order[middle:]), order[start:middle])):
                    low = middle
                else:
                    high = middle
            kept.add(order[low])
            needed, tested = needed + 1, tested + low + 1 - start
            start = low + 1
        return frozenset(kept)

    def accepted(self, off: Collection[Neuron], dropped: Collection[Neuron]) -> _Asking:
        """Whether those concerned stay suppressed: the dropped neurons' owners, and past objectors."""
        owners = dict.fromkeys(prompt for neuron in dropped for prompt in self.owners[neuron])
        pairs = [self.stubborn[prompt] for prompt in owners if prompt in self.stubborn]
        return (yield from self.ask(frozenset(off), [*pairs, *self.objectors]))

    def confirmed(self, off: frozenset[Neuron]) -> _Asking:
        """Whether every pair stays suppressed; of those that do not, each prompt's worst objects."""
        if (yield from self.ask(off, list(self.limit))):
            return True
        excess = {pair: self.answers[off, pair] - limit for pair, limit in self.limit.items()}
        worst = _most_stubborn({pair: more for pair, more in excess.items() if more > 0})
        self.objectors = list(dict.fromkeys([*self.objectors, *worst.values()]))
        return False

    def ask(self, off: frozenset[Neuron], pairs: Collection[Pair]) -> _Asking:
        if not off:  # then nothing is suppressed
            return False
        missing = tuple(pair for pair in dict.fromkeys(pairs) if (off, pair) not in self.answers)
        if missing:
            answer = yield UnionQuestion(off, missing)
            self.answers |= {(off, pair): float(answer[pair]) for pair in missing}
        return all(self.answers[off, pair] <= self.limit[pair] for pair in pairs)


def _most_stubborn(scores: Mapping[Pair, float]) -> dict[int, Pair]:
    """Of each prompt the pair with the highest score."""
    return {pair[0]: pair for pair in sorted(scores, key=scores.__getitem__)}
