"""The economical search: the literal search's result from near the fewest samples possible.

A prompt cannot cost less than one sample per seed to score it and one per memorized seed to
confirm the set found. What the literal D1 to D4 spend beyond that is saved in four ways:

1. *Counterexamples choose the seeds.* The criterion is a maximum, so one seed above the threshold
   says no. The search runs on the most stubborn seed alone and asks all memorized seeds only about
   its result. A seed that objects joins in; what was kept for the others stays kept.
2. *The schedule of candidate sets is galloped up and bisected*, since its sets are nested (D3).
3. *Refinement is group testing* (D4), weakest candidates first. How many to drop at once follows
   from how many of those tested so far were needed: such that the answer is about as likely yes as
   no, which keeps it within a few samples of log2(n over m) for m needed among n. A group that
   cannot be dropped is halved until one needed neuron stands alone.
4. *Nothing is asked twice*, and while the scores behave monotonically (more neurons off, no seed
   scores higher) what follows from earlier answers is not asked at all.

The candidates come from a schedule: the paper's ladder (`LadderSchedule`, by how unusual a neuron's
activation is) or the prefixes of an order by attribution (`PrefixSchedule`, by what matters).

Monotonicity is assumed only to decide what to ask. The result is checked, for any oracle: the final
set was asked about on every memorized seed, and for each of its neurons the set without it was
asked about on a seed that objected (1-minimality). An answer that contradicts monotonicity ends all
inference: the search starts over from what was really answered, rung by rung.

Cost beside the literal search: with three seeds or more, monotone scores and one seed that is the
most stubborn whatever is off, never more samples. Ten seeds that contradict each other may cost
more where very few candidates let the literal search be lucky with its order; in random trials
that was one case in thousands, and always less than two of its evaluations. For scores that are
not monotone, or one or two seeds, there is no such bound: the literal search proves nothing about
its result, and a proof takes at least one answer for every neuron found.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.search.answer_cache import AnswerCache, Mask
from nemo_prune.search.ladder import THETA_END, Ladder
from nemo_prune.search.protocol import (
    Attribution,
    Outcome,
    Search,
    Steps,
    check_seeds,
    not_memorized,
)

# Before anything is tested, half a needed neuron among about sqrt(n): the paper's sizes (4 of 27,
# 21 of 675) lie near it, and being wrong costs little.
PRIOR_NEEDED = 0.5
_NEAR = 32  # rungs among which an accepted one is bisected to, rather than galloped up to
_GROWTH = 1.06  # of long prefixes, from one rung to the next: refinement finds the rest


@dataclass(frozen=True)
class Schedule:
    """Nested candidate sets, and which of their neurons to try dropping first.

    rungs: (theta, candidates), each set larger than the one before; theta is None where no bound on
        |z| made them.
    weakest_first: all neurons of the last rung, as bits.
    complete: at the end of a schedule that fails, ask about every rung that was skipped, so that
        nothing is called not removable which a climb would have removed.
    name: what ordered the candidates.
    """

    rungs: tuple[tuple[float | None, Mask], ...]
    weakest_first: tuple[int, ...]
    complete: bool
    name: str


def ladder_schedule(ladder: Ladder, cache: AnswerCache) -> Schedule:
    """The paper's ladder; rungs that add nothing are left out."""
    rungs: list[tuple[float | None, Mask]] = []
    candidates = 0
    for i, added in enumerate(ladder.entering()):
        if added:
            candidates |= cache.mask(added)
            rungs.append((ladder.theta(i), candidates))
    # Of equals, those nearest the mid block first.
    weakest = sorted(
        (cache.bit(neuron) for neuron in ladder.order),
        key=lambda bit: (ladder.suspicion(cache.order[bit]), -bit),
    )
    return Schedule(tuple(rungs), tuple(weakest), True, "ladder")


