"""The default search: the paper's ladder where its first rungs settle it, else an order by what matters.

|z| says which neurons are unusual for a prompt, an attribution says which ones its memory hangs on. One
attribution costs a few forward and backward passes, so it is taken only where the ladder's first rungs,
one sample each, do not settle the prompt with a handful of candidates. Candidates are then ordered by
attribution over harm (how much a neuron does for the memory against what it does for ordinary prompts),
and the shortest sufficient prefix is refined by group testing. A prefix so long that the order looks
wrong is compared with the ladder's candidates, and the smaller set is refined: whatever the attributions
are worth, the search costs no more than the gradient-free one, the attribution, and about twice the
logarithm of the number of prefixes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.search.answer_cache import AnswerCache
from nemo_prune.search.group_testing import (
    GroupTesting,
    Schedule,
    finished,
    ladder_schedule,
    prefix_schedule,
)
from nemo_prune.search.ladder import Ladder
from nemo_prune.search.protocol import (
    Attribute,
    Attribution,
    Outcome,
    Search,
    Steps,
    check_seeds,
    not_memorized,
)

SETTLED = 16  # candidates: so few are refined without an attribution
_FIRST_RUNGS = 2
_LONG = 64  # neurons of a prefix, or a sixth of all, from where on the order is not trusted
_GRADIENT_SEEDS = 2  # the most stubborn ones


@dataclass(frozen=True)
class Candidates:
    """What the searched layers hold.

    order: all their neurons, in network order. harm: what each does for ordinary prompts, above 0.
    """

    order: tuple[Neuron, ...]
    harm: Mapping[Neuron, float]

    def by_merit(self, attribution: Attribution) -> list[Neuron]:
        """The neurons of an attribution, most memory for least harm first; ties in network order."""
        known = [neuron for neuron in self.order if neuron in attribution]
        return sorted(known, key=lambda neuron: -attribution[neuron] / self.harm[neuron])


def auto_search(ladder: Ladder, candidates: Candidates, seeds: Sequence[int], tau: float) -> Search:
    """Find a valid, 1-minimal set of memorization neurons; see the module text.

    tau: the score above which a seed counts as memorized. Raises ValueError for unusable seeds or
    answers.
    """
    seeds = check_seeds(seeds)
    cache = AnswerCache(candidates.order, tau)
    before = yield from cache.tally.ask(frozenset(), seeds)
    memorized = tuple(seed for seed in seeds if before[seed] > tau)
    if not memorized:
        return not_memorized(before, tau)
    stubborn = sorted(memorized, key=lambda seed: -before[seed])
    by_ladder = ladder_schedule(ladder, cache)
    if (yield from _settled(cache, by_ladder, stubborn[0])):
        return (yield from _refined(GroupTesting(cache, before, memorized, by_ladder), before))
    attribution = yield from attributed(stubborn[:_GRADIENT_SEEDS])
    by_merit = prefix_schedule(candidates.by_merit(attribution), cache)
    searched = GroupTesting(cache, before, memorized, by_merit)
    shortest = yield from searched.shortest()
    long = max(_LONG, len(candidates.order) // 6)
    if shortest is None or shortest > long:
        other = GroupTesting(cache, before, memorized, by_ladder)
        there = yield from other.shortest()
        if shortest is None or (there is not None and there < shortest):
            searched = other
    return (yield from _refined(searched, before, attribution))


def trajectory_search(
    candidates: Candidates, remaining: Mapping[int, float], goal: float, gradient_seeds: int = 1
) -> Search:
    """Find further neurons for a prompt that is still drawn, judged by trajectories.

    remaining: seed -> what remains of the picture with nothing further off. The result is accepted
    by every one of these seeds (at most `goal` remains) and 1-minimal beside what is off already.
    """
    cache = AnswerCache(candidates.order, goal, trajectory=True)
    before = dict(remaining)
    seeds = tuple(sorted(before, key=lambda seed: -before[seed]))
    attribution = yield from attributed(seeds[:gradient_seeds], trajectory=True)
    schedule = prefix_schedule(candidates.by_merit(attribution), cache)
    searched = GroupTesting(cache, before, seeds, schedule)
    return (yield from _refined(searched, before, attribution))


def attributed(seeds: Sequence[int], *, trajectory: bool = False) -> Steps[Attribution]:
    """Ask for an attribution on these seeds together."""
    found: Attribution = yield Attribute(tuple(seeds), trajectory=trajectory)  # type: ignore[assignment]
    return found


def _settled(cache: AnswerCache, ladder: Schedule, seed: int) -> Steps[bool]:
    """Whether one of the ladder's first rungs holds few candidates and is enough for this seed."""
    for _, rung in ladder.rungs[:_FIRST_RUNGS]:
        if rung.bit_count() > SETTLED:
            return False
        yield from cache.ask(rung, (seed,))
        if cache.passes(rung, seed):
            return True
    return False


def _refined(
    searched: GroupTesting, before: dict[int, float], attribution: Attribution | None = None
) -> Steps[Outcome]:
    rung = yield from searched.run()
    return (yield from finished(searched, before, rung, attribution))
