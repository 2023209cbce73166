"""The default search: the paper's ladder where a short rung is enough, else an order by what matters.

|z| says which neurons are unusual for a prompt, an attribution says which ones its memory hangs on. One
attribution costs a few forward and backward passes, so it is taken only where the ladder's last rung of
few candidates, which costs one sample, is not enough. All neurons are then ordered by attribution over
harm (how much a neuron does for the memory against what it does for ordinary prompts), and of the
shortest sufficient prefix what is not needed comes back (`returning`). A prefix so long that the order
looks wrong is compared with the ladder's rung, and the smaller set is refined; a refinement that takes
more samples than a useful order would is given up for the ladder's, and either for the other where it
ends with no result.

Whatever the gradients are worth: the result is checked as the gradient-free one's is, a prompt is
"localized" wherever a climb of the whole ladder would say so, and where scores are monotone it costs, in
samples, at most what the gradient-free search costs and

- the attribution: 3 for each of its points,
- finding the prefix: 1 for the short rung, 1 for all neurons, 2 log2(P) for the shortest of P prefixes,
- where the refinement was given up, gradients counted: 64 and 4 for each neuron of that prefix, which
  has at most 64 or as many as the ladder's rung; none where the order is good.

The last is what the search gives itself (`_patience`); the rest may differ by a few samples, since
answers that are known already change which seed is asked first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.search.answer_cache import AnswerCache, Mask
from nemo_prune.search.group_testing import (
    GroupTesting,
    Schedule,
    finished,
    ladder_schedule,
    prefix_schedule,
)
from nemo_prune.search.ladder import Ladder
from nemo_prune.search.protocol import (
    POINTS,
    Attribute,
    Attribution,
    Search,
    Steps,
    check_seeds,
    not_memorized,
)
from nemo_prune.search.returning import Returning

SETTLED = 32  # candidates: so few are refined without an attribution, which costs as much
_SHORT = 8  # neurons of a prefix: of so few, group testing tells for less than a gradient costs
_LONG = 64  # neurons of a prefix, from where on it is compared with the ladder


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
        searched = GroupTesting(cache, before, memorized, by_ladder)
        if (rung := (yield from _attempt(searched))) is not None:
            return (yield from finished(searched, before, rung))
    attribution = yield from attributed(cache, stubborn)
    by_merit = prefix_schedule(candidates.by_merit(attribution), cache)
    plans = yield from _plans(cache, before, memorized, by_merit, by_ladder, candidates.harm)
    for searched, most in plans:
        cache.threshold = tau
        if (rung := (yield from _attempt(searched, most))) is not None:
            return (yield from finished(searched, before, rung, attribution))
    cache.threshold = tau  # not removable: goes on as the paper does where the ladder ends
    searched = GroupTesting(cache, before, memorized, by_ladder)
    rung = yield from searched.run()
    return (yield from finished(searched, before, rung, attribution))


def trajectory_search(
    candidates: Candidates,
    remaining: Mapping[int, float],
    goal: float,
    known: dict[Neuron, float] | None = None,
    enough: float = math.inf,
) -> Search:
    """Find further neurons for a prompt that is still drawn, judged by trajectories.

    remaining: seed -> what remains of the picture with nothing further off. The result is accepted
    by every one of these seeds (at most `goal` remains) and 1-minimal beside what is off already; there
    is none where all candidates together are not enough, which is "not removable".

    known: the attribution of an earlier search of the prompt in the same layers, whose order is gone on
        with; what is empty is filled.
    enough: after how many trajectories to keep what is not known to be needless: showing that each of
        many neurons is needed takes one for each.
    """
    cache = AnswerCache(candidates.order, goal, trajectory=True)
    before = dict(remaining)
    seeds = tuple(sorted(before, key=lambda seed: -before[seed]))
    attribution = {} if known is None else known
    schedule = prefix_schedule(candidates.order, cache)
    searched, rung = GroupTesting(cache, before, seeds, schedule), None
    # One trajectory with all candidates off is cheap beside an attribution.
    if schedule.rungs and (yield from searched.accepted(schedule.rungs[-1][1])):
        if not attribution:
            found: Attribution = yield Attribute(seeds[:1], trajectory=True)  # type: ignore[assignment]
            attribution.update(found)
        schedule = prefix_schedule(candidates.by_merit(attribution), cache)
        searched = GroupTesting(cache, before, seeds, schedule, enough)
        rung = yield from _attempt(searched)
    if rung is None:
        searched.exhausted, searched.kept = True, 0
    return (yield from finished(searched, before, rung or (None, 0), attribution))


def attributed(cache: AnswerCache, seeds: Sequence[int]) -> Steps[Attribution]:
    """An attribution at a few points, each on a seed of its own: seeds differ more than points do.

    seeds: the most stubborn first, taken in turn. What each says counts alike, whatever its score.
    """
    total: dict[Neuron, float] = {}
    scales = []
    for seed, point in zip(cycle(seeds), POINTS, strict=False):
        wanted = Attribute((seed,), points=(point,))
        found = yield from cache.tally.attribute(wanted)
        scales.append(sum(max(0.0, value) for value in found.values()) or 1.0)
        for neuron, value in found.items():
            total[neuron] = total.get(neuron, 0.0) + value / scales[-1]
    unit = sum(scales) / len(scales) ** 2
    return {neuron: value * unit for neuron, value in total.items()}


def _settled(cache: AnswerCache, ladder: Schedule, seed: int) -> Steps[bool]:
    """Whether the ladder's last rung of few candidates is enough for this seed."""
    few = [rung for _, rung in ladder.rungs if rung.bit_count() <= SETTLED]
    if not few:
        return False
    yield from cache.ask(few[-1], (seed,))
    return bool(cache.passes(few[-1], seed))


def _plans(
    cache: AnswerCache,
    before: dict[int, float],
    memorized: Sequence[int],
    by_merit: Schedule,
    by_ladder: Schedule,
    harm: Mapping[Neuron, float],
) -> Steps[list[tuple[GroupTesting, float]]]:
    """What to try one after the other, and at how many samples in all to give each up."""
    ladder = GroupTesting(cache, before, memorized, by_ladder)
    # One that gave up cannot go on, so each attempt has its own.
    merit, again = (GroupTesting(cache, before, memorized, by_merit) for _ in range(2))
    shortest = yield from GroupTesting(cache, before, memorized, by_merit).shortest()
    if shortest is None:  # with all neurons off it is still memorized
        return []
    if shortest > _LONG:
        there = yield from GroupTesting(cache, before, memorized, by_ladder).shortest()
        if there is not None and there < shortest:
            return [(ladder, math.inf), (merit, math.inf)]
    most = cache.tally.spent + _patience(shortest)
    returning = Returning(cache, before, memorized, by_merit, harm)
    first = merit if shortest <= _SHORT else returning
    return [(first, most), (ladder, math.inf), (again, math.inf)]


def _patience(candidates: int) -> int:
    """How many samples the refinement of a prefix may take; group testing takes 1 to 3 a neuron."""
    return 64 + 4 * candidates


def _attempt(searched: GroupTesting, most: float = math.inf) -> Steps[tuple[float | None, Mask] | None]:
    """`searched.run()`; None once its schedule is at its end, or it took more than `most` samples."""
    steps = searched.run()
    try:
        asked = next(steps)
        while not searched.exhausted and searched.cache.tally.spent < most:
            asked = steps.send((yield asked))
    except StopIteration as end:
        rung: tuple[float | None, Mask] = end.value
        return None if searched.exhausted else rung
    return None