def prefix_schedule(order: Sequence[Neuron], cache: AnswerCache) -> Schedule:
    """Prefixes of an order, what matters most first; long ones grow by 6 % from rung to rung."""
    rungs: list[tuple[float | None, Mask]] = []
    mask, start, wanted, bits = 0, 0, 1.0, cache.bits
    for place in range(1, len(order) + 1):
        if place >= wanted or place == len(order):
            mask, start = mask | cache.mask(order[start:place]), place
            rungs.append((None, mask))
            wanted = max(place + 1, place * _GROWTH)
    weakest = tuple(map(bits.__getitem__, reversed(order)))
    return Schedule(tuple(rungs), weakest, False, "attribution")


class GroupTesting:
    """The search for the neurons of one prompt that is known to be memorized.

    Args:
        cache: of answers; may hold some already.
        before: each seed's score with nothing off.
        seeds: the memorized ones, all of which must accept the result.
        schedule: where candidates come from.
        enough: after how many samples in all to keep what is not known to be needless: the result is as
            valid, but neurons may be among it that could go.
    """

    def __init__(
        self,
        cache: AnswerCache,
        before: dict[int, float],
        seeds: Sequence[int],
        schedule: Schedule,
        enough: float = math.inf,
    ) -> None:
        self.cache = cache
        self.enough = enough
        self.schedule = schedule
        self.rungs = schedule.rungs
        self.memorized = tuple(seeds)
        self.last = {seed: before[seed] for seed in seeds}  # how stubborn: the last score seen
        self.active = [max(seeds, key=lambda seed: before[seed])]
        self.exhausted = False
        self.kept: Mask = 0  # needed by the active seeds, as far as is known
        self.needed_by: dict[int, int] = {}  # bit -> the seed that objected to dropping it

    def run(self) -> Steps[tuple[float | None, Mask]]:
        """theta and candidates of the rung used; `kept` is left valid, and 1-minimal if `minimal`."""
        rung = 0
        if not self.rungs:  # no layer holds a neuron
            self.exhausted = True
            self.cache.threshold = max(self.last.values())
            return None, 0
        while True:
            rung = yield from self.find_rung(rung)
            yield from self.refine(self.rungs[rung][1])
            others = [seed for seed in self.memorized if seed not in self.active]
            objector = yield from self.objector(self.kept, [*self.hardest(others), *self.active])
            if objector is None:
                if self.minimal:
                    yield from self.prove()
                return self.rungs[rung]
            if objector in self.active:  # inferred to accept the set, and does not
                self.distrust()
            else:
                self.active.insert(0, objector)
            if not self.cache.trusted:
                self.kept = 0

    @property
    def minimal(self) -> bool:
        """Whether every neuron of the result is shown to be needed: there are samples left for that."""
        return self.cache.tally.samples < self.enough

    def shortest(self) -> Steps[int | None]:
        """How many candidates the first rung has that the most stubborn seed accepts; None: no rung."""
        if not self.rungs or not (yield from self.accepted(self.rungs[-1][1])):
            return None
        rung = yield from self.find_rung(0)
        return self.rungs[rung][1].bit_count()

    def find_rung(self, start: int) -> Steps[int]:
        """D3: the first rung, as an index into `rungs`, that every active seed accepts.

        While monotonicity is trusted the rungs below `start` are known to fail, and the rung is
        galloped to and bisected. Otherwise every rung from the lowest is asked about.
        """
        last = len(self.rungs) - 1
        if self.exhausted:
            return last
        low, high, step = (start - 1, start, 1) if self.cache.trusted else (-1, 0, 1)
        if self.cache.trusted:  # an earlier answer may have said how far to look
            near = range(start, min(start + _NEAR, len(self.rungs)))
            high = next((i for i in near if self.expected(self.rungs[i][1])), start)
        while not (yield from self.accepted(self.rungs[high][1])):
            if high == last:
                return (yield from self.end_of_ladder())
            low, high = high, min(high + step, last)
            step = 2 * step if self.cache.trusted else 1
        while high - low > 1:
            middle = (low + high) // 2
            if (yield from self.accepted(self.rungs[middle][1])):
                high = middle
            else:
                low = middle
        return high

    def end_of_ladder(self) -> Steps[int]:
        """The last rung fails: look at those that were skipped, then settle for the last.

        So a prompt is called not removable only if the climb would have called it so too.
        """
        for i, (_, candidates) in enumerate(self.rungs if self.schedule.complete else ()):
            others = [seed for seed in self.memorized if seed not in self.active]
            order = [*self.active, *self.hardest(others)]
            if (yield from self.objector(candidates, order)) is None:
                self.distrust()
                return i
        scores = yield from self.ask(self.rungs[-1][1], self.memorized)
        self.cache.threshold = max(scores.values())
        self.exhausted = True
        self.active = [max(self.memorized, key=lambda seed: scores[seed])]
        self.kept = 0
        return len(self.rungs) - 1

    def refine(self, candidates: Mask) -> Steps[None]:
        """D4 by group testing: add to `kept` what the active seeds need of the candidates."""
        order = [bit for bit in self.schedule.weakest_first if (candidates & ~self.kept) >> bit & 1]
        end = len(order)
        rest = [0] * (end + 1)  # rest[i]: the mask of order[i:]
        for i in reversed(range(end)):
            rest[i] = rest[i + 1] | 1 << order[i]
        needed, tested = PRIOR_NEEDED, PRIOR_NEEDED + math.sqrt(end)
        start = 0
        while start < end:
            if not self.minimal:
                self.kept |= rest[start]
                return
            low, high = start, start + group_size(needed / tested, end - start)
            if high == end > start + 1 and self.refused(self.kept):
                high -= 1  # not all can go, and that is known
            if (yield from self.accepted(self.kept | rest[high])):
                tested += high - start
                start = high
                continue
            while high - low > 1:
                middle = (low + high) // 2
                if (yield from self.accepted(self.kept | rest[middle])):
                    low = middle
                else:
                    high = middle
            self.kept |= 1 << order[low]
            self.needed_by[order[low]] = self.active[0]
            needed, tested = needed + 1, tested + low + 1 - start
            start = low + 1

    def prove(self) -> Steps[None]:
        """Ask about `kept` without each of its neurons, until every one has an objector.

        `kept` has been accepted by every memorized seed. A neuron that nobody misses is dropped,
        which those answers already confirm; the others are then proven anew.
        """
        weakest_first = self.schedule.weakest_first
        open_, proven = deque(b for b in weakest_first if self.kept >> b & 1), deque[int]()
        mistaken = set[int]()  # seeds that do not miss, beside what others need, what they once did
        while open_ and self.minimal:
            bit = open_.popleft()
            without, first = self.kept & ~(1 << bit), self.needed_by[bit]
            others = [seed for seed in self.memorized if seed not in self.active]
            seeds = dict.fromkeys([first, *self.active, *self.hardest(others)])
            likely = sorted(seeds, key=mistaken.__contains__)
            objector = yield from self.objector(without, likely)
            if self.cache.passes(without, first):
                mistaken.add(first)
            if objector is None:
                self.kept = without
                open_.extend(proven)
                proven.clear()
            else:
                proven.append(bit)

    def accepted(self, off: Mask) -> Steps[bool]:
        """Whether all active seeds accept the set; asks one seed at a time, and only if unsure.

        The seed that refuses moves to the front of `active`: it is likely to do so again.
        """
        if self.refused(off):
            return False
        for seed in list(self.active):
            if self.cache.expects(off, seed) is None:
                yield from self.ask(off, (seed,))
                if not self.cache.passes(off, seed):
                    self.active.remove(seed)
                    self.active.insert(0, seed)
                    return False
        return True

    def expected(self, off: Mask) -> bool:
        """Whether all active seeds are known to accept the set."""
        return all(self.cache.expects(off, seed) for seed in self.active)

    def refused(self, off: Mask) -> bool:
        """Whether some active seed is known to refuse the set; that seed moves to the front."""
        for seed in self.active:
            if self.cache.expects(off, seed) is False:
                self.active.remove(seed)
                self.active.insert(0, seed)
                return True
        return False

    def objector(self, off: Mask, seeds: Sequence[int]) -> Steps[int | None]:
        """A seed that really answered above the threshold, or None if all answered below it.

        Asks the first seed, then two more, then four, until one objects: mostly the first does, or
        none. Of several the most stubborn is named.
        """
        if not off:
            return seeds[0]
        width = 1
        left = [seed for seed in seeds if self.cache.passes(off, seed) is None]
        while all(self.cache.passes(off, seed) is not False for seed in seeds) and left:
            yield from self.ask(off, left[:width])
            left, width = left[width:], 2 * width
        objecting = [seed for seed in seeds if self.cache.passes(off, seed) is False]
        return self.hardest(objecting)[0] if objecting else None

    def ask(self, off: Mask, seeds: Sequence[int]) -> Steps[dict[int, float]]:
        """Ask, and remember how stubborn the seeds were."""
        scores = yield from self.cache.ask(off, seeds)
        self.last |= scores
        return scores

    def hardest(self, seeds: Iterable[int]) -> list[int]:
        """The seeds by the last score seen of each, highest first."""
        return sorted(seeds, key=lambda seed: -self.last[seed])

    def distrust(self) -> None:
        """From here on believe only what was really answered."""
        self.cache.trusted = False
        self.kept = 0


def group_size(density: float, left: int) -> int:
    """How many neurons to try dropping at once, if each is needed with probability `density`.

    As many as make "none is needed" an even bet; all that are left if that is not much worse.
    """
    if (1 - density) ** left >= 0.4:
        return left
    return min(left, max(1, round(math.log(0.5) / math.log(1 - density))))


def finished(
    searched: GroupTesting,
    before: dict[int, float],
    rung: tuple[float | None, Mask],
    attribution: Attribution | None = None,
) -> Search:
    """The outcome of a search that was run; asks about the result where that was not done yet."""
    cache, memorized = searched.cache, searched.memorized
    after = {seed: searched.last[seed] for seed in memorized}
    if searched.kept:
        after = yield from cache.ask(searched.kept, memorized)
    theta, candidates = rung
    found = cache.neurons(searched.kept)
    return Outcome(
        status="not removable" if searched.exhausted else "localized",
        neurons=found,
        scores_before=before,
        memorized_seeds=memorized,
        scores_after=after,
        threshold=cache.threshold,
        theta=THETA_END if searched.exhausted and searched.schedule.complete else theta,
        candidates=candidates.bit_count(),
        samples=cache.tally.samples,
        questions=cache.tally.questions,
        order=searched.schedule.name,
        # Of a neuron that was off already nothing was attributed.
        attribution=tuple(attribution.get(neuron, 0.0) for neuron in found) if attribution else (),
        tradeoff=_tradeoff(cache) if cache.trajectory else (),
        minimal=searched.minimal,
    )


def _tradeoff(cache: AnswerCache) -> tuple[tuple[int, float], ...]:
    """(neurons off, largest score answered), each lower than all with fewer neurons off."""
    best: list[tuple[int, float]] = []
    for count, score in sorted(cache.answers()):
        if not best or score < best[-1][1]:
            best.append((count, score))
    return tuple(best)


def gradient_free_search(ladder: Ladder, seeds: Sequence[int], tau: float) -> Search:
    """Find a valid, 1-minimal set of memorization neurons with few samples; see the module text.

    Finds the rung the climb would find, and with it the literal search's neurons, wherever scores
    are monotone and one minimal set exists. For any oracle: "localized" whenever the literal
    search says so; all of `Outcome.neurons` and every single one of them shown to be needed.

    tau: the score above which a seed counts as memorized. Raises ValueError for unusable seeds or
    answers.
    """
    seeds = check_seeds(seeds)
    cache = AnswerCache(ladder.order, tau)
    before = yield from cache.tally.ask(frozenset(), seeds)
    memorized = tuple(seed for seed in seeds if before[seed] > tau)
    if not memorized:
        return not_memorized(before, tau)
    searched = GroupTesting(cache, before, memorized, ladder_schedule(ladder, cache))
    rung = yield from searched.run()
    return (yield from finished(searched, before, rung))
